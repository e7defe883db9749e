"""The choice of the ring walker: the compiled one (walker.pyx) if it was built from the present sources, or none.

An extension that was built from other sources is not used: it would execute the rules of another version. The walker
has a CRC of its sources, which is compared when it is loaded. ``ZONEFS_EMU_PURE=1`` in the environment switches it off.

This module imports no other module of the package at its head, because ``zonefs-emu --version`` and setup.py, which
builds the walker, use it.
"""

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zonefs_emu.inflight.ring_record import RingRecord
    from zonefs_emu.virtio.packed import PackedRing
    from zonefs_emu.virtio.plain_requests import PlainRequests
    from zonefs_emu.virtio.split import SplitRing
    from zonefs_emu.virtqueue.walker import Walker

#: The variable of the environment that switches the walker off, unless it is empty or 0.
PURE: Final = "ZONEFS_EMU_PURE"
_PACKAGE: Final = Path(__file__).parent.parent
#: The sources of the three compiled modules.
SOURCES: Final = (
    "virtqueue/walker.pyx",
    "virtqueue/compiled_plain_rules.pxd",
    "virtqueue/compiled_slot_stores.pxd",
    "model/plain_rules.py",
    "inflight/slot_stores.py",
)


def sources_crc() -> int:
    """Return the CRC of the sources."""
    crc = 0
    for name in SOURCES:
        crc = zlib.crc32((_PACKAGE / name).read_bytes(), crc)
    return crc


def _load() -> "tuple[type[Walker] | None, str]":
    """Return the walker's class, or None; and a text for people that says which walker is used."""
    if os.environ.get(PURE, "0") not in ("", "0"):
        return None, f"pure Python (as {PURE} asks)"
    try:
        from zonefs_emu.virtqueue import walker  # noqa: PLC0415  (optional)
    except ImportError:
        return None, "pure Python (the compiled one is not built)"
    try:
        is_stale = sources_crc() != walker.SOURCES
    except OSError:
        is_stale = True
    if is_stale:
        return None, "pure Python (the compiled one was built from other sources)"
    return walker.Walker, "compiled"


_walker: "tuple[type[Walker] | None, str] | None" = None


def _loaded() -> "tuple[type[Walker] | None, str]":
    global _walker  # noqa: PLW0603  (loaded once, when it is asked for)
    if _walker is None:
        _walker = _load()
    return _walker


def used_walker() -> str:
    """Say in a few words which walker is used."""
    return _loaded()[1]


def is_compiled() -> bool:
    """Say whether the compiled walker is used."""
    return _loaded()[0] is not None


def new_walker(
    ring: "SplitRing | PackedRing",
    areas: tuple[memoryview, memoryview, memoryview],
    plain: "PlainRequests | None",
    *,
    faults: object,
    record: "RingRecord | None",
    record_memory: memoryview | None,
) -> "Walker | None":
    """Return a walker of *ring*, which lies in *areas*; None if Python executes all requests of the ring.

    There is no walker for queues without *plain* requests, for ports that record or change commands, for images that
    are no file of the host, and for rings at unaligned addresses.
    """
    walker_type = _loaded()[0]
    if walker_type is None or plain is None:
        return None
    from zonefs_emu.device.faulty_port import FaultyPort  # noqa: PLC0415  (see the module's head)
    from zonefs_emu.device.image_access import LONG_WRITE_SECTORS  # noqa: PLC0415
    from zonefs_emu.persist.backing import FileBacking  # noqa: PLC0415
    from zonefs_emu.virtio.blk_merge import SECTORS_MAX  # noqa: PLC0415
    from zonefs_emu.virtio.packed import PackedRing  # noqa: PLC0415

    port = plain.port
    core = port.device
    backing = core.image.backing
    if (
        type(port) is not FaultyPort
        or type(backing) is not FileBacking
        or core.access.check_read != core.machine.check_read
        or core.access.preadv is not backing.preadv
    ):
        return None
    desc, driver, device = areas
    try:
        return walker_type(
            ring=ring, is_packed=isinstance(ring, PackedRing), desc=desc, driver=driver, device=device,
            memory=ring.memory, record=record, record_memory=record_memory, port=port, faults=faults,
            descriptor=backing.descriptor, is_scsi=plain.is_scsi, lun=plain.lun, may_read=plain.may_read,
            may_write=plain.may_write, sectors_max=plain.sectors_max, write_sectors_max=LONG_WRITE_SECTORS,
            run_sectors_max=SECTORS_MAX,
        )  # fmt: skip
    except (ValueError, BufferError):
        return None
