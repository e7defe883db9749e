"""A copy of a device in use: its zones and data at one instant, while front-ends go on.

A write, or the end of a reset, first copies the bytes that it is about to change and that the copy still needs. So a
command waits only for the copying of bytes that it is about to overwrite, and of a chunk that is being copied.
"""

from collections.abc import Generator
from pathlib import Path

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.persist.copy import Copy


def dump(device: ZonedDevice, target: Path) -> Generator[int]:
    """Copy *device*, as it is when the iteration begins, to the new image *target*.

    Yields the progress periodically, in bytes of the device. A generator that is closed early leaves no file.

    Raises:
        PoisonedError: the file of *device* is lost, and its data with it.
        FileExistsError: *target* exists. OSError: the host refuses or has no room; nothing is left behind.
    """
    image = device.image

    def write(offset: int, nr_bytes: int) -> None:
        copy.save(offset, offset + nr_bytes)

    def begin() -> None:
        copy.begin(image.states.copy())
        image.erase_listeners.append(copy.save_zones)

    copy = Copy(image.backing, image.header, target)
    try:
        device.add_write_hook(write, observer="the dump", failed=copy.fail, begin=begin)
        try:
            yield from copy.run()
        finally:
            device.remove_write_hook(write)
            with image.lock:
                if copy.save_zones in image.erase_listeners:
                    image.erase_listeners.remove(copy.save_zones)
        device.require_whole()
        copy.seal()
    except BaseException:
        copy.abandon()
        raise
