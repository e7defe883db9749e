"""One queue of a ublk device: a thread that executes the kernel's requests as commands of a port.

May not know: how devices are made.

Invariants: one thread submits everything of a queue, because the kernel's driver requires that. It carries out one
request after the other, or a run of plain ones (tag_walker.pyx), so it needs one buffer. Requests that may wait for the
host's disk go to a second thread with a buffer of its own, so they delay no others. A request is a boundary
(docs/errors.md) on either thread: an unforeseen exception is answered with an I/O error, and the queue continues.
"""

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from zonefs_emu.compiled_modules import is_usable
from zonefs_emu.device.compiled_commands import compiled_commands
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.device.waker import Waker
from zonefs_emu.errors import Status
from zonefs_emu.inflight.tag_record import FREE, TagIntentLog, TagRecord
from zonefs_emu.model.transitions import Operation
from zonefs_emu.polling import AdaptivePolling
from zonefs_emu.ublk.protocol import (
    BLK_ZONE_BYTES,
    COMMIT_AND_FETCH_REQ,
    FETCH_REQ,
    IO_CMD,
    IO_DESC,
    IO_RES_ABORT,
    MAX_QUEUE_DEPTH,
    RESULTS,
    Request,
    buffer_offset,
    encode_zones,
)
from zonefs_emu.ublk.rules import UblkRule
from zonefs_emu.ublk.uring import COMMAND_OFFSET, OP_POLL_ADD, OP_URING_CMD, POLLIN, SQE_BYTES, Ring
from zonefs_emu.units import SECTOR_SHIFT

if TYPE_CHECKING:
    from zonefs_emu.ublk.tag_walker import TagWalker

MAX_IO_BYTES: Final = 1 << 20
_ZONES_MAX: Final = MAX_IO_BYTES // BLK_ZONE_BYTES
#: A report of more zones than these is made by the second thread.
_QUICK_ZONES: Final = 1024
#: The longest polling for the next request, and the longest sleep that counts as short.
_LOOK_NS_MAX: Final = 200_000
#: The longest time for which the end of a queue waits for a request that the host's disk blocks.
_END_S: Final = 2.0
_FUA: Final = 1 << 13
# Plain numbers, because comparing with a member of an enumeration costs a call.
_READ: Final = int(Request.READ)
_WRITE: Final = int(Request.WRITE)
_APPEND: Final = int(Request.ZONE_APPEND)
_RESULT_WORD: Final = (COMMAND_OFFSET + 4) // 4
_LANDED_WORD: Final = (COMMAND_OFFSET + 8) // 8
_MANAGEMENT: Final = {
    int(Request.ZONE_OPEN): Operation.OPEN,
    int(Request.ZONE_CLOSE): Operation.CLOSE,
    int(Request.ZONE_FINISH): Operation.FINISH,
    int(Request.ZONE_RESET): Operation.RESET,
}

log = logging.getLogger(__name__)


