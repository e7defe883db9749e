from typing_extensions import Buffer

from zonefs_emu.device.plain_commands import PlainCommands
from zonefs_emu.inflight.tag_record import TagRecord
from zonefs_emu.ublk.uring import Ring

SOURCES: int

class TagWalker:
    nr_taken: int

    def __init__(
        self,
        *,
        ring: Ring,
        descriptors: Buffer,
        buffer: memoryview,
        record: TagRecord,
        first_slot: int,
        commands: PlainCommands,
        node_fd: int,
        depth: int,
        data_at: int,
        data_stride: int,
    ) -> None: ...
    def take(self, to_free: list[int]) -> int: ...
