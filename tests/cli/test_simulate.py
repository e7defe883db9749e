import json
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok

KEYS = {"iops", "bw", "mean_ns", "p50_ns", "p95_ns", "p99_ns"}


def figures(*args: object) -> dict[str, float]:
    found = json.loads(ok("simulate", *args, "--json"))
    assert set(found) == KEYS
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("operation", ["append", "write", "read", "randread", "reset", "finish", "open", "close"])
def test_one_object_for_each_operation(operation: str) -> None:
    moves_data = operation in {"append", "write", "read", "randread"}
    options = ("--bs", 4096, "--zones", 1, "--depth", 4) if moves_data else ()
    found = figures("--preset", "zn540", "--op", operation, *options, "--count", 300)
    assert found["iops"] > 0
    assert found["p50_ns"] <= found["p95_ns"] <= found["p99_ns"]


def test_the_options_matter() -> None:
    def mean(*args: object) -> float:
        return figures("--op", *args, "--count", 2000)["mean_ns"]

    assert mean("append") > mean("write")
    assert mean("write", "--lbaf", 512, "--bs", 512) > mean("write")
    assert mean("write", "--zones", 8) > mean("write", "--zones", 4) > mean("write", "--depth", 2)
    assert mean("reset", "--occupancy", 1) > mean("reset", "--occupancy", 0.25) > mean("reset", "--occupancy", 0)
    assert mean("reset", "--occupancy", 0.25, "--finished") < mean("reset", "--occupancy", 0.25)
    assert mean("finish", "--occupancy", 0.25) > mean("finish", "--occupancy", 0.5)
    assert mean("read") < mean("randread")
    assert mean("randread", "--preset", "smr-hm") > 5_000_000
    assert mean("write", "--preset", "none") == 0
    assert mean("write", "--seed", 1) != mean("write", "--seed", 2)


def test_for_people() -> None:
    text = ok("simulate", "--op", "randread", "--count", 2000)
    assert text.startswith("IOPS 13")
    assert "latency in us: mean 72." in text


def test_what_no_drive_can_do_is_refused() -> None:
    assert "--bs 1000 is not a whole number of blocks of 4096 bytes" in fails(
        "simulate", "--op", "write", "--bs", 1000, code=2
    )
    assert "more than the 904 zones of zn540" in fails("simulate", "--op", "write", "--zones", 905, code=2)
    assert "does not fit into the 0 bytes" in fails("simulate", "--op", "read", "--occupancy", 0, code=2)
    too_many = fails("simulate", "--op", "randread", "--zones", 900, "--depth", 65536, code=2)
    assert "--zones 900 with --depth 65536 has 58982400 requests in flight: at most 65536" in too_many
    assert "--finished needs --op reset" in fails("simulate", "--op", "open", "--finished", code=2)


@pytest.mark.parametrize("operation", ["reset", "finish", "open", "close", "append"])
def test_each_operation_takes_all_columns_of_a_measurement(operation: str) -> None:
    columns = ("--bs", 8192, "--zones", 1, "--depth", 4, "--count", 50, "--occupancy", 0.5)
    assert figures("--op", operation, *columns)["iops"] > 0


def test_one_source_of_requests_is_given(tmp_path: Path) -> None:
    assert "exclude each other" in fails("simulate", "--op", "append", "--record", tmp_path, code=2)
    assert "are missing: give one of" in fails("simulate", code=2)


@pytest.mark.parametrize(
    "option",
    [("--bs", "8K"), ("--zones", 2), ("--depth", 1), ("--count", 3), ("--occupancy", 0.5), ("--finished",)],
    ids=lambda option: option[0],
)
def test_options_of_one_operation_do_not_go_with_files(tmp_path: Path, option: tuple[object, ...]) -> None:
    job = tmp_path / "a.fio"
    job.write_text("[a]\nsize=1m\n")
    sentence = fails("simulate", "small", "--fio-job", job, *option, code=2)
    assert f"{option[0]} has no effect without --op, because a workload" in sentence
