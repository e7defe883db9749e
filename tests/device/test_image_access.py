"""Write hooks: what is written goes past them, in the order in which they were added."""

from functools import partial

from tests.device.sectors import write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO


def test_write_hooks_lie_on_each_other(device: ZonedDevice, port: Port) -> None:
    hooks: list[tuple[str, int]] = []

    def hook(name: str, offset: int, nr_bytes: int) -> None:
        assert nr_bytes == 512
        hooks.append((name, offset >> 9))

    def not_failed(error: Exception) -> None:
        raise AssertionError from error

    older, newer = partial(hook, "older"), partial(hook, "newer")
    kept = device.port("kept", VIRTIO)
    begun: list[int] = []
    device.add_write_hook(older, observer="older", failed=not_failed)
    assert write(port, 128, 1) == Status.OK
    device.add_write_hook(newer, observer="newer", failed=not_failed, begin=lambda: begun.append(len(hooks)))
    assert write(kept, 129, 1) == Status.OK
    device.remove_write_hook(older)
    assert write(device.port("later", VIRTIO), 130, 1) == Status.OK
    device.remove_write_hook(newer)
    assert write(port, 131, 1) == Status.OK
    assert (hooks, begun) == ([("older", 128), ("newer", 129), ("older", 129), ("newer", 130)], [1])
    assert device.access.pwritev == device.image.backing.pwritev
