"""The NVMe controller behind the registers of the PCI function.

One thread calls all methods but :meth:`PciDrive.wake`. It carries out the commands of each submission queue in order. A
command that may wait for the host's disk goes to a worker, and its queue rests until the command is back. If a drive
takes the time of a real one, answers are held (:mod:`held_answers`).

A queue that the guest has broken (a doorbell beyond its end, memory that is gone) makes the controller fatal
(CSTS.CFS), and the guest must reset it. A wrong command affects itself only.

The record (:mod:`drive_record`) has everything that a drive of another process needs to continue, before the guest sees
its effect. A command is answered in the following order, and a kill may come between any two steps:

1. An I/O command is carried out, with its intent in the record of its queue. If answers are held, the record then has
   its answer, and it counts as carried out. An admin command is carried out, and its resulting state is saved together
   with its completion. Nothing else of an admin command outlives this process.
2. Its completion is stored in guest memory.
3. The head of its queue is noted, and then the tail of the completion queue.

After a kill, a command without a completion is carried out again unless the record of its queue says that it was done.
An answer that was held is given at once, and an admin command whose state was saved is answered without being carried
out again.

Source: NVM Express over PCIe Transport Specification 1.0, "Controller Registers"; NVM Express Base Specification 2.0,
"Memory-based Transport Queue Model".
"""

import logging
import os
import time
from collections.abc import Container, Iterable
from functools import partial
from typing import Final

from zonefs_emu.device.buffers import scatter
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.device.waker import Waker
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import ENTRY_BYTES, AdminOpcode, Command, parse
from zonefs_emu.nvme.controller import FIRMWARE, Controller, Feature, Register
from zonefs_emu.nvme.identify import MDTS_BYTES, ControllerIdentity
from zonefs_emu.nvme.namespace import refuse_command
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.polling import AdaptivePolling
from zonefs_emu.vfio_user.begun_commands import BegunCommands
from zonefs_emu.vfio_user.drive_memory import CC_WORD, ENABLE, DriveMemory
from zonefs_emu.vfio_user.drive_queues import CompletionQueue, SubmissionQueue
from zonefs_emu.vfio_user.drive_record import Completion, DriveRecord, DriveState, identity_of
from zonefs_emu.vfio_user.guest_memory_map import GuestMemoryMap
from zonefs_emu.vfio_user.held_answers import hold_answers
from zonefs_emu.vfio_user.interrupts import Interrupts
from zonefs_emu.vfio_user.io_commands import UNKNOWN_FLAGS, IoCommands
from zonefs_emu.vfio_user.page_list import PAGE_BYTES, slices
from zonefs_emu.vfio_user.pci_function import DmaRegion
from zonefs_emu.vfio_user.queue_set import QueueSet
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
_PAGE_SIZE_MASK: Final = 0xF << 7
_ARBITRATION_MASK: Final = 0x7 << 11
_FATAL: Final = 2
#: Commands of a queue that are carried out before another queue is served and interrupts are sent.
_BATCH: Final = 32
#: The caller gets control back after this time, even if queues are never empty.
_SERVE_NS_MAX: Final = 20_000_000
#: The longest look at shadow doorbells before a sleep, which costs the guest a doorbell and the drive a wake-up. From
#: an answer to the next command it takes 20 µs where the guest's processors are real, and 300 to 600 µs where they are
#: emulated. With 300 µs, writes of emulated guests were a tenth to a fifth slower.
_LOOK_NS_MAX: Final = 1_000_000


