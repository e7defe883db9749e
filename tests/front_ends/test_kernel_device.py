"""The life of the front-end with a device that no kernel has; real ones are tested in the guest."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.kernel_device import KernelDevice, KernelDeviceFrontEnd
from zonefs_emu.front_ends.known import open_target, run

NODE = Path("/dev/toy0")


class ToyDevice:
    failure: BaseException | None = None

    def __init__(self, ended: Callable[[], None]) -> None:
        self.ended = ended
        self.calls: list[str] = []

    def start(self) -> Path:
        self.calls.append("start")
        return NODE

    def stop(self) -> None:
        self.calls.append("stop")

    def statistics(self) -> Mapping[str, int]:
        return {"requests": 7}


class ToyFrontEnd(KernelDeviceFrontEnd):
    name = "toy"
    device: ToyDevice

    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        self.device = ToyDevice(ended)
        return self.device


def front_ends(image: Path) -> Json:
    with open_target(image) as target:
        return call(target, {"verb": "info"})[0]["front_ends"]


def test_a_device_is_shown_until_the_kernel_ends_it(image: Path) -> None:
    front_end = ToyFrontEnd()
    seen: list[Json] = []

    def look_and_end() -> None:
        seen.append(front_ends(image))
        front_end.device.ended()

    thread = threading.Thread(target=look_and_end)
    run(image, [front_end], ready=thread.start, owner="a test")
    thread.join()
    assert seen == [[{"name": "toy", "where": str(NODE), "statistics": {"requests": 7}}]]
    assert front_end.node == NODE
    assert front_end.device.calls == ["start", "stop"]


def test_what_a_killed_process_left_is_ended_at_once(image: Path) -> None:
    front_end = ToyFrontEnd()
    front_end.end_at_once = True
    run(image, [front_end], ready=lambda: None, owner="a test")
    assert front_end.device.calls == ["start", "stop"]


def test_a_device_that_fails_is_a_failure_of_its_front_end(image: Path, expect_warning: Callable[[str], None]) -> None:
    expect_warning("toy at /dev/toy0 is not served any more")
    front_end = ToyFrontEnd()

    def fail() -> None:
        front_end.device.failure = OSError("the kernel has had enough")
        front_end.device.ended()

    with pytest.raises(UsageError, match="/dev/toy0 could not be served any more: the kernel has had enough"):
        run(image, [front_end], ready=fail, owner="a test")
    assert front_end.device.calls == ["start", "stop"]
