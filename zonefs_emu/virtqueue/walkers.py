"""Choosing the queues that have a compiled ring walker (walker.pyx)."""

from typing import TYPE_CHECKING

from zonefs_emu.compiled_modules import RING_WALKER, is_usable
from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.inflight.ring_record import RingRecord
from zonefs_emu.virtio.blk_merge import SECTORS_MAX
from zonefs_emu.virtio.packed import PackedRing
from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.split import SplitRing

if TYPE_CHECKING:
    from zonefs_emu.virtqueue.walker import Walker


def new_walker(
    ring: SplitRing | PackedRing,
    areas: tuple[memoryview, memoryview, memoryview],
    plain: PlainRequests | None,
    *,
    record: RingRecord | None,
    record_memory: memoryview | None,
) -> "Walker | None":
    """Return a walker of *ring*, or None if Python executes all its requests.

    *areas*: the memory of the ring (descriptors, driver's part, device's part). *record* and *record_memory*: of the
    requests in flight, if there is one. There is no walker for queues without *plain* requests, for ports without
    compiled commands, and for rings at addresses that are not aligned.
    """
    if plain is None or not is_usable(RING_WALKER):
        return None
    from zonefs_emu.virtqueue.walker import Walker  # noqa: PLC0415  (optional)

    commands = compiled_commands(plain.port, run_sectors_max=SECTORS_MAX)
    if commands is None:
        return None
    desc, driver, device = areas
    try:
        return Walker(
            ring=ring, is_packed=isinstance(ring, PackedRing), desc=desc, driver=driver, device=device,
            memory=ring.memory, record=record, record_memory=record_memory, commands=commands, is_scsi=plain.is_scsi,
            lun=plain.lun, may_read=plain.may_read, may_write=plain.may_write, sectors_max=plain.sectors_max,
        )  # fmt: skip
    except (ValueError, BufferError):
        return None
