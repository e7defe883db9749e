from collections.abc import Callable

from zonefs_emu.device.port import Port
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
        port: Port,
        faults: object,
        descriptor: int,
        is_scsi: bool,
        lun: bytes,
        may_read: Callable[[], bool] | None,
        may_write: Callable[[], bool],
        sectors_max: int,
        write_sectors_max: int,
        run_sectors_max: int,
    ) -> None: ...
    def take(self) -> int: ...
