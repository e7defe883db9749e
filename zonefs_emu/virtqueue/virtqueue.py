"""One virtqueue: its descriptors, its ring, and how a batch of requests passes through it.

May not know: messages, sockets. It runs on the device's thread only. A request that may wait for the host's disk goes
to the worker's thread, and the queue rests until it is back, so requests stay in order.

This module has two boundaries (docs/errors.md). An exception of a request is answered with the protocol's error, and
the queue goes on. Any other exception, and one that cannot be answered, breaks the ring, as a driver that breaks the
rules does. Neither leaves this module.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from zonefs_emu.device.buffers import scatter, total_bytes
from zonefs_emu.device.intent_log import IntentLog, Intents
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.virtio import features as bits, packed, split
from zonefs_emu.virtio.handler import Deferred, Handler
from zonefs_emu.virtio.memory import GuestMemory
from zonefs_emu.virtio.packed import PackedRing
from zonefs_emu.virtio.ring import BrokenRingError, Chain, Fence, OversizedChainError
from zonefs_emu.virtio.split import SplitRing
from zonefs_emu.virtqueue.atomic import ORDERED
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_eventfds import PeerEventfds
from zonefs_emu.virtqueue.peer_memory import PeerMemory
from zonefs_emu.virtqueue.walkers import new_walker

if TYPE_CHECKING:
    from zonefs_emu.virtqueue.walker import Walker

#: Requests that are taken from the ring at once.
BATCH: Final = 64


class RingAddresses(NamedTuple):
    """The addresses of the parts of a ring, as the transport counts them; *log* is the guest's address of *device*."""

    desc: int
    driver: int
    device: int
    log: int = 0


class EventSource(Protocol):
    """The source of events of an event queue. The queue takes a buffer of the driver only if there is an event."""

    def next_event(self) -> bytes | None:
        """Return the next event for the driver, or None."""
        ...

    def put_back(self, event: bytes) -> None:
        """Keep *event*, because the driver has no buffer for it yet."""
        ...


#: Runs the first function on a thread that may wait. Then it runs the second function on the device's thread, with the
#: result of the first or the exception that it raised.
Submit: TypeAlias = Callable[[Callable[[], int], Callable[[int | Exception], None]], None]


class Service(NamedTuple):
    """The part of a server that its queues use; the same for all queues of a device."""

    submit: Submit
    fence: Fence
    #: Contains an exception: (where, error); see :meth:`zonefs_emu.device.unforeseen.UnforeseenErrors.contain`.
    contain: Callable[[str, Exception], object]
    #: The log for faults of the driver; its rate is limited.
    log: LimitedLog
    #: The writer of the driver's eventfds, on transports that have eventfds.
    eventfds: PeerEventfds


