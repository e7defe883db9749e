from collections.abc import Callable

from zonefs_emu.device.plain_commands import PlainCommands
from zonefs_emu.inflight.ring_record import RingRecord
from zonefs_emu.virtio.memory import GuestMemory
from zonefs_emu.virtio.packed import PackedRing
from zonefs_emu.virtio.split import SplitRing

SOURCES: int

class Walker:
    nr_taken: int

    def __init__(
        self,
        *,
        ring: SplitRing | PackedRing,
        is_packed: bool,
        desc: memoryview,
        driver: memoryview,
        device: memoryview,
        memory: GuestMemory,
        record: RingRecord | None,
        record_memory: memoryview | None,
        commands: PlainCommands,
        is_scsi: bool,
        lun: bytes,
        may_read: Callable[[], bool] | None,
        may_write: Callable[[], bool],
        sectors_max: int,
    ) -> None: ...
    def take(self) -> int: ...
