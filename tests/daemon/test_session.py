import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio.testing

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.session import keep_counters
from zonefs_emu.device.counters import Counters
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageBusyError, Status
from zonefs_emu.front_ends.known import open_target, run
from zonefs_emu.model.transitions import VIRTIO, Operation

INTERNAL = "internal error: KeyError: 'a bug'; the daemon's log has the traceback"

# A process with a session. The front-ends say on stdout what happens to them.
SCRIPT = """
import logging, sys, time, trio
from pathlib import Path
from zonefs_emu.front_ends.known import run
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

async def short_later(session, *, task_status):
    task_status.started()
    await trio.sleep(0.5)

async def failing(session, *, task_status):
    await trio.lowlevel.checkpoint()
    raise UsageError("the mount point is gone", exit_code=1)

async def failing_later(session, *, task_status):
    with session.register("failing", "somewhere", lambda: {}):
        task_status.started()
        await trio.sleep(0.05)
        raise OSError(5, "trouble")

async def buggy(session, *, task_status):
    with session.register("buggy", "somewhere", lambda: {}):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            task_status.started()
            {}["a bug"]

async def blocking(session, *, task_status):
    task_status.started()
    say("blocks")
    # As a request of a mount that is stuck in the host's disk blocks the event loop.
    time.sleep(3600)

async def stuck(session, *, task_status):
    task_status.started()
    say("stuck")
    # As a worker does that nothing cancels.
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(time.sleep, 3600)

async def failing_at_the_end(session, *, task_status):
    with session.register("failing", "somewhere", lambda: {}):
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            raise UsageError("nothing could be written back", exit_code=1)

logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
try:
    run(Path(sys.argv[1]), [globals()[name] for name in sys.argv[2:]], ready=lambda: say("ready"), owner="a session")
except Exception as error:
    say(type(error).__name__, error)
    sys.exit(1)
say("clean end")
"""


def log_of(image: Path) -> Path:
    return image.with_suffix(".log")


@contextmanager
def session(image: Path, *front_ends: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(image), *front_ends]
    with (
        log_of(image).open("a", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
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


def wait_until_ended(target: Target) -> dict[str, Json]:
    """Return what ``info`` says as soon as a front-end has ended."""
    deadline = time.monotonic() + 20
    while True:
        info, _ = call(target, {"verb": "info"})
        if info["ended_front_ends"]:
            return info
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("failing_later", "trouble", ["WARNING failing at somewhere is not served any more: trouble"]),
        (
            "buggy",
            INTERNAL,
            [
                "KeyError: 'a bug'",
                f"WARNING buggy at somewhere is not served any more: {INTERNAL}",
            ],
        ),
        ("short", None, ["INFO a front-end at nowhere has ended"]),
    ],
)
def test_a_front_end_that_ends_is_reported_and_the_others_go_on(
    name: str, reason: str | None, said: list[str], image: Path, expect_warning: Callable[[str], None]
) -> None:
    if name == "buggy":
        expect_warning("internal error in buggy, front-end at somewhere: KeyError: 'a bug'")
    with session(image, "patient", name) as process:
        wait_ready(process)
        with open_target(image) as target:
            info = wait_until_ended(target)
            shown, ended = info["front_ends"], info["ended_front_ends"]
            assert isinstance(shown, list)
            assert isinstance(ended, list)
            assert [front_end["name"] for front_end in shown if isinstance(front_end, dict)] == ["patient"]
            assert [front_end["reason"] for front_end in ended if isinstance(front_end, dict)] == [reason]
            assert call(target, {"verb": "append", "zone_no": 1}, b"x" * 4096)
            counters = call(target, {"verb": "stats"})[0]["device"]
            assert isinstance(counters, dict)
            assert counters["internal_errors"] == (name == "buggy")
        process.terminate()
        assert lines(process) == ["patient ends", "clean end"]
    log = log_of(image).read_text(encoding="utf-8").splitlines()
    assert set(said) <= set(log)


def test_the_end_of_the_last_front_end_tells_of_those_that_failed(image: Path) -> None:
    with session(image, "failing_later", "short_later") as process:
        output = lines(process)
        assert output[0] == "ready"
        assert output[-1] == "OSError [Errno 5] trouble"
        assert process.returncode == 1


def test_what_fails_at_the_end_is_told(image: Path) -> None:
    with session(image, "failing_at_the_end") as process:
        wait_ready(process)
        process.terminate()
        assert lines(process)[-1] == "UsageError nothing could be written back"
        assert process.returncode == 1


@pytest.mark.parametrize("name", ["blocking", "stuck"])
def test_what_is_stuck_in_the_host_is_not_waited_for(name: str, image: Path) -> None:
    """What was answered is there, and the log says what happened and where."""
    with session(image, "patient", name) as process:
        assert process.stdout is not None
        if name == "stuck":
            assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "stuck\n"}
            with open_target(image) as target:
                call(target, {"verb": "append", "zone_no": 1}, b"x" * 4096)
        else:
            assert process.stdout.readline() == "blocks\n"
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode == 1
    log = log_of(image).read_text(encoding="utf-8")
    assert "what was under way has not ended within 4 seconds: the process ends without a flush" in log
    assert f"in {name if name == 'blocking' else 'worker_fn'}" in log
    device = ZonedDevice.open(image)
    assert device.machine.zone(1).wp == (2056 if name == "stuck" else 2048)
    device.close()


def test_many_signals_are_one(image: Path) -> None:
    with session(image, "patient") as process:
        wait_ready(process)
        for _ in range(10):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        assert lines(process) == ["patient ends", "clean end"]
        assert process.returncode == 0


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