class Virtqueue:
    """A virtqueue. It is stopped until :meth:`start`."""

    #: Whether requests in the ring wait for requests of other queues (:mod:`.control_virtqueue`).
    is_waiting = False
    #: The most requests that are taken from the ring at once.
    _batch = BATCH
    #: Requests that wait behind one of the worker's.
    _backlog: Sequence[Chain] = ()

    def __init__(
        self,
        index: int,
        intents: Intents,
        handler: Handler | None,
        service: Service,
        *,
        events: EventSource | None = None,
        faults: Sequence[object] = (),
        shared: PeerMemory | None = None,
    ) -> None:
        """Serve requests with *handler*, or events from *events*; *faults* are those that are injected, if any.

        *shared*: the memory of a peer that can remove it; None for other peers.
        """
        self.index = index
        self.size = 0
        self.address: RingAddresses | None = None
        self.base = 0
        self.enabled = False
        self.kick_fd = -1
        self.call_fd = -1
        self.err_fd = -1
        self.broken = False
        #: Whether the worker has a request of this queue.
        self.busy = False
        #: How often a request was given to the worker or abandoned. A result with another number is a late one.
        self._nr_jobs = 0
        #: How many abandoned requests the worker still has.
        self.nr_abandoned = 0
        self.ring: SplitRing | PackedRing | None = None
        self._intents = intents
        self._handler = handler
        self._service = service
        self._events = events
        self._faults = faults
        self.shared = shared
        self._record: HoldingRecord | None = None
        self._record_memory: memoryview | None = None
        #: The memory of the ring, and the walker that takes plain requests from it, if there is one.
        self._areas: tuple[memoryview, memoryview, memoryview] | None = None
        self._walker: Walker | None = None
        self._intent_log: IntentLog | None = None
        self._log: DirtyLog | None = None
        self._used_log_address = -1
        #: Requests given back since the queue was made.
        self.requests = 0
        #: Whether the driver wanted no notification of the last answers, because it had not taken all earlier ones.
        self._is_ahead = False

    # -- starting and stopping --------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the queue runs: started, enabled, whole, and not waiting for the worker."""
        return self.ring is not None and self.enabled and not self.broken and not self.busy

    @property
    def is_idle(self) -> bool:
        """Whether no available request is left to execute: none in the ring, and none taken from it."""
        return not self._backlog and (self.ring is None or not self.ring.has_work())

    @property
    def has_several(self) -> bool:
        """Whether the driver has several requests under way, as far as is known, which may gather."""
        return self._is_ahead

    @property
    def nr_available(self) -> int:
        """The requests in the ring; in a packed ring their descriptors, of which a request may have several."""
        return self.ring.nr_available if self.is_ready and self._events is None and self.ring is not None else 0

    def start(
        self, memory: GuestMemory, features: int, record_memory: memoryview | None, dirty: DirtyLog | None
    ) -> None:
        """Begin to serve the ring at *address*, at *base* or at the position in the record of *record_memory*.

        Raises:
            PeerError: size or addresses are missing, impossible or outside of *memory*, or the record does not fit.
        """
        address = self.address
        if address is None or not self.size:
            message = f"queue {self.index} is started without size or addresses"
            raise PeerError(message)
        event_idx = bool(features & bits.EVENT_IDX)
        if features & bits.RING_PACKED:
            desc_bytes = self.size * 16
            driver_bytes = device_bytes = packed.EVENT_BYTES
        else:
            desc_bytes, driver_bytes, device_bytes = split.sizes(self.size, event_idx=event_idx)
        desc = memory.at_user_address(address.desc, desc_bytes)
        driver = memory.at_user_address(address.driver, driver_bytes)
        device = memory.at_user_address(address.device, device_bytes)
        self._areas = desc, driver, device
        self._record = None
        self._record_memory = record_memory
        if record_memory is not None:
            self._record = HoldingRecord(record_memory, self.size, packed=bool(features & bits.RING_PACKED))
        if features & bits.RING_PACKED:
            base = self._packed_base(desc)
            ring: SplitRing | PackedRing = PackedRing(
                self.size, desc, driver, device, memory, event_idx=event_idx, base=base, fence=self._service.fence,
                ordered=ORDERED,
            )  # fmt: skip
            self._used_log_address = memory.guest_address_of_user(address.desc, desc_bytes)
        else:
            base = self.base
            if self._record is not None:
                # Requests are carried out in order. So unless answers were held, the used index says which are done.
                self._record.start_split(int.from_bytes(device[2:4], "little"))
                base = self._record.finished & 0xFFFF
            ring = SplitRing(
                self.size, desc, driver, device, memory, event_idx=event_idx, base=base, fence=self._service.fence,
                ordered=ORDERED,
            )  # fmt: skip
            self._used_log_address = address.log
        self._intent_log = self._record
        self._backlog = ()
        self.broken = False
        self._use_log(ring, dirty)
        nr_given = self._give_what_was_held(ring)
        # The ring is set last, because a queue with a ring counts as running, and the code above may raise.
        self.ring = ring
        if nr_given:
            self._note_given_back(nr_given)

    def _packed_base(self, desc: memoryview) -> int:
        record = self._record
        if record is None:
            return self.base
        position = record.start_packed(self.base >> 16 & 0xFFFF)
        if position is None:
            return self.base
        slot = position & 0x7FFF
        if slot >= self.size:
            message = f"the record of queue {self.index} continues at entry {slot}, but the queue has {self.size}"
            raise PeerError(message)
        meta = desc.cast("Q")[2 * slot + 1]
        given_back = packed.is_given_back(meta, packed.place_of(position, self.size), self.size)
        position = record.recover_packed(given_back=given_back)
        return position | record.used_position << 16

    def _give_what_was_held(self, ring: SplitRing | PackedRing) -> int:
        """Give the answers that an earlier process held; return their number."""
        record = self._record
        held = record.held if record is not None else []
        if record is not None and held:
            for number, answer, _ in held:
                # It is unknown where the request has written, so any buffer stands for all of memory.
                chain = answer & 0xFFFFFFFF, list[memoryview](), [memoryview(b"")]
                self._give_held(ring, chain, answer >> 32, number)
            record.end_holding()
        return len(held)

    def _give_held(self, ring: SplitRing | PackedRing, chain: Chain, nr_bytes: int, number: int) -> None:
        """Give the answer *number* of the record to the request of *chain*, which was carried out."""
        record, dirty = self._record, self._log
        if dirty is not None:
            dirty.mark_buffers(ring, (chain,))
        if record is not None:
            record.before_giving(number, packed.position_after(ring, chain[0]))
        ring.push((chain,), (nr_bytes,))
        if record is not None:
            record.note_given(number)
        if dirty is not None:
            dirty.mark_used(ring, self._used_log_address, 1)

    def set_log(self, dirty: DirtyLog | None) -> None:
        """Begin or end to log the pages that are written, if the queue runs."""
        if self.ring is not None:
            self._use_log(self.ring, dirty)

    def _use_log(self, ring: SplitRing | PackedRing, dirty: DirtyLog | None) -> None:
        self._log = dirty
        self._walker = None
        ring.logged = None if dirty is None else {}
        # Pages are marked in Python: migrations are rare, and the walker does not keep guest addresses.
        if dirty is None and self._handler is not None and self._areas is not None:
            self._walker = new_walker(
                ring, self._areas, self._handler.plain, record=self._record, record_memory=self._record_memory
            )

    def set_used_log_address(self, address: int) -> None:
        """Log writes of the used ring at guest *address* from now on. A packed ring knows its own address."""
        if isinstance(self.ring, SplitRing) and address >= 0:
            self._used_log_address = address

    def stop(self) -> int:
        """Stop; return the answer to GET_VRING_BASE. The worker must not have a request of this queue."""
        assert not self.busy
        ring, self.ring = self.ring, None
        # The next back-end begins at the used index, so requests that were not given back are executed again.
        if isinstance(ring, SplitRing):
            self.base = ring.used_idx
        elif ring is not None:
            position = packed.position_of(ring.used_place, ring.size)
            self.base = position | position << 16
        self._backlog = ()
        self._record = self._intent_log = self._log = None
        self._record_memory = self._areas = self._walker = None
        # The intent log goes with the record, whose memory belongs to the front-end and may be unmapped now.
        self._intents.current.log = None
        return self.base

    def close(self) -> None:
        """Close the descriptors for kicks, calls and errors."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.call_fd = self.err_fd = -1

    def call(self) -> None:
        """Notify the driver that requests were given back."""
        if self.call_fd >= 0:
            try:  # noqa: SIM105  (a context manager costs half a microsecond)
                self._service.eventfds.signal(self.call_fd)
            except OSError:
                pass

    # -- serving ----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Execute available requests, up to a batch; True if there were any. Never raises."""
        ring = self.ring
        if ring is None or self.busy or self.broken or not self.enabled:
            return False
        try:  # the boundary of a ring
            if self._events is not None:
                return self._run_events(self._events)
            chains = self._backlog
            if chains:
                self._backlog = ()
            else:
                walker = self._walker
                nr_taken = 0 if walker is None else self._walk(walker)
                if nr_taken > 0:
                    return True
                if not nr_taken:
                    record = self._record
                    chains = ring.pop(1 if record is not None and record.recovering else self._batch)
                if not chains:
                    return False
            self._run_batch(chains)
        except OversizedChainError as error:
            return self._refuse_oversized(error)
        except Exception as error:
            self._break(error)
            return False
        return True

    def wake(self) -> None:
        """Tell the driver not to kick, if the queue runs. Never raises."""
        try:  # the boundary of a ring
            if self.ring is not None:
                self.ring.wake()
        except Exception as error:
            self._break(error)

    def sleep(self) -> bool:
        """Ask the driver for a kick; True if there is work all the same. Never raises.

        Requests that waited for the worker were taken from the ring already, so no kick comes for them.
        """
        try:  # the boundary of a ring
            return self.is_ready and self.ring is not None and (bool(self._backlog) or self.ring.sleep())
        except Exception as error:
            self._break(error)
            return False

    def _walk(self, walker: "Walker") -> int:
        """Let *walker* execute plain requests; return how many were executed, or -1 if the ring is empty."""
        try:  # the boundary of a request
            count = walker.take()
        except Exception as error:
            assert self.ring is not None
            # The first write of the run is answered as failed. The others are executed one by one.
            chains, lengths = self.ring.pop(1), list[int]()
            self._answer_failed(chains, 0, lengths, error)
            self._give_back(chains, lengths)
            return 1
        if count > 0:
            self._note_given_back(count)
        return count

    def _run_batch(self, chains: Sequence[Chain]) -> None:
        handler, faults = self._handler, self._faults
        assert handler is not None
        self._intents.current.log = self._intent_log
        step, begin = handler.step, self._begin
        lengths: list[int] = []
        index, count = 0, len(chains)
        while index < count:
            try:
                # An injected fault may be a delay, which only the worker may wait for.
                done = None if faults else step(chains, index, lengths, begin)
            except Exception as error:  # the boundary of a request
                done = self._answer_failed(chains, index, lengths, error)
            if not done:
                if index:
                    self._give_back(chains[:index], lengths)
                self._hand_over(chains, index, done if isinstance(done, Deferred) else None)
                return
            index += done
        self._give_back(chains, lengths)

    def _begin(self, index: int, spans: Sequence[tuple[int, int]]) -> None:
        record = self._record
        if record is not None:
            record.start_request(index, spans)

    def _give_back(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        ring, record, dirty = self.ring, self._record, self._log
        assert ring is not None
        count = len(chains)
        if dirty is not None:
            dirty.mark_buffers(ring, chains)
        if record is None:
            ring.push(chains, lengths)
        elif isinstance(ring, SplitRing):
            ring.push(chains, lengths)
            record.finish_split(count)
        else:
            # The requests are given back one by one. Giving back overwrites descriptors, so a batch that was half given
            # back at a kill could neither be completed nor taken again.
            for index in range(count):
                record.before_packed(packed.position_after(ring, chains[index][0]))
                ring.push(chains[index : index + 1], lengths[index : index + 1])
                record.finish_packed()
        if dirty is not None:
            dirty.mark_used(ring, self._used_log_address, count)
        self._note_given_back(count)

    def _note_given_back(self, count: int) -> None:
        """Count *count* more requests, and notify the driver of them if it wants notifications."""
        self.requests += count
        ring = self.ring
        assert ring is not None
        self._is_ahead = not ring.needs_call()
        if not self._is_ahead:
            self.call()

    def _answer_failed(self, chains: Sequence[Chain], index: int, lengths: list[int], error: Exception) -> int:
        """Answer the request that met *error* in the step at ``chains[index]``; return how many that completes.

        Raises:
            BrokenRingError: it cannot be answered; those before it have been given back.
        """
        # A step may execute several requests. Those that have a length are complete.
        failed = len(lengths)
        try:
            if isinstance(error, BrokenRingError):
                raise error
            lengths.append(self._fail(chains[failed], error))
        except BrokenRingError:
            if lengths:
                self._give_back(chains[:failed], lengths)
            raise
        return failed + 1 - index

    def _fail(self, chain: Chain, error: Exception) -> int:
        """Contain the *error* that the request of *chain* met, and answer it; return the bytes written."""
        assert self._handler is not None
        self._service.contain(f"a request of queue {self.index}", error)
        return self._handler.fail(chain)

    def _refuse_oversized(self, oversized: OversizedChainError) -> bool:
        """Answer a chain that is too long; return whether it had room for the answer. Otherwise the ring is broken."""
        try:  # the boundary of a ring
            if self._handler is None:
                raise oversized  # a buffer for events is no request and cannot be answered
            chain = oversized.chain
            self._give_back((chain,), (self._handler.refuse_oversized(chain),))
        except Exception as error:
            self._break(error)
            return False
        return True

    def _hand_over(self, chains: Sequence[Chain], index: int, deferred: Deferred | None) -> None:
        """Give the request at *index* to the worker, decoded (*deferred*) or not. The requests behind it wait."""
        handler = self._handler
        assert handler is not None
        self._begin(0, ())  # those before it have been given back
        chain = chains[index]
        self._backlog = chains[index:]
        intents, intent_log = self._intents, self._intent_log
        work = partial(handler.execute, chain) if deferred is None else deferred.execute

        def execute() -> int:
            intents.current.log = intent_log
            try:
                return work()
            finally:
                intents.current.log = None

        self._nr_jobs += 1
        self.busy = True
        try:
            self._service.submit(execute, partial(self._take_back, self._nr_jobs))
        except BaseException:
            self.busy = False
            raise

    def _take_back(self, job_no: int, outcome: int | Exception) -> None:
        """Give back the request that the worker had; *outcome* is its length or exception. Never raises."""
        was_abandoned = job_no != self._nr_jobs or not self.busy
        if was_abandoned:
            self.nr_abandoned -= 1
        else:
            self.busy = False
        if was_abandoned or self.ring is None or self.broken:
            if isinstance(outcome, Exception) and not isinstance(outcome, PeerError):
                self._service.contain(f"a request of queue {self.index} that is answered no more", outcome)
            return
        try:  # the boundary of a ring; what the request met is contained as in _run_batch
            chain = self._backlog[0]
            if isinstance(outcome, BrokenRingError):
                raise outcome
            if isinstance(outcome, Exception):
                outcome = self._fail(chain, outcome)
            self._give_back((chain,), (outcome,))
            self._backlog = self._backlog[1:]
        except Exception as error:
            if isinstance(outcome, Exception) and outcome is not error:
                error.__context__ = outcome  # both tracebacks are logged
            self._break(error)

    def abandon(self) -> None:
        """Abandon the request that the worker has: its answer is ignored when it comes."""
        self.nr_abandoned += self.busy
        self.busy = False
        self._nr_jobs += 1

    def _run_events(self, events: EventSource) -> bool:
        ring = self.ring
        assert ring is not None
        event = events.next_event()
        if event is None:
            return False
        try:
            chains = ring.pop(1)
        except BrokenRingError:
            events.put_back(event)
            raise
        if not chains:
            events.put_back(event)
            return False
        _, _, writable = chains[0]
        length = min(len(event), total_bytes(writable))
        scatter(writable, 0, event[:length])
        self._give_back(chains, [length])
        return True

    def _break(self, error: Exception) -> None:
        """Stop serving this ring and notify the front-end; the others go on."""
        self.broken = True
        self._backlog = ()
        if self.shared is not None and self.shared.is_lost:
            return  # the ring reads as zeros, and the transport stops serving this memory
        reason = str(error)
        if not isinstance(error, PeerError):
            self._service.contain(f"the ring of queue {self.index}", error)
            reason = "an internal error"
        self._service.log.warning(
            "queue %d is broken: %s; it is not served until the driver resets it", self.index, reason
        )
        if self.err_fd >= 0:
            with suppress(OSError):
                self._service.eventfds.signal(self.err_fd)
