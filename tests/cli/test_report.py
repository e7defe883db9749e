import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok

BLOCK = bytes(4096)


def test_table_by_default(image: Path) -> None:
    ok("write", image, "--zone", 3, stdin=BLOCK)
    lines = ok("report", image).splitlines()
    assert len(lines) == 9
    assert lines[4].split() == ["3", "swr", "oi", "6144", "1", "MiB", "768", "KiB", "4", "KiB", "1%"]


def test_offset_and_count(image: Path) -> None:
    for offset in ("3M", "3.5M", "6144s", "0x300000"):
        lines = ok("report", image, "--format", "blkzone", "-o", offset, "-c", "2").splitlines()
        assert [line.split(",")[0] for line in lines] == ["  start: 0x000001800", "  start: 0x000002000"]
    assert len(ok("report", image, "--format", "blkzone", "-o", "7M", "-c", "100").splitlines()) == 1
    assert "offset 8 MiB lies beyond the device, which has 8 MiB" in fails("report", image, "-o", "8M")


def test_condition_filter(image: Path) -> None:
    ok("open", image, "--zone", 3)
    ok("finish", image, "--zone", 5)
    report = json.loads(ok("report", image, "--json", "--cond", "EXP_OPENED,fu"))
    assert report["nr_zones"] == 2
    assert [(zone["zone_no"], zone["cond"]) for zone in report["zones"]] == [(3, "oe"), (5, "fu")]
    assert ok("report", image, "--format", "nvme", "--cond", "oe").startswith("nr_zones: 1\nSLBA: 0x300 ")
    assert len(ok("report", image, "--format", "zbd", "--cond", "ro").splitlines()) == 0
    assert "'xx' is not a zone condition" in fails("report", image, "--cond", "em,xx", code=2)


@pytest.mark.parametrize("name", ["table", "blkzone", "blkzone-2.42", "zbd", "zbd-csv", "nvme", "nvme-json", "json"])
def test_every_format_offline_and_live(name: str, image: Path) -> None:
    assert len(ok("report", image, "--format", name)) > 100


def test_a_dialect_that_nobody_speaks() -> None:
    assert "'sgdisk' is not one of 'table', 'blkzone'" in fails("report", "x", "--format", "sgdisk", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True], ids=["offline", "live"])
def test_a_million_zones_stream_in_flat_memory(held: bool, tmp_path: Path) -> None:
    image = tmp_path / "large.img"
    ok("create", image, "--size", "64G", "--zone-size", "64K")
    script = """
import re, sys
from pathlib import Path
from zonefs_emu.cli.main import cli
from zonefs_emu.front_ends.known import run
if sys.argv[2] == "hold":
    run(Path(sys.argv[1]), [], ready=lambda: print("ready", flush=True), owner="a test")
else:
    cli(["report", sys.argv[1], "--format", "json"], standalone_mode=False)
# Not ru_maxrss: that begins with the peak of the process that forked us.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""

    def start(role: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script, str(image), role]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def report() -> int:
        with start("report") as reporter:
            assert reporter.stdout is not None
            assert reporter.stderr is not None
            assert sum(line.startswith('{"zone_no"') for line in reporter.stdout) == 1 << 20
            return int(reporter.stderr.read())

    if not held:
        # The zone tables themselves are in it; the report of 120 MB is not.
        assert report() < 200_000
        return
    with start("hold") as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            assert report() < 60_000
        finally:
            daemon.terminate()
        _, err = daemon.communicate(timeout=30)
        assert int(err) < 200_000
