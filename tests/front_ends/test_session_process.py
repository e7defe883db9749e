import os
import resource
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.front_ends.session_process import SessionProcess
from zonefs_emu.front_ends.vhost_user import VhostUserFrontEnd, make_scsi_host


def places(info: dict[str, Json]) -> list[Json]:
    """Return where the front-ends in *info* are."""
    front_ends = info["front_ends"]
    assert isinstance(front_ends, list)
    return [front_end["where"] for front_end in front_ends if isinstance(front_end, dict)]


def test_front_ends_are_ready_when_it_returns_and_gone_after_the_end(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = SessionProcess(image, [VhostUserFrontEnd(make_scsi_host, path=path)], log=tmp_path / "log")
    with open_target(image) as target:
        assert target.live
        assert places(call(target, {"verb": "info"})[0]) == [str(path)]
    assert process.end(60) == 0
    assert not path.exists()
    ZonedDevice.open(image).close()


def test_what_stands_against_a_start_is_said(image: Path, tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("mine")
    with pytest.raises(UsageError, match="socket exists and is not a socket"):
        SessionProcess(image, [VhostUserFrontEnd(make_scsi_host, path=tmp_path / "socket")], log=tmp_path / "log")
    ZonedDevice.open(image).close()


def test_a_process_that_was_killed(image: Path, tmp_path: Path) -> None:
    process = SessionProcess(image, [], log=tmp_path / "log")
    process.kill()
    assert process.end(60) == -signal.SIGKILL
    assert process.last_words() == "it said nothing"


def test_a_process_with_many_open_files_can_start_and_end_one(image: Path, tmp_path: Path) -> None:
    """select() takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        front_end = VhostUserFrontEnd(make_scsi_host, path=tmp_path / "socket")
        process = SessionProcess(image, [front_end], log=tmp_path / "log")
        assert process.end(60) == 0