class Executor:
    """Carries out the requests of one thread, with a buffer and an intent log of its own."""

    def __init__(
        self, port: Port, intents: Intents, node_fd: int, record: TagRecord, *, queue_number: int, depth: int
    ) -> None:
        """Carry out requests of queue *queue_number*, with *depth* tags, of the character device open as *node_fd*.

        The intents of its requests are stored in *record*.
        """
        self._port = port
        self._intents = intents
        self._fd = node_fd
        self.buffer = memoryview(mmap.mmap(-1, MAX_IO_BYTES))
        self._parts: dict[int, tuple[memoryview]] = {}
        self._offsets = [buffer_offset(queue_number, tag) for tag in range(depth)]
        self._number_base = queue_number * depth
        self._intent_log = TagIntentLog(record, port)
        self._record = record
        #: The sector at which the data of the last append are.
        self.landed = 0

    def begin(self) -> None:
        """Make the calling thread the one that uses this executor."""
        self._intents.current.log = self._intent_log

    def execute(self, tag: int, op_flags: int, count: int, sector: int) -> int:
        """Carry out request *tag*, of *count* sectors or zones at *sector*; return its result.

        The result is a number of bytes, 0 for requests without data, or a negative errno. The sector of an append is
        then in *landed*.
        """
        operation = op_flags & 0xFF
        try:
            if operation == _READ:
                buffers = self._parts.get(count) or self._part(count)
                status = self._port.read(sector, count, buffers)
                return RESULTS[status] if status else os.pwrite(self._fd, buffers[0], self._offsets[tag])
            self._intent_log.number = self._number_base + tag
            if operation in (_WRITE, _APPEND):
                return self._write(tag, op_flags, count, sector)
            return self._manage(tag, operation, count, sector)
        except OSError as error:
            log.warning("ublk: the data of a request cannot be moved to or from the kernel: %s", error)
            self._no_data(operation, count, sector)
            return -(error.errno or errno.EIO)

    def contain(self, op_flags: int, count: int, sector: int, error: Exception) -> int:
        """Contain the unforeseen *error* of a request; return the request's result."""
        self.landed = 0
        request = _describe(op_flags & 0xFF, count, sector)
        return RESULTS[self._port.device.unforeseen.contain(self._port.name, request, error)]

    def _no_data(self, operation: int, count: int, sector: int) -> None:
        """Note that the kernel failed to move the data of a request."""
        request = _describe(operation, count, sector)
        self._port.refusals.refuse(UblkRule.UBLK_DATA, None, Status.IO_ERROR, request=request)

    def _part(self, count: int) -> tuple[memoryview]:
        part = self._parts[count] = (self.buffer[: count << SECTOR_SHIFT],)
        return part

    def _write(self, tag: int, op_flags: int, count: int, sector: int) -> int:
        buffers = self._parts.get(count) or self._part(count)
        length = os.preadv(self._fd, buffers, self._offsets[tag])
        if length != count << SECTOR_SHIFT:
            self._no_data(op_flags & 0xFF, count, sector)
            return -errno.EIO
        if self._record.recoverable:
            status = self._write_again(op_flags & 0xFF, sector, count)
        elif op_flags & 0xFF == _WRITE:
            status = self._port.write(sector, count, buffers)
        else:
            status, self.landed = self._port.append(sector, count, buffers)
        if not status and op_flags & _FUA:
            status = self._port.flush()
        return RESULTS[status] if status else length

    def _write_again(self, operation: int, sector: int, count: int) -> Status:
        """Write or append data of which an earlier process may have written all or the first part."""
        buffer = self.buffer[: count << SECTOR_SHIFT]
        intent_log = self._intent_log
        done = intent_log.prefix(sector, count) if operation == _WRITE else 0
        for first, last in ((0, done), (done, count)):
            if first < last:
                part = intent_log.payload = (buffer[first << SECTOR_SHIFT : last << SECTOR_SHIFT],)
                if operation == _WRITE:
                    status = self._port.write(sector + first, last - first, part)
                else:
                    status, self.landed = self._port.append(sector, count, part)
                if status:
                    return status
        return Status.OK

    def _manage(self, tag: int, operation: int, count: int, sector: int) -> int:
        if operation == Request.FLUSH:
            return RESULTS[self._port.flush()]
        if operation in _MANAGEMENT:
            return RESULTS[self._port.manage(_MANAGEMENT[operation], sector)]
        if operation == Request.ZONE_RESET_ALL:
            return RESULTS[self._port.manage_all(Operation.RESET)]
        if operation == Request.REPORT_ZONES:
            zone_no = self._port.geometry.zone_no(sector)
            zones = encode_zones(self._port.report(zone_no, min(count, _ZONES_MAX)))
            return os.pwrite(self._fd, zones, self._offsets[tag])
        self._port.refusals.refuse(UblkRule.UBLK_OPERATION, None, Status.UNSUPPORTED, request=f"operation {operation}")
        return RESULTS[Status.UNSUPPORTED]


def _describe(operation: int, count: int, sector: int) -> str:
    """Return a text for people that describes a request."""
    try:
        name = Request(operation).name.lower().replace("_", " ")
    except ValueError:
        name = f"operation {operation}"
    return f"{name} of {count} {'zones' if operation == Request.REPORT_ZONES else 'sectors'} at sector {sector}"


class _HeldAnswerError(Exception):
    """The answer to a request is held. An exception says so, because testing a flag would cost all other requests."""


