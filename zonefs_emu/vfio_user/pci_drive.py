"""The NVMe controller behind the registers of the PCI function.

One thread calls all methods but :meth:`PciDrive.wake`. It carries out the commands of each submission queue in their
order; what may wait for the host's disk goes to a worker, and its queue rests until it is back.

A queue that the guest has broken (a doorbell beyond its end, memory that is gone) makes the controller fatal
(CSTS.CFS): the guest has to reset it. A command costs itself only.

Source: NVM Express over PCIe Transport Specification 1.0, "Controller Registers"; NVM Express Base Specification 2.0,
"Memory-based Transport Queue Model".
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import ALL_NAMESPACES, ENTRY_BYTES, AdminOpcode, Command, IoOpcode, parse
from zonefs_emu.nvme.controller import FIRMWARE, QUEUE_ENTRIES_MAX, Controller, Feature, Register
from zonefs_emu.nvme.identify import MDTS_BYTES, ControllerIdentity
from zonefs_emu.nvme.namespace import Namespace
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.drive_memory import CC_WORD, ENABLE, DriveMemory
from zonefs_emu.vfio_user.drive_queues import CompletionQueue, ShadowDoorbells, SubmissionQueue
from zonefs_emu.vfio_user.guest_memory_map import GuestMemoryMap
from zonefs_emu.vfio_user.page_list import PAGE_BYTES, slices
from zonefs_emu.vfio_user.pci_config import NR_VECTORS
from zonefs_emu.vfio_user.pci_function import DmaRegion
from zonefs_emu.virtio.memory import BadAddressError
from zonefs_emu.virtqueue.atomic import make_fence
from zonefs_emu.virtqueue.worker import Worker

ADMIN_COMMANDS: Final = (
    AdminOpcode.DELETE_SQ,
    AdminOpcode.CREATE_SQ,
    AdminOpcode.GET_LOG_PAGE,
    AdminOpcode.DELETE_CQ,
    AdminOpcode.CREATE_CQ,
    AdminOpcode.IDENTIFY,
    AdminOpcode.ABORT,
    AdminOpcode.SET_FEATURES,
    AdminOpcode.GET_FEATURES,
    AdminOpcode.ASYNC_EVENT,
    AdminOpcode.KEEP_ALIVE,
    AdminOpcode.DOORBELL_BUFFER,
)
#: Registers as words of 4 bytes.
_CSTS: Final = Register.CSTS >> 2
_AQA: Final = 0x24 >> 2
_ASQ: Final = 0x28 >> 3
_ACQ: Final = 0x30 >> 3
_PAGE_SIZE_MASK: Final = 0xF << 7
_ARBITRATION_MASK: Final = 0x7 << 11
_FATAL: Final = 2
_ADMIN_ENTRIES_MAX: Final = 4096
#: Fused operations, and data pointers other than PRP entries.
_UNKNOWN_FLAGS: Final = 0xC3
_CONTIGUOUS: Final = 1
_INTERRUPTS: Final = 2
#: Commands of a queue that are carried out before another queue has its turn, and interrupts are sent.
_BATCH: Final = 32
#: The caller gets control back after this time, even if queues are never empty.
_SERVE_NS_MAX: Final = 20_000_000
#: In the event index of a completion queue's head: the guest need not ring while the head moves up to the queue's end.
_NEVER: Final = 0xFFFF


class PciDrive:
    """One controller of *subsystem* behind *memory*, for one guest."""

    def __init__(self, subsystem: Subsystem, memory: DriveMemory, unforeseen: UnforeseenErrors) -> None:
        """Begin with a controller that is not enabled.

        Raises:
            RuntimeError: the subsystem has no number left for a controller.
        """
        self._subsystem = subsystem
        self._bar = memory
        self._unforeseen = unforeseen
        self._log = LimitedLog(logging.getLogger(__name__))
        self._fence = make_fence()
        self._wakes = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_closed = False
        self._map = GuestMemoryMap()
        self._interrupts: Sequence[int] = [-1] * NR_VECTORS
        #: Vectors that were to be signalled while they had no eventfd.
        self._latched: set[int] = set()
        self.nr_commands = 0
        devices = list(subsystem.devices.values())
        first: ZonedDevice = devices[0]
        self._faults = [device.faults for device in devices]
        self._worker: Worker[Answer] = Worker("nvme-worker", first.sleep_ns)
        self._sqs: dict[int, SubmissionQueue] = {}
        self._cqs: dict[int, CompletionQueue] = {}
        self._namespaces: dict[int, Namespace] = {}
        self._shadow: ShadowDoorbells | None = None
        self._nr_resets = memory.nr_resets
        self._cc = 0
        self._is_fatal = False
        self._cntlid = subsystem.take_cntlid()
        if self._cntlid is None:
            raise RuntimeError("the subsystem has no number left for a controller")
        identity = ControllerIdentity(
            serial=subsystem.serial, firmware=FIRMWARE, nqn=subsystem.nqn, cntlid=self._cntlid, max_nsid=len(devices)
        )
        self.controller = Controller(
            subsystem,
            identity,
            admin=ADMIN_COMMANDS,
            transport_handlers={
                AdminOpcode.CREATE_CQ: self._create_cq,
                AdminOpcode.CREATE_SQ: self._create_sq,
                AdminOpcode.DELETE_CQ: self._delete_cq,
                AdminOpcode.DELETE_SQ: self._delete_sq,
                AdminOpcode.DOORBELL_BUFFER: self._set_shadow,
            },
        )
        self.controller.wake = self.wake
        self.controller.on_disabled = self._drop_queues
        self._show_registers()

    def close(self) -> None:
        """End the controller and unmap the guest's memory."""
        self.controller.close()
        self._drop_queues()
        self._map.close()
        self._worker.close()
        if self._cntlid is not None:
            self._subsystem.give_back_cntlid(self._cntlid)
        self._is_closed = True
        os.close(self._wakes)

    # -- from any thread ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the thread call :meth:`serve`: :attr:`wake_fds` become readable."""
        if not self._is_closed:
            os.eventfd_write(self._wakes, 1)

    @property
    def wake_fds(self) -> tuple[int, int]:
        """Descriptors that are readable when :meth:`serve` is to be called."""
        return self._wakes, self._worker.wake_fd

    @property
    def has_lost_memory(self) -> bool:
        """Whether the guest has truncated a file that its memory is in."""
        return self._map.shared.is_lost

    # -- the function's drive -------------------------------------------------------------------------------------

    def map_memory(self, region: DmaRegion) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        self._map.map(region)
        self._place_queues()

    def unmap_memory(self, region: DmaRegion) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        self._wait_idle(self._sqs.values())
        self._map.unmap(region)
        self._place_queues()

    def set_interrupts(self, fds: list[int]) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        self._interrupts = fds
        for vector in [vector for vector in self._latched if fds[vector] >= 0]:
            self._latched.discard(vector)
            self._signal(vector)

    def reset(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        # Read before the reset is carried out: a reset that comes meanwhile counts as a further one.
        self._nr_resets = self._bar.nr_resets
        self._cc = 0
        self._is_fatal = False
        self._latched.clear()
        self.controller.reset()
        self._show_registers()

    def kick(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`: the caller serves after each round of messages."""

    # -- registers ------------------------------------------------------------------------------------------------

    def _show_registers(self) -> None:
        """Store what the guest reads."""
        words = self._bar.words
        for register in (Register.CAP, Register.VS, Register.CRTO):
            value = self.controller.read_register(register) or 0
            words[register >> 2] = value & 0xFFFFFFFF
            if register is Register.CAP:
                words[1] = value >> 32
        words[_CSTS] = self.controller.csts | (_FATAL if self._is_fatal else 0)

    def _look_at_registers(self) -> None:
        if self._bar.nr_resets != self._nr_resets:
            self.reset()
        cc = self._bar.words[CC_WORD]
        if cc == self._cc:
            return
        was, self._cc = self._cc, cc
        if cc & ENABLE and not was & ENABLE:
            self._is_fatal = not self._begin(cc)
            if self._is_fatal:
                self._show_registers()
                return
        self.controller.write_register(Register.CC, cc)
        self._show_registers()

    def _begin(self, cc: int) -> bool:
        """Make the admin queues; False if the guest asks for a feature that the controller does not have."""
        if cc & (_PAGE_SIZE_MASK | _ARBITRATION_MASK):
            return False
        aqa = self._bar.words[_AQA]
        sq_size, cq_size = (aqa & 0xFFF) + 1, (aqa >> 16 & 0xFFF) + 1
        asq, acq = self._bar.wide_words[_ASQ], self._bar.wide_words[_ACQ]
        if not all(1 < size <= _ADMIN_ENTRIES_MAX for size in (sq_size, cq_size)) or (asq | acq) & (PAGE_BYTES - 1):
            return False
        self._clear_doorbells(range(2))
        completions = CompletionQueue(0, acq, cq_size, 0)
        submissions = SubmissionQueue(0, asq, sq_size, completions)
        try:
            completions.place(self._map.memory)
            submissions.place(self._map.memory)
        except BadAddressError as error:
            self._log.info("the admin queues are not in memory: %s", error)
            return False
        self._cqs[0], self._sqs[0] = completions, submissions
        self._namespaces = self.controller.namespaces_of_queue()
        for namespace in self._namespaces.values():
            namespace.port.defer = self._worker.defer
        return True

    def _clear_doorbells(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._bar.doorbells[index] = 0

    def _fail(self, why: str) -> None:
        """Make the controller fatal: the guest has to reset it."""
        if not self._is_fatal:
            self._log.info("the guest has to reset the controller: %s", why)
            self._is_fatal = True
            self._show_registers()

    # -- queues as a whole ----------------------------------------------------------------------------------------

    def _place_queues(self) -> None:
        """Look up the memory of all queues after the guest's memory has changed."""
        memory = self._map.memory
        try:
            for completions in self._cqs.values():
                completions.place(memory)
            for queue in self._sqs.values():
                queue.place(memory)
            if self._shadow is not None:
                self._shadow.place(memory, PAGE_BYTES)
        except BadAddressError as error:
            self._fail(f"a queue has lost its memory: {error}")

    def _drop_queues(self) -> None:
        """Forget all queues: the guest has reset or shut down the controller."""
        self._wait_idle(self._sqs.values())
        self._sqs.clear()
        self._cqs.clear()
        self._namespaces = {}
        self._shadow = None

    def _wait_idle(self, queues: Iterable[SubmissionQueue]) -> None:
        """Wait until the worker has no command of *queues*; one that takes too long is abandoned."""
        queues = list(queues)
        if not self._worker.wait(lambda: not any(queue.is_busy for queue in queues)):
            self._log.warning("queues are stopped while the host's disk keeps a command")
            for queue in queues:
                queue.is_over = True

    # -- serving --------------------------------------------------------------------------------------------------

    def serve(self) -> bool:
        """Serve the queues for a limited time; True if commands are left."""
        self._drain()
        self._look_at_registers()
        self._post_events()
        end_ns = time.monotonic_ns() + _SERVE_NS_MAX
        is_busy = True
        while is_busy:
            is_busy = False
            for queue in tuple(self._sqs.values()):
                if self._run(queue):
                    is_busy = True
            self._announce()
            if is_busy and time.monotonic_ns() > end_ns:
                return True
            if not is_busy:
                is_busy = self._ask_for_doorbells()
        return False

    def _drain(self) -> None:
        for fd in self.wake_fds:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                continue
        self._worker.collect()

    def _tail(self, queue: SubmissionQueue) -> int:
        if self._shadow is not None and queue.number:
            return self._shadow.doorbells[2 * queue.number]
        return self._bar.doorbells[2 * queue.number]

    def _update_head(self, queue: CompletionQueue) -> None:
        """Read the doorbell of *queue*: up to where the guest has taken completions."""
        at = 2 * queue.number + 1
        shadow = self._shadow if queue.number else None
        head = self._bar.doorbells[at] if shadow is None else shadow.doorbells[at]
        if head >= queue.size:
            self._fail(f"head {head} of completion queue {queue.number}, which has {queue.size} entries")
        else:
            queue.head = head

    def _ask_for_doorbells(self) -> bool:
        """Ask for doorbells of queues with shadow doorbells; True if a command came before the guest could see that."""
        shadow = self._shadow
        if shadow is None:
            return False
        for queue in self._sqs.values():
            if queue.number and not queue.is_busy:
                shadow.event_index[2 * queue.number] = queue.head
                completions = queue.completions
                if completions.is_full:
                    shadow.event_index[2 * completions.number + 1] = completions.head
        self._fence()
        return any(self._has_work(queue) for queue in self._sqs.values())

    def _has_work(self, queue: SubmissionQueue) -> bool:
        if self._rests(queue) or self._tail(queue) == queue.head:
            return False
        self._update_head(queue.completions)
        return not queue.completions.is_full

    def _rests(self, queue: SubmissionQueue) -> bool:
        return queue.is_busy or queue.is_over or self._is_fatal or not self.controller.is_ready

    def _run(self, queue: SubmissionQueue) -> bool:
        """Carry out a batch of commands of *queue*; True if there were some."""
        if self._rests(queue):
            return False
        tail = self._tail(queue)
        if tail == queue.head:
            return False
        if tail >= queue.size:
            self._fail(f"tail {tail} of submission queue {queue.number}, which has {queue.size} entries")
            return False
        completions = queue.completions
        execute = self._execute if queue.number else self._execute_admin
        for count in range(_BATCH):
            if completions.is_full:
                self._update_head(completions)
                if completions.is_full:
                    return count > 0
            command = parse(queue.entries, queue.head * ENTRY_BYTES)
            self.nr_commands += 1
            try:  # the boundary of a command
                answer = execute(queue, command)
            except RefusedError as refused:
                answer = self._refuse(queue, command, refused)
            except Exception as error:
                self._unforeseen.contain("nvme", "a command", error)
                answer = Answer(NvmeStatus.INTERNAL_ERROR)
            if queue.is_busy:
                return True
            self._answer(queue, command, answer)
            if queue.head == tail or queue.is_over:
                break
        return True

    def _answer(self, queue: SubmissionQueue, command: Command, answer: Answer | None) -> None:
        """Note that *command* is done, and post its completion unless that comes later."""
        if queue.is_over:
            return
        head = queue.advance()
        if answer is not None:
            queue.completions.post(answer.result, head, queue.number, command.cid, answer.status_field)

    def _refuse(self, queue: SubmissionQueue, command: Command, refused: RefusedError) -> Answer:
        if not queue.number:
            return self.controller.refuse(command, refused)
        namespace = self._namespaces.get(command.nsid) or next(iter(self._namespaces.values()))
        return self._noted(queue, command, namespace.refuse(command, refused))

    def _noted(self, queue: SubmissionQueue, command: Command, answer: Answer) -> Answer:
        """Put a refused I/O command into the error log of the controller."""
        if answer.status:
            self.controller.note_error(queue.number, command, answer.status)
        return answer

    # -- interrupts -----------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Signal the interrupts of the completions that were stored: one for all of a queue."""
        for queue in self._cqs.values():
            if queue.is_unannounced:
                queue.is_unannounced = False
                if queue.vector >= 0:
                    self._signal(queue.vector)

    def _signal(self, vector: int) -> None:
        fd = self._interrupts[vector]
        if fd < 0:
            # The client sets vectors one by one and removes all before each, so an interrupt in between is kept.
            self._latched.add(vector)
            return
        try:
            os.eventfd_write(fd, 1)
        except OSError as error:
            self._log.info("interrupt %d cannot be signalled: %s", vector, error)

    def _post_events(self) -> None:
        queue = self._sqs.get(0)
        if queue is None or not self.controller.is_ready:
            return
        for cid, answer in self.controller.due_events():
            queue.completions.post(answer.result, queue.head, 0, cid, answer.status_field)

    # -- I/O commands ---------------------------------------------------------------------------------------------

    def _execute(self, queue: SubmissionQueue, command: Command) -> Answer | None:
        """Carry out an I/O command, or give it to the worker, in which case *queue* is busy."""
        if command.flags & _UNKNOWN_FLAGS:
            raise RefusedError(NvmeRule.NVME_FIELD, f"flags {command.flags:02X}h")
        namespace = self._namespaces.get(command.nsid)
        if namespace is None:
            if command.opcode != IoOpcode.FLUSH or command.nsid != ALL_NAMESPACES:
                raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {command.nsid:X}h")
            self._hand_over(queue, command, partial(self._flush_all, command))
            return None
        nr_bytes, _ = namespace.transfer(command)
        buffers = slices(self._map.memory, command.prp1, command.prp2, nr_bytes)
        # An injected fault may be a delay, which is for the worker.
        if any(self._faults) or namespace.may_wait(command):
            self._hand_over(queue, command, partial(namespace.execute, command, buffers))
            return None
        answer = namespace.execute(command, buffers)
        return self._noted(queue, command, answer) if answer.status else answer

    def _flush_all(self, command: Command) -> Answer:
        for namespace in self._namespaces.values():
            answer = namespace.execute(command, ())
            if answer.status:
                return answer
        return SUCCESS

    def _hand_over(self, queue: SubmissionQueue, command: Command, job: Callable[[], Answer]) -> None:
        queue.is_busy = True
        self._worker.submit(job, partial(self._take_back, queue, command))

    def _take_back(self, queue: SubmissionQueue, command: Command, result: Answer | Exception) -> None:
        queue.is_busy = False
        if isinstance(result, Exception):
            self._unforeseen.contain("nvme", "a command", result)
            result = Answer(NvmeStatus.INTERNAL_ERROR)
        if not queue.is_over:
            self._answer(queue, command, self._noted(queue, command, result))

    # -- admin commands -------------------------------------------------------------------------------------------

    def _execute_admin(self, _queue: SubmissionQueue, command: Command) -> Answer | None:
        if command.flags & _UNKNOWN_FLAGS:
            raise RefusedError(NvmeRule.NVME_FIELD, f"flags {command.flags:02X}h")
        nr_bytes, from_host = self.controller.data_length(command)
        if nr_bytes > MDTS_BYTES:
            return self.controller.execute(command)  # which refuses it
        buffers = slices(self._map.memory, command.prp1, command.prp2, nr_bytes)
        answer = self.controller.execute(command, b"".join(buffers) if from_host else b"")
        if answer is not None and answer.data:
            data, at = memoryview(answer.data), 0
            for buffer in buffers:
                part = data[at : at + len(buffer)]
                buffer[: len(part)] = part
                at += len(part)
        return answer

    def _create_cq(self, command: Command, _data: memoryview | bytes) -> Answer:
        number, size = self._checked_queue(command, self._cqs)
        vector = command.cdw11 >> 16 if command.cdw11 & _INTERRUPTS else -1
        if vector >= NR_VECTORS:
            raise RefusedError(NvmeRule.NVME_VECTOR, f"interrupt vector {vector}")
        queue = CompletionQueue(number, command.prp1, size, vector)
        self._place(queue)
        self._cqs[number] = queue
        self._start_doorbell(2 * number + 1, _NEVER)
        return SUCCESS

    def _create_sq(self, command: Command, _data: memoryview | bytes) -> Answer:
        number, size = self._checked_queue(command, self._sqs)
        completions = self._cqs.get(command.cdw11 >> 16)
        if completions is None or not completions.number:
            raise RefusedError(NvmeRule.NVME_COMPLETION_QUEUE, f"completion queue {command.cdw11 >> 16}")
        queue = SubmissionQueue(number, command.prp1, size, completions)
        self._place(queue)
        self._sqs[number] = queue
        self._start_doorbell(2 * number, 0)
        return SUCCESS

    def _checked_queue(
        self, command: Command, queues: dict[int, SubmissionQueue] | dict[int, CompletionQueue]
    ) -> tuple[int, int]:
        """Return number and size of the queue that *command* creates."""
        number, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
        granted = (self.controller.features[Feature.NR_QUEUES] & 0xFFFF) + 1
        if not 0 < number <= granted or number in queues:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"queue {number}")
        if not 1 < size <= QUEUE_ENTRIES_MAX + 1:
            raise RefusedError(NvmeRule.NVME_QUEUE_SIZE, f"queue {number} of {size} entries")
        if not command.cdw11 & _CONTIGUOUS:
            raise RefusedError(NvmeRule.NVME_FIELD, f"queue {number}, which is not contiguous")
        if command.prp1 & (PAGE_BYTES - 1):
            raise RefusedError(NvmeRule.NVME_PRP, f"queue {number} at {command.prp1:#x}")
        return number, size

    def _place(self, queue: CompletionQueue | SubmissionQueue) -> None:
        try:
            queue.place(self._map.memory)
        except BadAddressError as error:
            raise RefusedError(NvmeRule.NVME_MEMORY, str(error)) from None

    def _start_doorbell(self, index: int, event_index: int) -> None:
        self._bar.doorbells[index] = 0
        if self._shadow is not None:
            self._shadow.doorbells[index] = 0
            self._shadow.event_index[index] = event_index

    def _delete_sq(self, command: Command, _data: memoryview | bytes) -> Answer:
        number = command.cdw10 & 0xFFFF
        queue = self._sqs.get(number) if number else None
        if queue is None:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"submission queue {number}")
        self._wait_idle((queue,))
        queue.is_over = True
        del self._sqs[number]
        return SUCCESS

    def _delete_cq(self, command: Command, _data: memoryview | bytes) -> Answer:
        number = command.cdw10 & 0xFFFF
        queue = self._cqs.get(number) if number else None
        if queue is None:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, f"completion queue {number}")
        if any(user.completions is queue for user in self._sqs.values()):
            raise RefusedError(NvmeRule.NVME_QUEUE_DELETION, f"completion queue {number}, which is used")
        del self._cqs[number]
        return SUCCESS

    def _set_shadow(self, command: Command, _data: memoryview | bytes) -> Answer:
        """Use shadow doorbells for I/O queues from now on; they begin with what the real ones say."""
        if (command.prp1 | command.prp2) & (PAGE_BYTES - 1):
            raise RefusedError(NvmeRule.NVME_PRP, f"shadow doorbells at {command.prp1:#x} and {command.prp2:#x}")
        shadow = ShadowDoorbells(command.prp1, command.prp2)
        try:
            shadow.place(self._map.memory, PAGE_BYTES)
        except BadAddressError as error:
            raise RefusedError(NvmeRule.NVME_MEMORY, str(error)) from None
        for number in self._sqs.keys() - {0}:
            shadow.doorbells[2 * number] = self._bar.doorbells[2 * number]
            shadow.event_index[2 * number] = self._bar.doorbells[2 * number]
        for number in self._cqs.keys() - {0}:
            shadow.doorbells[2 * number + 1] = self._bar.doorbells[2 * number + 1]
            shadow.event_index[2 * number + 1] = _NEVER
        self._shadow = shadow
        return SUCCESS
