from collections.abc import Callable

from zonefs_emu.device.plain_commands import PlainCommands
from zonefs_emu.vfio_user.drive_queues import SubmissionQueue
from zonefs_emu.virtio.memory import GuestMemory

SOURCES: int

class QueueWalker:
    nr_taken: int

    def __init__(
        self,
        *,
        queue: SubmissionQueue,
        record_memory: memoryview,
        memory: GuestMemory,
        commands: list[tuple[PlainCommands, Callable[[], bool]]],
    ) -> None: ...
    def take(self, tail: int, nr_max: int) -> int: ...
