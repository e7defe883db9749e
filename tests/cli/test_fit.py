from pathlib import Path

import pytest

from tests.cli.conftest import fails, run_cli


def test_it_prints_parameters_and_errors(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    table = tmp_path / "drive.csv"
    table.write_text("op,mean,p50\nsm_empty_open,20000,20000\n")
    result = run_cli("fit", table)
    assert result.exit_code == 0, result.output
    assert result.stderr == "searching: open and close\n"
    values = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    assert float(values["open_ns"].partition(",")[0]) == pytest.approx(20_000, rel=0.05)
    assert result.stdout.splitlines()[-1].startswith("# open and close: 1 points, mean error ")


def test_what_is_no_table_of_measurements_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "drive.csv"
    assert "No such file" in fails("fit", table)
    table.write_text("op,mean\n")
    assert "no row of a kind that is modelled" in fails("fit", table, code=2)
    table.write_bytes(b"op,mean\n\xff,1\n")
    assert "not UTF-8" in fails("fit", table, code=2)
