"""A copy of a device in use: its zones and data at one instant, while front-ends go on.

A write, or the end of a reset, first copies the bytes that it is about to change and that the copy still needs. So a
command waits only for the copying of bytes that it is about to overwrite.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.copy import Copy
from zonefs_emu.units import to_bytes


def dump(device: ZonedDevice, target: Path) -> Generator[int]:
    """Copy *device*, as it is when the iteration begins, to the new image *target*.

    Yields the progress periodically, in bytes of the device. A generator that is closed early leaves no file.

    Raises:
        UsageError: another dump is at work.
        FileExistsError: *target* exists. OSError: the host refuses or has no room; nothing is left behind.
    """
    image, geometry = device.image, device.geometry

    def write(offset: int, nr_bytes: int) -> None:
        copy.save(offset, offset + nr_bytes)

    def erase(zone_numbers: Sequence[int]) -> None:
        for zone_no in zone_numbers:
            start = to_bytes(geometry.zone_start(zone_no))
            copy.save(start, start + to_bytes(geometry.zone_len(zone_no)))

    def begin() -> None:
        if image.erase_listener is not None:
            message = "a dump of this image is running: try again when it has ended"
            raise UsageError(message, exit_code=1)
        copy.begin(ZoneStates(bytearray(image.conds), image.wps[:], bytearray(image.attributes)))
        image.erase_listener = erase

    copy = Copy(image.backing, image.header, target)
    try:
        device.add_write_hook(write, observer="the dump", failed=copy.fail, begin=begin)
        try:
            yield from copy.run()
        finally:
            device.remove_write_hook(write)
            if image.erase_listener is erase:
                image.erase_listener = None
        copy.seal()
    except BaseException:
        copy.abandon()
        raise
