import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli

TOML = """
[[job]]
name = "log"
operation = "append"
zones = "4-5"
count = 300
"""


def jobs(*args: object) -> dict[str, dict[str, dict[str, float]]]:
    found = json.loads(ok("simulate", *args, "--json"))
    return {job["jobname"]: job for job in found["jobs"]}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_workload_runs_on_the_zones_of_an_image(image: Path, tmp_path: Path) -> None:
    """Zone 4 is full, so the job begins by resetting it; the image stays as it is."""
    ok("finish", image, "--zone", 4)
    before = ok("report", image)
    file, picture = write(tmp_path / "w.toml", TOML.replace("4-5", "4")), tmp_path / "w.svg"
    found = jobs(image, "--workload", file, "--svg", picture)
    assert found["log"]["append"]["total_ios"] == 300
    assert found["log"]["reset"]["total_ios"] >= 1
    assert ok("report", image) == before
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_workload_runs_on_a_drive_that_there_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "w.toml", TOML)
    fast, plain = jobs("zn540", "--workload", file), jobs("--workload", file)
    assert fast == plain
    assert 60_000 < fast["log"]["append"]["iops"] < 80_000
    file.write_text(TOML.replace("4-5", "600-601"))  # those before 524 are conventional
    slow = jobs("smr-hm", "--workload", file)
    assert slow["log"]["append"]["iops"] < 50_000, "and it is the disk's timing"
    assert jobs("smr-hm", "--preset", "zn540", "--workload", file)["log"]["append"]["iops"] > 60_000
    smaller = jobs("--workload", file, "--lbaf", 512)
    assert smaller["log"]["append"]["iops"] < 50_000


def test_a_job_of_fio(tmp_path: Path) -> None:
    file = write(tmp_path / "j.fio", "[readers]\nrw=randread\nbs=16k\niodepth=8\nsize=4g\nnumber_ios=2000\n")
    text = ok("simulate", "zn540", "--fio-job", file)
    assert text.startswith("readers:\n  read: IOPS=")
    assert "99.99th=[" in text


def test_what_was_recorded_is_timed(tmp_path: Path) -> None:
    from zonefs_emu.device.device import ZonedDevice
    from zonefs_emu.device.oplog import record
    from zonefs_emu.model.transitions import VIRTIO, Operation

    ok("create", tmp_path / "s.img", "--preset", "small")
    device = ZonedDevice.open(tmp_path / "s.img")
    with (tmp_path / "s.log").open("w") as file:
        record(device, file)
        port = device.port("fuse", VIRTIO)
        start = device.geometry.zone_start(5)
        for _ in range(3):
            port.append(start, 8, (bytes(4096),))
        port.manage(Operation.RESET, start)
    device.close()
    found = jobs("--record", tmp_path / "s.log")["fuse"]
    assert found["append"]["total_ios"] == 3
    assert found["reset"]["total_ios"] == 1
    assert jobs(tmp_path / "s.img", "--record", tmp_path / "s.log")["fuse"] == found


def test_what_cannot_be_simulated_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "w.toml", TOML)
    assert "one of --op, --workload, --fio-job and --record" in fails("simulate", code=2)
    assert "--op, --workload, --fio-job and --record exclude each other" in fails(
        "simulate", "--op", "read", "--workload", file, code=2
    )
    assert "are for --workload" in fails("simulate", "zn540", "--op", "read", code=2)
    assert "missing.toml: No such file" in fails("simulate", "--workload", tmp_path / "missing.toml", code=2)
    assert "w.toml: job '[job]': fio's option" in fails("simulate", "--fio-job", file, code=2)
    assert "w.toml: line 1 of the log" in fails("simulate", "--record", file, code=2)
    large = write(tmp_path / "l.toml", "#" * (1 << 20 | 1))
    assert "a workload has at most 1048576 characters" in fails("simulate", "--workload", large, code=2)
    assert "No such file" in fails("simulate", "--workload", file, "--svg", tmp_path / "none" / "x.svg", code=2)
    empty = write(tmp_path / "e.toml", TOML.replace("append", "read").replace('"4-5"', "4\nsize = '4K'"))
    ok("simulate", "--workload", empty)


def test_names_are_printed_as_text(tmp_path: Path) -> None:
    """A file may be called anything, and a job as well: no terminal obeys it, and no picture is broken by it."""
    file = tmp_path / os.fsdecode(b"a\x1b&\xff<")
    write(file, TOML.replace('"log"', '"\\u001b[31mlog"'))
    picture = tmp_path / "w.svg"
    assert ok("simulate", "zn540", "--workload", file, "--svg", picture).startswith("\\x1b[31mlog:\n")
    title = ET.fromstring(picture.read_text()).find("{*}title")
    assert title is not None
    assert title.text == "a\\x1b&\\xff< on zn540"


def test_an_end_before_that_of_the_jobs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.cli.simulated_files.REQUESTS_MAX", 200)
    result = run_cli("simulate", "zn540", "--workload", write(tmp_path / "w.toml", TOML))
    assert "the simulation ended after 200 requests" in result.stderr


def test_a_job_that_never_begins_is_none(tmp_path: Path) -> None:
    file = write(tmp_path / "j.fio", "[a]\nrw=write\nsize=1g\nstartdelay=99999999999h\n")
    assert "the workload contains no request" in fails("simulate", "zn540", "--fio-job", file)