class IoQueue(threading.Thread):
    """One queue of the device, served by this thread from start() until the kernel aborts all its tags."""

    def __init__(
        self,
        port: Port,
        intents: Intents,
        node_fd: int,
        record: TagRecord,
        *,
        number: int,
        depth: int,
        ended: Callable[[], None],
    ) -> None:
        """Prepare to serve queue *number*, with *depth* tags, of the character device open as *node_fd*.

        *record* has the intents of the requests. *ended* is called, on this thread, when the queue has ended.
        """
        super().__init__(name=f"ublk-queue-{number}", daemon=True)
        self._port = port
        self._timed = port if isinstance(port, TimedPort) else None
        if self._timed is not None:
            self._timed.hold = self._timed.held.hold
        self._intents = intents
        self._fd = node_fd
        self._number = number
        self._depth = depth
        self._record = record
        self._ended = ended
        self._executor = Executor(port, intents, node_fd, record, queue_number=number, depth=depth)
        self._execute = self._executor.execute if self._timed is None else self._execute_timed
        self._slow_executor = Executor(port, intents, node_fd, record, queue_number=number, depth=depth)
        # A shared mapping of the kernel's request descriptors, 24 bytes a tag.
        page_bytes = mmap.PAGESIZE
        stride = -(-MAX_QUEUE_DEPTH * IO_DESC.size // page_bytes) * page_bytes
        length = -(-depth * IO_DESC.size // page_bytes) * page_bytes
        self._descriptors = mmap.mmap(node_fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=number * stride)
        self._slow_work: SimpleQueue[int | None] = SimpleQueue()
        self._slow_done: deque[tuple[int, int, int]] = deque()
        self._slow_waker = Waker()
        self._slow_thread = threading.Thread(target=self._work_slowly, name=f"ublk-flush-{number}", daemon=True)
        #: Requests answered.
        self.requests = 0
        #: The exception that ended the queue; None unless one did.
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Serve until the kernel aborts all tags; called by start()."""
        with ExitStack() as ending:  # each step is done, whatever the others raise
            ending.callback(self._ended)
            ending.callback(self._end_slow_thread)
            try:
                self._slow_thread.start()
                ring = Ring(self._depth + 1, one_thread=True)
                try:
                    self._serve(ring)
                finally:
                    ring.close()
            except BaseException as error:
                self.failure = error
                log.exception("ublk queue %d ended", self._number)

    def _end_slow_thread(self) -> None:
        self._slow_work.put(None)
        if self._slow_thread.ident is not None:
            self._slow_thread.join(_END_S)
        if self._slow_thread.is_alive():
            log.warning("ublk queue %d: a request that waits for the host's disk is abandoned", self._number)
            return
        self._slow_waker.close()
        # The mapping holds the character device open, and a device that is open cannot be deleted.
        self._descriptors.close()

    def _serve(self, ring: Ring) -> None:
        number, depth, fd = self._number, self._depth, self._fd
        for tag in range(depth):
            ring.place(tag, OP_URING_CMD, fd, tag, command=FETCH_REQ, payload=IO_CMD.pack(number, tag, -1, 0))
            ring.push(tag)
        ring.place(depth, OP_POLL_ADD, self._slow_waker.fd, depth, flags=POLLIN)
        ring.push(depth)
        ring.enter(0)
        for tag in range(depth):
            payload = IO_CMD.pack(number, tag, 0, 0)
            ring.place(tag, OP_URING_CMD, fd, tag, command=COMMIT_AND_FETCH_REQ, payload=payload)
        self._executor.begin()
        with memoryview(ring.entries) as raw, raw.cast("i") as results, raw.cast("Q") as landed:
            self._serve_requests(ring, results, landed, self._new_walker(ring))

    def _new_walker(self, ring: Ring) -> "TagWalker | None":
        """Return the compiled walker of this queue, or None if Python executes all its requests."""
        if not is_usable("zonefs_emu.ublk.tag_walker"):
            return None
        from zonefs_emu.ublk.tag_walker import TagWalker  # noqa: PLC0415  (optional)

        buffer, data_at = self._executor.buffer, buffer_offset(self._number, 0)
        commands = compiled_commands(self._port, run_sectors_max=len(buffer) >> SECTOR_SHIFT)
        if commands is None:
            return None
        return TagWalker(
            ring=ring, descriptors=self._descriptors, buffer=buffer, record=self._record,
            first_slot=self._number * self._depth, commands=commands, node_fd=self._fd, depth=self._depth,
            data_at=data_at, data_stride=buffer_offset(self._number, 1) - data_at,
        )  # fmt: skip

    def _walk(self, walker: "TagWalker", to_free: list[int]) -> Exception | None:
        """Let *walker* execute plain requests; return the exception that the next request has met, or None."""
        try:  # the boundary of a request
            while nr_taken := walker.take(to_free):
                self.requests += nr_taken
        except Exception as error:
            # The first write of the run is answered as failed. The others are executed one by one.
            return error
        return None

    def _serve_requests(
        self, ring: Ring, results: "memoryview[int]", landed: "memoryview[int]", walker: "TagWalker | None" = None
    ) -> None:
        executor, depth = self._executor, self._depth
        execute, may_wait, push = self._execute, self._may_wait, ring.push
        descriptor, descriptors = IO_DESC.unpack_from, self._descriptors
        result_words, landed_words = SQE_BYTES // 4, SQE_BYTES // 8
        to_free: list[int] = []
        nr_served = depth
        polling = AdaptivePolling(max_ns=_LOOK_NS_MAX, soon_ns=_LOOK_NS_MAX, nr_processors=len(os.sched_getaffinity(0)))
        while nr_served:
            self._wait_for_requests(ring, polling, to_free)
            met = None if walker is None else self._walk(walker, to_free)
            for tag, outcome in ring.reap():
                if tag == depth:
                    push(depth)
                    self._answer_slowly(ring, results, landed, to_free)
                    continue
                if outcome < 0:
                    # The tag is out of service: the device stops, or its server is being replaced.
                    if outcome != IO_RES_ABORT:
                        log.info("ublk queue %d: tag %d ended with %s", self._number, tag, os.strerror(-outcome))
                    nr_served -= 1
                    continue
                self.requests += 1
                op_flags, count, sector, _ = descriptor(descriptors, tag * 24)
                operation = op_flags & 0xFF
                try:
                    if operation != _READ:
                        if may_wait(op_flags, count, sector):
                            self._slow_work.put(tag)
                            continue
                        to_free.append(tag)
                    if met is not None:
                        error, met = met, None
                        raise error
                    result = execute(tag, op_flags, count, sector)
                except _HeldAnswerError:
                    if operation != _READ:
                        to_free.pop()  # its slot is free when it is answered
                    continue
                except Exception as error:  # the boundary of a request
                    result = executor.contain(op_flags, count, sector, error)
                results[tag * result_words + _RESULT_WORD] = result
                landed[tag * landed_words + _LANDED_WORD] = executor.landed if operation == _APPEND else 0
                push(tag)

    def _wait_for_requests(self, ring: Ring, polling: AdaptivePolling, to_free: list[int]) -> None:
        """Submit the pushed entries, free the slots of the tags in *to_free*, and wait until there is a completion."""
        if to_free or (ring.pending and polling.look_ns):
            # Slots are freed as soon as the kernel has the answers, so before this thread sleeps.
            ring.enter(0)
            words, slots, base = self._record.words, self._record.slots, self._number * self._depth
            for tag in to_free:
                words[slots[base + tag]] = FREE
            to_free.clear()
        if not ring.has_completions():
            if polling.look_ns and ring.spin(polling.look_ns):
                ring.enter(1)  # without a sleep
            else:
                asleep_ns = monotonic_ns()
                ring.enter(1)
                polling.waited(monotonic_ns() - asleep_ns)

    def _answer_slowly(
        self, ring: Ring, results: "memoryview[int]", landed: "memoryview[int]", to_free: list[int]
    ) -> None:
        """Push the answers of the second thread, and the held answers that are due."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._slow_waker.fd)
        while self._slow_done:
            tag, result, where = self._slow_done.popleft()
            results[tag * SQE_BYTES // 4 + _RESULT_WORD] = result
            landed[tag * SQE_BYTES // 8 + _LANDED_WORD] = where
            to_free.append(tag)
            ring.push(tag)

    def _execute_timed(self, tag: int, op_flags: int, count: int, sector: int) -> int:
        """Do what :meth:`Executor.execute` does, but hold the answer if a real drive would give it later.

        Raises:
            _HeldAnswerError: the answer is held.
        """
        result = self._executor.execute(tag, op_flags, count, sector)
        if self._hold(tag, result, self._executor.landed if op_flags & 0xFF == _APPEND else 0):
            raise _HeldAnswerError
        return result

    def _hold(self, tag: int, result: int, landed: int) -> bool:
        """Hold the answer to request *tag*, which this thread has carried out, until it is due; False if it is now."""
        port = self._timed
        due_ns, arrival_ns = (0, 0) if port is None else port.held.take()
        if port is None or not due_ns:
            return False

        def answer() -> None:
            port.answered(due_ns, arrival_ns)
            self._slow_done.append((tag, result, landed))
            self._slow_waker.wake()

        port.alarm.at(due_ns, answer)
        return True

    def _may_wait(self, op_flags: int, count: int, sector: int) -> bool:
        """Say whether a request other than a read may wait for the host's disk."""
        operation = op_flags & 0xFF
        if operation in (_WRITE, _APPEND):
            return bool(op_flags & _FUA) or self._port.has_pending_reset(self._port.geometry.zone_no(sector))
        if operation == Request.REPORT_ZONES:
            return count > _QUICK_ZONES
        return operation in (Request.FLUSH, Request.ZONE_RESET_ALL)

    def _work_slowly(self) -> None:
        """Carry out requests that may wait, one after the other, on a thread of its own."""
        executor = self._slow_executor
        executor.begin()
        while (tag := self._slow_work.get()) is not None:
            op_flags, count, sector, _ = IO_DESC.unpack_from(self._descriptors, tag * IO_DESC.size)
            executor.landed = 0
            try:
                result = executor.execute(tag, op_flags, count, sector)
            except Exception as error:  # the boundary of a request
                result = executor.contain(op_flags, count, sector, error)
            landed = executor.landed if op_flags & 0xFF == _APPEND else 0
            if not self._hold(tag, result, landed):
                self._slow_done.append((tag, result, landed))
                self._slow_waker.wake()
