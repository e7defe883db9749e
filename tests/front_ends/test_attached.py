"""What is attached; real devices end in the guest, by tests/attaching.py."""

import os
import threading
from pathlib import Path

import pytest

from tests.front_ends.test_kernel_device import NODE, ToyFrontEnd
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.attached import Attached, attached, attached_nodes, detach
from zonefs_emu.front_ends.known import run


class Ublk(ToyFrontEnd):
    name = "ublk"


def test_devices_of_daemons_are_found(image: Path) -> None:
    front_ends = (Ublk(), ToyFrontEnd())
    found: list[Attached] = []

    def look() -> None:
        found.extend(attached())
        for front_end in front_ends:
            front_end.device.ended()

    thread = threading.Thread(target=look)
    run(image, front_ends, ready=thread.start, owner="a test")
    thread.join()
    assert found == [Attached(node=str(NODE), via="ublk", image=str(image), pid=os.getpid())]


def test_nodes() -> None:
    info = {
        "front_ends": [{"name": "zonefs", "where": "/mnt"}, {"name": "vduse", "where": "/dev/vda"}],
        "pid": 7, "path": "/a.img",
    }  # fmt: skip
    assert attached_nodes(info) == ["/dev/vda"]  # type: ignore[arg-type]


def test_what_is_not_attached(image: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not attached"):
        detach(image, force=False)
    with pytest.raises(UsageError, match="is neither a device that zonefs-emu has attached nor an image"):
        detach(tmp_path / "none", force=False)
