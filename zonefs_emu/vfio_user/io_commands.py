"""The I/O commands of a drive: which are carried out at once, which by the compiled walker, and which by a worker.

May not know: completions, doorbells and interrupts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from zonefs_emu.compiled_modules import is_usable
from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.nvme.answer import Answer, RefusedError
from zonefs_emu.nvme.command import ALL_NAMESPACES, Command, IoOpcode
from zonefs_emu.nvme.identify import MDTS_BYTES
from zonefs_emu.nvme.namespace import Namespace, flush_all
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.units import SECTOR_SHIFT
from zonefs_emu.vfio_user.drive_queues import SubmissionQueue
from zonefs_emu.vfio_user.held_answers import HeldAnswers
from zonefs_emu.vfio_user.page_list import slices
from zonefs_emu.virtio.memory import GuestMemory

if TYPE_CHECKING:
    from zonefs_emu.device.plain_commands import PlainCommands
    from zonefs_emu.vfio_user.queue_walker import QueueWalker

#: Fused operations, and data pointers other than PRP entries.
UNKNOWN_FLAGS: Final = 0xC3


class IoCommands:
    """The commands for the namespaces of one controller, which has none before :meth:`begin`."""

    def __init__(self, devices: Sequence[ZonedDevice]) -> None:
        self.namespaces: Mapping[int, Namespace] = {}
        #: Injected faults, which may delay answers, so that commands go to the worker.
        self._faults = [device.faults for device in devices]
        self._plain: list[tuple[PlainCommands, Callable[[], bool]]] | None = None

    def begin(self, namespaces: Mapping[int, Namespace]) -> None:
        """Serve *namespaces*, numbered from 1 on; none: the guest has reset the controller."""
        self.namespaces = namespaces
        self._plain = []
        for namespace in namespaces.values():
            commands = compiled_commands(namespace.port, run_sectors_max=MDTS_BYTES >> SECTOR_SHIFT)
            if commands is None:
                self._plain = None
                return
            self._plain.append((commands, namespace.caches_plain_writes))

    def new_walker(
        self, queue: SubmissionQueue, memory: GuestMemory, record_memory: memoryview
    ) -> "QueueWalker | None":
        """Return a walker of *queue*, which is placed in *memory*; None where all commands are Python's."""
        if self._plain is None or not is_usable("zonefs_emu.vfio_user.queue_walker"):
            return None
        from zonefs_emu.vfio_user.queue_walker import QueueWalker  # noqa: PLC0415  (optional)

        return QueueWalker(queue=queue, record_memory=record_memory, memory=memory, commands=self._plain)

    def begin_command(
        self, ring: HoldingRecord, command: Command, memory: GuestMemory, answers: HeldAnswers | None
    ) -> tuple[Callable[[], Answer], bool]:
        """Check *command*; return what carries it out, and whether that may wait for the host's disk or take long.

        *ring* and *answers*: of its queue.

        Raises:
            RefusedError: the command has flags of a fused operation or of another data pointer than PRP entries, names
                no namespace, or is one that :meth:`Namespace.transfer` or :func:`page_list.slices` refuses.
        """
        if command.flags & UNKNOWN_FLAGS:
            raise RefusedError(NvmeRule.NVME_FIELD, f"flags {command.flags:02X}h")
        namespace = self.namespaces.get(command.nsid)
        if namespace is None:
            if command.opcode != IoOpcode.FLUSH or command.nsid != ALL_NAMESPACES:
                raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {command.nsid:X}h")
            return partial(flush_all, self.namespaces, command), True
        nr_bytes, _ = namespace.transfer(command)
        buffers = slices(memory, command.prp1, command.prp2, nr_bytes)
        if answers is not None:
            ring.make_way()
        ring.start_request(0, ())
        may_wait = any(self._faults) or namespace.may_wait(command)
        return partial(_execute_logged, ring, namespace, command, buffers, answers), may_wait


def _execute_logged(
    ring: HoldingRecord,
    namespace: Namespace,
    command: Command,
    buffers: Sequence[memoryview],
    answers: HeldAnswers | None,
) -> Answer:
    """Carry *command* out on this thread, with its intents in *ring*."""
    intents = namespace.port.intents
    assert intents is not None
    intents.current.log = ring
    if answers is not None:
        return answers.carry_out(namespace.port, partial(namespace.execute, command, buffers))
    return namespace.execute(command, buffers)
