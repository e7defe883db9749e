import json
import subprocess
from pathlib import Path

from tests.cli.conftest import fails, ok


def test_live_counters_go_on_from_command_to_command(fresh: Path, daemon: "subprocess.Popen[str]") -> None:
    ok("write", fresh, "--zone", 2, stdin=bytes(8192))
    ok("reset", fresh, "--zone", 2)
    fails("open", fresh, "--zone", 0)
    counters = json.loads(ok("stats", fresh, "--json"))["device"]
    assert (counters["writes"], counters["written_sectors"], counters["resets"], counters["refused"]) == (1, 16, 1, 1)
    assert "written_sectors:           16\n" in ok("stats", fresh)


def test_offline_it_knows_what_is_open(fresh: Path) -> None:
    ok("open", fresh, "--zone", 2, "--count", 2)
    assert json.loads(ok("stats", fresh, "--json"))["device"]["nr_open"] == 2


def test_one_zone_and_the_zones_with_most(image: Path) -> None:
    for zone_no in (2, 3, 3, 5):
        ok("write", image, "--zone", zone_no, stdin=bytes(4096))
    assert json.loads(ok("stats", image, "--zone", 3, "--json"))["zone"]["written_sectors"] == 16
    assert ok("stats", image, "--top", 2, "--by", "writes").split() == ["zone", "3", "2", "zone", "2", "1"]
    assert "there is no zone 8" in fails("stats", image, "--zone", 8)
    assert "give only one of them" in fails("stats", image, "--zone", 3, "--top", 2, code=2)
    assert "--by has no effect without --top" in fails("stats", image, "--by", "writes", code=2)
    assert "can be combined with --zone only" in fails("stats", image, "--openmetrics", "--json", code=2)
    assert "is not one of" in fails("stats", image, "--top", 2, "--by", "luck", code=2)


def test_openmetrics(image: Path) -> None:
    ok("write", image, "--zone", 3, stdin=bytes(4096))
    text = ok("stats", image, "--openmetrics")
    uuid = json.loads(ok("info", image, "--json"))["uuid"]
    assert "# TYPE zonefs_emu_nr_open gauge\n" in text
    assert f'zonefs_emu_nr_open{{image="{uuid}"}} 1\n' in text
    assert "# TYPE zonefs_emu_writes counter\n" in text
    assert f'zonefs_emu_writes_total{{image="{uuid}"}} 1\n' in text
    assert text.endswith("# EOF\n")
    assert f'zonefs_emu_writes_total{{image="{uuid}",zone="3"}} 1\n' in ok("stats", image, "--openmetrics", "--zone", 3)
