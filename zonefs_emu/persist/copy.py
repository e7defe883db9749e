"""Copy an image: the zone states of one instant, and the data that they cover, holes staying holes.

A copy is an image like any other, stopped in order, with the UUID and label of its origin. May not know: who holds the
origin; the caller says what the zones' states are and sees to it that no zone is reset meanwhile.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.image import Image, read_header
from zonefs_emu.persist.layout import pack_words
from zonefs_emu.units import to_bytes

_CHUNK_BYTES: Final = 1 << 20


def copy_image(origin: Path, target: Path, conds: bytearray, wps: "array[int]") -> None:
    """Create the image *target* with the zone states *conds* and *wps* and the data of *origin*.

    *wps* counts sectors from each zone's start. The lock of *origin* is neither taken nor asked for.

    Raises:
        FileExistsError: *target* exists.
        ImageError: *origin* is no image.
        OSError: the host refuses or has no room; nothing is left behind.
    """
    source = FileBacking.peek(origin)
    try:
        header = read_header(source, source.length)
        copy = FileBacking.create(target, header.file_bytes, header.reserved)
        try:
            _copy_data(source, copy, header.geometry, wps)
            Image.initialize(copy, header, pack_words(conds, wps))
            copy.sync_name()
        except BaseException:
            copy.close()
            target.unlink()
            raise
        copy.close()
    finally:
        source.close()


def _copy_data(source: FileBacking, copy: FileBacking, geometry: Geometry, wps: "array[int]") -> None:
    for start, end in _covered(geometry, wps):
        for offset, length in source.extents(start, end):
            done = 0
            while done < length:
                data = source.pread(min(_CHUNK_BYTES, length - done), offset + done)
                if not data:
                    # The file became shorter under us: what is not there reads as zeros.
                    return
                copy.pwrite(data, offset + done)
                done += len(data)


def _covered(geometry: Geometry, wps: "array[int]") -> Iterator[tuple[int, int]]:
    """Yield the runs (start, end), in bytes, that zones cover: conventional ones in full, others up to wp."""
    for first, count in geometry.conventional:
        end = min(geometry.zone_start(first + count), geometry.size)
        yield to_bytes(geometry.zone_start(first)), to_bytes(end)
    for zone_no in geometry.sequential_zones():
        if wps[zone_no]:
            start = geometry.zone_start(zone_no)
            yield to_bytes(start), to_bytes(start + wps[zone_no])
