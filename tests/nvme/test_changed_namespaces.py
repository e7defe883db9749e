"""The values alone; test_controller.py has the events."""

import errno
import struct
from pathlib import Path

from tests.nvme.conftest import new_device
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.changed_namespaces import ChangedNamespaces, critical_warning, is_protected


def test_namespaces_change_once(device: ZonedDevice, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with new_device(tmp_path / "second") as second:
        heard: list[int] = []
        changed = ChangedNamespaces({1: device, 2: second}, lambda: heard.append(1))
        assert not changed.look()
        assert critical_warning([device, second]) == 0
        second.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")
        assert heard
        assert (is_protected(device), is_protected(second)) == (False, True)
        assert critical_warning([device, second]) == 0x4, "degraded"
        assert [changed.look(), changed.look()] == [True, False]
        assert changed.known() == [2]
        for retain, listed in ((True, 2), (False, 2), (False, 0)):
            assert struct.unpack_from("<2I", changed.page(retain=retain)) == (listed, 0)
        changed.restore([1])
        assert changed.look()
        assert struct.unpack_from("<3I", changed.page(retain=False)) == (1, 2, 0)
        changed.close()
        heard.clear()
        device.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")
        assert not heard
        assert critical_warning([device, second]) == 0xC, "and read-only"


def test_an_image_that_is_open_read_only_is_protected_from_the_start(device: ZonedDevice, tmp_path: Path) -> None:
    device.close()
    readonly = ZonedDevice.open(tmp_path / "image", readonly=True)
    changed = ChangedNamespaces({1: readonly}, lambda: None)
    assert (changed.known(), changed.look()) == ([1], False)
    assert critical_warning([readonly]) == 0, "it has not failed"
    changed.close()
    readonly.close()