class PciDrive:
    """One controller of *subsystem* behind *memory*, for one guest."""

    def __init__(
        self, subsystem: Subsystem, memory: DriveMemory, record: DriveRecord, unforeseen: UnforeseenErrors
    ) -> None:
        """Continue from the state in *record*; if that is new, begin with a controller that is not enabled.

        The caller maps the memory of the guest, and then calls :meth:`start`.

        Raises:
            RuntimeError: the subsystem has no number left for a controller.
            UsageError: *record* is of another drive.
        """
        state = record.load()
        uuids = (device.uuid for device in subsystem.devices.values())
        self._identity = identity_of(subsystem.nqn, subsystem.serial, uuids)
        if state is not None and state["identity"] != self._identity:
            theirs = state["identity"]
            message = (
                f"a guest waits for the drive {theirs['serial']} ({theirs['nqn']}), of other images, another name or "
                "another version of zonefs_emu: serve that one again, or end the guest first"
            )
            raise UsageError(message, exit_code=1)
        self._subsystem = subsystem
        self._bar = memory
        self._record = record
        self._state = state
        self._is_started = False
        self._unforeseen = unforeseen
        self._log = LimitedLog(logging.getLogger(__name__))
        self._fence = make_fence()
        self._waker = Waker()
        self._map = GuestMemoryMap()
        self.interrupts = Interrupts(memory)
        self.nr_commands = 0
        #: How long :meth:`serve` looks for commands before it returns; its caller says how long it then slept.
        self.polling = AdaptivePolling(
            max_ns=_LOOK_NS_MAX, soon_ns=_LOOK_NS_MAX, nr_processors=len(os.sched_getaffinity(0))
        )
        devices = list(subsystem.devices.values())
        self._worker: Worker[Answer] = Worker("nvme-worker", devices[0].sleep_ns)
        is_timed = any(device.timing is not None for device in devices)
        hold = partial(hold_answers, is_timed=is_timed, has_room=self._has_room, wake=self.wake)
        self._queues = QueueSet(memory, record, self._map, hold)
        self._sqs = self._queues.sqs
        self._cqs = self._queues.cqs
        self._io = IoCommands(devices)
        self._begun = BegunCommands()
        #: The last completion of the admin queue, which may not be posted yet.
        self._completion: Completion | None = None
        self._nr_resets = memory.nr_resets
        self._cc = 0
        self._is_fatal = False
        cntlid = subsystem.take_cntlid(state["cntlid"] if state is not None else 0)
        if cntlid is None:
            raise RuntimeError("the subsystem has no number left for a controller")
        identity = ControllerIdentity(
            serial=subsystem.serial, firmware=FIRMWARE, nqn=subsystem.nqn, cntlid=cntlid, max_nsid=len(devices)
        )
        self.controller = Controller(
            subsystem,
            identity,
            admin=ADMIN_COMMANDS,
            transport_handlers={
                AdminOpcode.CREATE_CQ: lambda command, _: self._queues.create_cq(command, self._nr_granted),
                AdminOpcode.CREATE_SQ: self._create_sq,
                AdminOpcode.DELETE_CQ: lambda command, _: self._queues.delete_cq(command),
                AdminOpcode.DELETE_SQ: self._delete_sq,
                AdminOpcode.DOORBELL_BUFFER: lambda command, _: self._queues.set_shadow(command),
            },
        )
        self.controller.wake = self.wake
        self.controller.on_disabled = self._drop_queues
        if state is not None:
            self._load(state)
        else:
            self._save()
        self._show_registers()

    def _load(self, state: DriveState) -> None:
        """Take over the settings of a guest, without the parts that need its memory."""
        self.controller.restore(state["controller"])
        self._nr_resets, self._cc, self._is_fatal = state["nr_resets"], state["cc"], state["is_fatal"]
        self._completion = state["completion"]
        self._queues.load(state)
        if state["sqs"]:
            self._make_namespaces()
            self._begun.watch(self._io.namespaces)

    def _save(self) -> None:
        """Save the present state, for a drive that takes over."""
        self._record.save({
            "identity": self._identity,
            "cntlid": self.controller.identity.cntlid,
            "controller": self.controller.state(),
            "nr_resets": self._nr_resets,
            "cc": self._cc,
            "is_fatal": self._is_fatal,
            **self._queues.state(),
            "completion": self._completion,
        })  # fmt: skip

    def start(self) -> None:
        """Begin or continue to serve, after the guest's memory was mapped."""
        self._is_started = True
        # A guest that has reset the controller meanwhile may use the memory of its queues for something else. It must
        # not see that the controller was ready: it would ring doorbells, and those of its new queues must begin at
        # zero.
        if self._bar.nr_resets != self._nr_resets:
            self._reset_controller()
        self._place_queues()
        state, self._state = self._state, None
        if state is None or self._is_fatal:
            self._begun.end()
            return
        self._queues.recover(state["admin_head"])
        self._begun.begin(self._sqs.values())
        for completions in self._cqs.values():
            completions.is_unannounced = True  # an extra interrupt does no harm
            self._update_head(completions)
        last = state["completion"]
        if last is not None and 0 in self._cqs and self._cqs[0].word == last["tail"]:
            self._post_admin(last)

    def close(self) -> None:
        """End the controller and unmap the guest's memory."""
        self.controller.close()
        if not self._is_fatal:
            self._queues.give_all(self.interrupts)
        self._drop_queues()
        self._map.close()
        self._worker.close()
        self._subsystem.give_back_cntlid(self.controller.identity.cntlid)
        self._waker.close()

    # -- from any thread ------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make :attr:`wake_fds` readable, so that the thread calls :meth:`serve`."""
        self._waker.wake()

    @property
    def wake_fds(self) -> tuple[int, int]:
        """Descriptors that are readable when :meth:`serve` is to be called, with them in *ready*."""
        return self._waker.fd, self._worker.wake_fd

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
        self.interrupts.set(fds)

    def reset(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        self._bar.clear()
        self._reset_controller()

    def _reset_controller(self) -> None:
        # Read before the reset is carried out, so that a reset that comes meanwhile counts as another one.
        self._nr_resets = self._bar.nr_resets
        self._cc = 0
        self._is_fatal = False
        self.interrupts.reset()
        self.controller.reset()
        self._save()
        self._show_registers()

    def kick(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`: the caller serves after each round of messages."""

    # -- registers ------------------------------------------------------------------------------------------------

    def _show_registers(self) -> None:
        """Store the registers that the guest reads."""
        words = self._bar.words
        for register in (Register.CAP, Register.VS, Register.CRTO):
            value = self.controller.read_register(register) or 0
            words[register >> 2] = value & 0xFFFFFFFF
            if register is Register.CAP:
                words[1] = value >> 32
        words[_CSTS] = self.controller.csts | (_FATAL if self._is_fatal else 0)

    def _look_at_registers(self) -> None:
        if self._bar.nr_resets != self._nr_resets:
            self._reset_controller()
        cc = self._bar.words[CC_WORD]
        if cc == self._cc:
            return
        was, self._cc = self._cc, cc
        if cc & ENABLE and not was & ENABLE:
            self._is_fatal = not self._begin(cc)
            if self._is_fatal:
                self._save()
                self._show_registers()
                return
        self.controller.write_register(Register.CC, cc)
        self._save()
        self._show_registers()

    def _begin(self, cc: int) -> bool:
        """Make the admin queues; return False if the guest requests a feature that the controller does not have."""
        asq, acq = self._bar.admin_queues
        if cc & (_PAGE_SIZE_MASK | _ARBITRATION_MASK) or (asq.base | acq.base) & (PAGE_BYTES - 1):
            return False
        if asq.size < 2 or acq.size < 2:
            return False
        try:
            self._queues.create_admin(asq.base, asq.size, acq.base, acq.size)
        except BadAddressError as error:
            self._log.info("the admin queues are not in memory: %s", error)
            return False
        self._completion = None
        self._make_namespaces()
        return True

    def _make_namespaces(self) -> None:
        namespaces = self.controller.namespaces_of_queue()
        for nsid, namespace in namespaces.items():
            port = namespace.port
            port.defer = self._worker.defer
            if isinstance(port, TimedPort):
                port.hold, port.defer = port.held.hold, port.held.delay
            namespace.port.intents = self._begun.intents(nsid)
        self._io.begin(namespaces)

    def _fail(self, why: str) -> None:
        """Make the controller fatal, so that the guest must reset it."""
        if not self._is_fatal:
            self._log.info("the guest has to reset the controller: %s", why)
            self._is_fatal = True
            self._save()
            self._show_registers()

    # -- queues as a whole ----------------------------------------------------------------------------------------

    def _place_queues(self) -> None:
        """Map the memory of all queues again after the guest's memory has changed."""
        if not self._is_started:
            return
        try:
            self._queues.place()
        except BadAddressError as error:
            self._fail(f"a queue has lost its memory: {error}")
            return
        for queue in self._sqs.values():
            self._have_walked(queue)

    def _have_walked(self, queue: SubmissionQueue) -> None:
        """Let a compiled walker take the plain commands of *queue*, which was just placed."""
        if queue.ring is not None:
            record_memory = self._record.ring_memory(queue.number, queue.size)
            queue.walker = self._io.new_walker(queue, self._map.memory, record_memory)

    def _drop_queues(self) -> None:
        """Drop all queues, because the guest has reset or shut down the controller."""
        self._wait_idle(self._sqs.values())
        self._queues.clear()
        self._begun.end()
        self._io.begin({})

    def _wait_idle(self, queues: Iterable[SubmissionQueue]) -> None:
        """Wait until the worker has no command of *queues*; one that takes too long is abandoned."""
        queues = list(queues)
        if not self._worker.wait(lambda: not any(queue.is_busy for queue in queues)):
            self._log.warning("queues are stopped while a command waits for the host's disk")
            for queue in queues:
                queue.is_over = True
                if queue.ring is not None and queue.is_busy:
                    queue.ring.leave()  # the next queue of this number uses the same memory

    # -- serving --------------------------------------------------------------------------------------------------

    def serve(self, ready: Container[int] = ()) -> bool:
        """Serve the queues for a limited time; True if commands are left. *ready*: descriptors that are readable."""
        for fd in self.wake_fds:
            if fd in ready:
                os.eventfd_read(fd)
        self._worker.collect()
        self._look_at_registers()
        self._post_events()
        end_ns = time.monotonic_ns() + _SERVE_NS_MAX
        is_busy = True
        while is_busy:
            is_busy = False
            for queue in tuple(self._sqs.values()):
                if not self._is_fatal and queue.give_due():
                    is_busy = True
                if self._run(queue):
                    is_busy = True
            self._queues.announce(self.interrupts)
            if is_busy and time.monotonic_ns() > end_ns:
                return True
            if not is_busy:
                is_busy = self._queues.look(self._can_take, self.polling) or self._ask_for_doorbells()
        return False

    def _update_head(self, queue: CompletionQueue) -> None:
        """Read the doorbell of *queue*: up to where the guest has taken completions."""
        head = self._queues.head(queue)
        if head >= queue.size:
            self._fail(f"head {head} of completion queue {queue.number}, which has {queue.size} entries")
        else:
            queue.head = head

    def _ask_for_doorbells(self) -> bool:
        """Request real doorbells of queues with shadow doorbells; True if a command came before the guest saw that."""
        if self._queues.shadow is None or self._is_fatal:
            return False
        self._queues.ask_for_doorbells()
        self._fence()
        return any(self._has_work(queue) for queue in self._sqs.values())

    def _has_work(self, queue: SubmissionQueue) -> bool:
        return queue.is_due or (self._queues.tail(queue) != queue.head and self._can_take(queue))

    def _can_take(self, queue: SubmissionQueue) -> bool:
        return not self._rests(queue) and self._has_room(queue.completions)

    def _has_room(self, queue: CompletionQueue) -> bool:
        if queue.is_full:
            self._update_head(queue)
        return not queue.is_full

    def _rests(self, queue: SubmissionQueue) -> bool:
        begun = self._begun.queues
        if begun and queue not in begun:
            return True
        return queue.is_full or queue.is_busy or queue.is_over or self._is_fatal or not self.controller.is_ready

    def _run(self, queue: SubmissionQueue) -> bool:
        """Carry out a batch of commands of *queue*; True if there were some."""
        if self._rests(queue):
            return False
        tail = self._queues.tail(queue)
        if tail == queue.head:
            return False
        if tail >= queue.size:
            self._fail(f"tail {tail} of submission queue {queue.number}, which has {queue.size} entries")
            return False
        completions = queue.completions
        execute = self._execute if queue.number else self._execute_admin
        begin, end = self.nr_commands, self.nr_commands + _BATCH
        while self.nr_commands < end:
            if completions.is_full and not self._has_room(completions):
                return self.nr_commands > begin
            met = self._walk(queue, tail, end - self.nr_commands)
            if queue.head == tail:
                break
            if completions.is_full or self.nr_commands == end:
                continue
            command = parse(queue.entries, queue.head * ENTRY_BYTES)
            self.nr_commands += 1
            try:  # the boundary of a command
                if met is not None:
                    raise met
                answer = execute(queue, command)
            except RefusedError as refused:
                answer = self._refuse(queue, command, refused)
            except Exception as error:
                self._unforeseen.contain("nvme", "a command", error)
                answer = self._noted(queue, command, Answer(NvmeStatus.INTERNAL_ERROR))
            if queue.is_busy:
                return True
            self._answer(queue, command, answer)
            if queue.head == tail or queue.is_over or self._begun.queues or queue.answers is not None:
                break  # serve() gives the held answers that are due between two commands
        return True

    def _walk(self, queue: SubmissionQueue, tail: int, nr_max: int) -> Exception | None:
        """Let the compiled walker take what is plain; return what the command at the head has met, if anything."""
        if queue.walker is None or queue.answers is not None or self._begun.queues:
            return None
        try:  # the boundary of a command
            self.nr_commands += queue.walker.take(tail, nr_max)
        except Exception as error:
            return error
        return None

    def _answer(self, queue: SubmissionQueue, command: Command, answer: Answer | None) -> None:
        """Note that *command* is carried out, and post its completion unless that comes later."""
        if queue.is_over:
            return
        head = queue.advance()
        completions, ring = queue.completions, queue.ring
        if ring is None:
            self._answer_admin(command, answer)
            return
        assert answer is not None, "I/O commands are answered at once"
        if queue.answers is not None:
            queue.answers.hold(command.cid, answer)
        else:
            completions.post(answer.result, head, queue.number, command.cid, answer.status_field)
            ring.finish_split(1)
            completions.note()
        if self._begun.queues:
            self._begun.note_answered(queue)

    def _answer_admin(self, command: Command, answer: Answer | None) -> None:
        if answer is None:
            self._save()  # an Asynchronous Event Request, which waits
            return
        self._save_completion(command.cid, answer)

    def _save_completion(self, cid: int, answer: Answer) -> None:
        """Post the completion *answer* of the admin queue, after the state that goes with it was saved."""
        self._completion = {
            "tail": self._cqs[0].word, "result": answer.result, "cid": cid, "status_field": answer.status_field
        }  # fmt: skip
        self._save()
        self._post_admin(self._completion)

    def _post_admin(self, completion: Completion) -> None:
        completions, head = self._cqs[0], self._sqs[0].head
        completions.post(completion["result"], head, 0, completion["cid"], completion["status_field"])
        completions.note()

    def _refuse(self, queue: SubmissionQueue, command: Command, refused: RefusedError) -> Answer:
        if not queue.number:
            return self.controller.refuse(command, refused)
        return self._noted(queue, command, refuse_command(self._io.namespaces, command, refused))

    def _noted(self, queue: SubmissionQueue, command: Command, answer: Answer) -> Answer:
        """Put a command that was refused or failed into the error log of the controller."""
        if answer.status:
            self.controller.note_error(queue.number, command, answer.status)
        return answer

    def _post_events(self) -> None:
        # The memory of a fatal controller's queues may be gone.
        queue = self._cqs.get(0)
        if queue is None or self._is_fatal or not self.controller.is_ready or not self._has_room(queue):
            return
        for cid, answer in self.controller.due_events():
            self._save_completion(cid, answer)

    # -- I/O commands ---------------------------------------------------------------------------------------------

    def _execute(self, queue: SubmissionQueue, command: Command) -> Answer | None:
        """Carry out an I/O command, or give it to the worker and mark *queue* as busy."""
        ring = queue.ring
        assert ring is not None
        job, may_wait = self._io.begin_command(ring, command, self._map.memory, queue.answers)
        if may_wait:
            queue.is_busy = True
            self._worker.submit(job, partial(self._take_back, queue, command, queue.head))
            return None
        return self._noted(queue, command, job())

    def _take_back(self, queue: SubmissionQueue, command: Command, head: int, result: Answer | Exception) -> None:
        queue.is_busy = False
        if isinstance(result, Exception):
            if queue.head != head:
                # The command was carried out, and its answer met the exception: the completion may be posted already,
                # so no other one can be. The exception costs the connection, as one of an answer in _run does.
                raise result
            self._unforeseen.contain("nvme", "a command", result)
            result = Answer(NvmeStatus.INTERNAL_ERROR)
        if not queue.is_over:
            self._answer(queue, command, self._noted(queue, command, result))

    # -- admin commands -------------------------------------------------------------------------------------------

    def _execute_admin(self, _queue: SubmissionQueue, command: Command) -> Answer | None:
        if command.flags & UNKNOWN_FLAGS:
            raise RefusedError(NvmeRule.NVME_FIELD, f"flags {command.flags:02X}h")
        nr_bytes, from_host = self.controller.data_length(command)
        if nr_bytes > MDTS_BYTES:
            return self.controller.execute(command)  # which refuses it
        buffers = slices(self._map.memory, command.prp1, command.prp2, nr_bytes)
        answer = self.controller.execute(command, b"".join(buffers) if from_host else b"")
        if answer is not None and answer.data:
            scatter(buffers, 0, answer.data)
        return answer

    @property
    def _nr_granted(self) -> int:
        return (self.controller.features[Feature.NR_QUEUES] & 0xFFFF) + 1

    def _create_sq(self, command: Command, _data: memoryview | bytes) -> Answer:
        queue = self._queues.create_sq(command, self._nr_granted)
        self._have_walked(queue)
        return SUCCESS

    def _delete_sq(self, command: Command, _data: memoryview | bytes) -> Answer:
        queue = self._queues.deletable_sq(command)
        self._wait_idle((queue,))
        queue.give_all()
        queue.is_over = True
        self._begun.note_answered(queue)
        del self._sqs[queue.number]
        return SUCCESS
