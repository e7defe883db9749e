"""The file system or partition table that a device holds already, as libblkid recognises it.

mkzonefs, blkid and other mkfs programs ask libblkid, too.

May not know: the image file. libblkid probes a file, so it gets a sparse one in memory that is as long as the device.
Both ends, where signatures are, are copied there by reads of the device. So old data of a zone that was reset, which
the image file may still have, is not found.
"""

import ctypes
import os
from collections.abc import Iterator
from typing import Final

from zonefs_emu.device.port import Port
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_SHIFT, Sector

#: A library of util-linux; the number is the version of its interface.
_LIBRARY: Final = "libblkid.so.1"
#: The farthest signatures from either end, those of VMFS and of bcachefs, lie within 2 MiB.
_SPAN_SECTORS: Final = 8 << 20 >> SECTOR_SHIFT
_CHUNK_SECTORS: Final = 1 << 20 >> SECTOR_SHIFT
#: Conditions of zones that are not read, because they have no data.
_WITHOUT_DATA: Final = frozenset((Condition.EMPTY, Condition.OFFLINE))
#: Results of blkid_do_fullprobe(3).
_FOUND: Final = 0
_NOTHING: Final = 1


def find_signature(port: Port) -> str | None:
    """Return what the device appears to contain, as the end of a sentence; None if it contains nothing. Blocks.

    Raises:
        UsageError: libblkid is not installed, or cannot probe the device.

    Source: zonefs-tools src/zonefs_dev.c, zonefs_check_overwrite, from which the words are.
    """
    chunks = list(_chunks(port))
    if not chunks:
        return None
    fd = os.memfd_create("zonefs_emu", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, port.geometry.size << SECTOR_SHIFT)
        for sector, data in chunks:
            os.pwrite(fd, data, sector << SECTOR_SHIFT)
        return _probe(fd)
    finally:
        os.close(fd)


def _chunks(port: Port) -> Iterator[tuple[Sector, bytes]]:
    """Yield (sector, data) of all parts of both ends of the device that can be read and are not all zeros."""
    size = port.geometry.size
    head = min(_SPAN_SECTORS, size)
    for start, end in ((0, head), (max(head, size - _SPAN_SECTORS), size)):
        sector = start
        while sector < end:
            zone = port.zone(port.geometry.zone_no(sector))
            zone_end = min(zone.start + zone.size, end)
            if zone.cond in _WITHOUT_DATA:
                sector = zone_end
                continue
            nr_sectors = min(zone_end - sector, _CHUNK_SECTORS)
            data = bytearray(nr_sectors << SECTOR_SHIFT)
            if not port.read(sector, nr_sectors, (data,)) and any(data):
                yield sector, bytes(data)
            sector += nr_sectors


def _probe(fd: int) -> str | None:
    """Return what libblkid finds in the file *fd*; see :func:`find_signature`."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        message = (
            f"cannot detect an existing filesystem, as {_LIBRARY} is not installed: use the option '-f' to overwrite"
        )
        raise UsageError(message, 1) from None
    library.blkid_new_probe.restype = ctypes.c_void_p
    probe = ctypes.c_void_p(library.blkid_new_probe())
    try:
        set_device = library.blkid_probe_set_device(probe, fd, ctypes.c_int64(0), ctypes.c_int64(0))
        if (
            set_device
            or library.blkid_probe_enable_superblocks(probe, 1)
            or library.blkid_probe_enable_partitions(probe, 1)
        ):
            found = -1
        else:
            found = library.blkid_do_fullprobe(probe)
        if found == _NOTHING:
            return None
        if found != _FOUND:
            message = "cannot detect an existing filesystem, as libblkid failed: use the option '-f' to overwrite"
            raise UsageError(message, 1)
        value = ctypes.c_char_p()
        for name, what in ((b"TYPE", "an existing filesystem"), (b"PTTYPE", "a partition table")):
            if not library.blkid_probe_lookup_value(probe, name, ctypes.byref(value), None) and value.value:
                return f"{what} ({value.value.decode(errors='replace')})"
        return "something according to blkid"
    finally:
        library.blkid_free_probe(probe)
