import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio.testing

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.client import call, open_target
from zonefs_emu.daemon.session import keep_counters, run
from zonefs_emu.device.counters import Counters
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageBusyError, Status
from zonefs_emu.model.transitions import VIRTIO, Operation

# A process with a session. The front-ends say on stdout what happens to them.
SCRIPT = """
import sys, trio
from pathlib import Path
from zonefs_emu.daemon.session import run
from zonefs_emu.errors import UsageError

def say(*words):
    print(*words, flush=True)

async def patient(session, *, task_status):
    with session.register("patient", "nowhere", lambda: {"answers": 42}):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            say("patient ends")

async def short(session, *, task_status):
    task_status.started()
    await trio.sleep(0.05)

async def failing(session, *, task_status):
    await trio.lowlevel.checkpoint()
    raise UsageError("the mount point is gone", exit_code=1)

async def failing_later(session, *, task_status):
    task_status.started()
    await trio.sleep(0.05)
    raise OSError(5, "trouble")

try:
    run(Path(sys.argv[1]), [globals()[name] for name in sys.argv[2:]], ready=lambda: say("ready"), owner="a session")
except Exception as error:
    say(type(error).__name__, error)
    sys.exit(1)
say("clean end")
"""


@contextmanager
def session(image: Path, *front_ends: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(image), *front_ends]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=30)
    return out.splitlines()


def wait_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals, image: Path, runtime_directory: Path) -> None:
    with session(image, "patient") as process:
        wait_ready(process)
        with open_target(image) as target:
            call(target, {"verb": "append", "zone_no": 1}, b"x" * 4096)
        process.send_signal(number)
        assert lines(process) == ["patient ends", "clean end"]
        assert process.returncode == 0
    assert list((runtime_directory / "zonefs-emu").iterdir()) == []
    device = ZonedDevice.open(image)
    assert device.image.recovery == ""
    assert device.machine.zone(1).wp == 2056
    device.close()


def test_front_ends_and_their_counters_are_shown(image: Path) -> None:
    with session(image, "patient") as process:
        wait_ready(process)
        with open_target(image) as target:
            info, _ = call(target, {"verb": "info"})
            assert info["pid"] == process.pid
            shown = [{"name": "patient", "where": "nowhere", "statistics": {"answers": 42}}]
            assert info["front_ends"] == shown
            assert call(target, {"verb": "stats"})[0]["front_ends"] == shown


def test_it_ends_with_its_last_front_end(image: Path) -> None:
    with session(image, "short") as process:
        assert lines(process) == ["ready", "clean end"]
    with session(image, "short", "patient") as process:
        wait_ready(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)


def test_a_front_end_that_cannot_start_is_the_end(image: Path, runtime_directory: Path) -> None:
    with session(image, "patient", "failing") as process:
        assert lines(process) == ["patient ends", "UsageError the mount point is gone"]
    assert list((runtime_directory / "zonefs-emu").iterdir()) == []
    ZonedDevice.open(image).close()


def test_a_front_end_that_fails_later_is_the_end(image: Path) -> None:
    with session(image, "patient", "failing_later") as process:
        assert lines(process) == ["ready", "patient ends", "OSError [Errno 5] trouble"]


def test_the_second_says_who_holds_the_image(image: Path) -> None:
    with session(image) as first:
        wait_ready(first)
        with session(image) as second:
            assert lines(second) == [f"ImageBusyError {image} is in use by a session (pid {first.pid})"]
            assert second.returncode == 1
        # The first has noticed nothing.
        with open_target(image) as target:
            assert target.live
            assert call(target, {"verb": "info"})


def test_after_a_kill_the_image_is_free_and_whole(image: Path) -> None:
    with session(image) as process:
        wait_ready(process)
        with open_target(image) as target:
            call(target, {"verb": "append", "zone_no": 1}, b"x" * 4096)
        process.kill()
        process.wait(timeout=20)
    assert rendezvous.connect(image) is None
    with open_target(image) as target:
        assert not target.live
        assert call(target, {"verb": "read", "sector": 2048, "nr_sectors": 8})[1] == b"x" * 4096
    with session(image) as process:
        wait_ready(process)
        with open_target(image) as target:
            assert target.live


async def test_counters_are_written_now_and_then(image: Path, autojump_clock: trio.testing.MockClock) -> None:
    """So they outlast a daemon that is killed."""
    device = ZonedDevice.open(image)
    backing, header = device.image.backing, device.image.header
    assert device.port("test", VIRTIO).manage(Operation.OPEN, device.geometry.zone_start(1)) is Status.OK
    assert Counters(backing, header, readonly=True).totals()["opens"] == 0
    with trio.move_on_after(60):
        await keep_counters(device)
    assert autojump_clock.current_time() == 60
    assert Counters(backing, header, readonly=True).totals()["opens"] == 1
    device.close()


def test_a_client_meets_no_gap_at_the_end(image: Path) -> None:
    """While a session ends, a client gets through: by the socket, or by the image as soon as it is free."""
    with session(image, "patient") as process:
        wait_ready(process)
        process.terminate()
        with open_target(image) as target:
            assert call(target, {"verb": "info"})[0]["label"] == "test"


def test_busy_is_an_image_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.daemon.session.BUSY_S", 0.05)
    device = ZonedDevice.open(image)
    with pytest.raises(ImageBusyError, match=rf"\(pid {os.getpid()}\)"):
        run(image, [], ready=lambda: pytest.fail("ready, with another's image"), owner="a session")
    device.close()
