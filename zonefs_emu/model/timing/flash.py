"""When a zoned SSD completes a request."""

from collections import deque
from heapq import heappop, heappush
from math import log
from random import Random
from typing import Final

from zonefs_emu.model.timing.bus import Bus
from zonefs_emu.model.timing.nand import Nand
from zonefs_emu.model.timing.parameters import FlashParameters
from zonefs_emu.model.timing.read_ahead import ReadAhead
from zonefs_emu.model.timing.waits import Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_SHIFT

#: The size of a block above which writes of any number of blocks are whole ones for the drive.
_WHOLE_BLOCK_BYTES: Final = 4096
#: A write slows down a reset that begins within this time after it.
_BESIDE_NS: Final = 1_000_000
# Looked up once: in Python 3.11 a member of an enumeration costs as much as a call.
_READ: Final = Operation.READ
_WRITE: Final = Operation.WRITE
_APPEND: Final = Operation.APPEND
_EMPTY: Final = Condition.EMPTY
_CLOSED: Final = Condition.CLOSED
_CONTROLLER: Final = Wait.CONTROLLER
_COMMANDS: Final = Wait.COMMANDS
_BUFFER: Final = Wait.BUFFER
_DIE: Final = Wait.DIE
_BUS: Final = Wait.BUS
#: Requests between two removals of state that no later request needs.
_FORGET_EVERY: Final = 1024
#: Zones that are remembered as finished.
_FINISHED_MAX: Final = 65536
#: Sizes of requests whose costs are kept.
_COSTS_MAX: Final = 4096


class _WriteCost:
    """What a write or an append of *nr_bytes* costs as far as its size decides it: computed once for each size.

    *taken_ns*: the controller's time until it has the data. *spread_ns*: by how much the rest of its time varies to
    either side. *latency_ns*: from the buffer to the answer. *first_ns*: added to that in an empty zone. *is_merged*:
    the drive merges the data into a larger unit.
    """

    __slots__ = ("first_ns", "is_append", "is_merged", "latency_ns", "nr_bytes", "spread_ns", "taken_ns")

    def __init__(self, p: FlashParameters, nr_bytes: int, *, append: bool, whole_blocks: bool) -> None:
        service_ns = p.controller_append_ns if append else p.controller_write_ns
        latency_ns = p.write_base_ns + (p.append_extra_ns if append else 0)
        self.is_merged = False
        if nr_bytes > p.write_unit_bytes:
            service_ns += p.large_ns
            latency_ns += p.large_append_ns if append else p.large_write_ns
        elif nr_bytes < p.write_unit_bytes:
            self.is_merged = not whole_blocks
            if whole_blocks:
                service_ns += p.small_append_ns if append else p.small_write_ns
            elif nr_bytes >= _WHOLE_BLOCK_BYTES:
                latency_ns += p.partial_latency_ns
        self.nr_bytes = nr_bytes
        self.is_append = append
        self.taken_ns = service_ns + int(nr_bytes * p.write_byte_ns)
        self.spread_ns = service_ns * p.controller_spread
        self.latency_ns = latency_ns
        self.first_ns = p.first_append_ns if append else p.first_write_ns


class FlashTiming:
    """The state of a zoned SSD that decides when it answers.

    Requests are submitted in the order of their arrival, and each is answered with the time at which it completes.
    *waited_for* and *waited_ns* are what the last request waited for longest, and for how long; *controller_wait_ns* is
    how long it waited for the controller. Deterministic from *seed*.
    """

    def __init__(
        self, parameters: FlashParameters, *, capacity_sectors: int, block_bytes: int = 4096, seed: int = 0
    ) -> None:
        self.parameters = parameters
        self._capacity_sectors = capacity_sectors
        self._whole_blocks = block_bytes >= _WHOLE_BLOCK_BYTES
        self._rng = rng = Random(seed)
        self._random = rng.random
        self._nand = Nand(parameters, rng)
        self._bus = Bus()
        self._read_ahead = ReadAhead(parameters, rng)
        self._controller_free_ns = 0
        self._controller_cause = _CONTROLLER
        self._in_flight: list[int] = []  # when reads and writes end, a heap
        # Until when the last read, and the last write behind others, waits for the drive to take it.
        self._reads_wait_ns = self._writes_wait_ns = 0
        self._turn_ns = 0  # when the controller is done with the last write that passed waiting reads
        self._management_free_ns = 0
        self._write_until_ns = -_BESIDE_NS
        self._room_ns = 0  # when the last write that waited for room in the buffer has it
        self._merges: deque[int] = deque()  # when the last merges of partial blocks end
        self._merge_zone = -1  # of the last of them
        self._finished: dict[int, float] = {}  # by zone that finish made full: the share that was written
        self._until_forget = _FORGET_EVERY
        #: By operation, and then by the number of sectors.
        self._costs: dict[Operation, dict[int, _WriteCost]] = {_WRITE: {}, _APPEND: {}}
        self.waited_for = Wait.NOTHING
        self.waited_ns = 0
        self.controller_wait_ns = 0

    @property
    def busy_ns(self) -> int:
        """Nanoseconds of work that the dies have begun, divided by the number of dies."""
        return self._nand.busy_ns // self._nand.nr_dies

    def submit(
        self,
        operation: Operation,
        zone: int,
        sector: int,
        nr_sectors: int,
        arrival_ns: int,
        *,
        condition: int = Condition.IMP_OPEN,
        written_sectors: int = 0,
    ) -> int:
        """Return when the request completes, in nanoseconds of the clock of *arrival_ns*.

        *condition* and *written_sectors* are those of the zone before the request. *nr_sectors* is 0 for zone
        management.
        """
        self._until_forget -= 1
        if not self._until_forget:
            self._until_forget = _FORGET_EVERY
            self._bus.forget(arrival_ns)
            self._nand.forget(arrival_ns)
        in_flight = self._in_flight
        while in_flight and in_flight[0] <= arrival_ns:
            heappop(in_flight)
        if operation == _READ:
            return self._read(zone, sector, nr_sectors, arrival_ns)
        costs = self._costs.get(operation)
        if costs is None:
            return self._manage(operation, zone, arrival_ns, condition, written_sectors)
        cost = costs.get(nr_sectors) or self._cost(operation, nr_sectors)
        return self._write(zone, arrival_ns, condition, cost)

    def _reach_controller(self, arrival_ns: int, admitted_ns: int) -> int:
        """Return when the controller begins with a request, and note what the request waited for until then.

        The request arrived at *arrival_ns*, and the drive takes it at *admitted_ns*. If the controller had to wait
        since it was last idle, later requests wait for the same thing as the controller did.
        """
        free_ns = self._controller_free_ns
        start_ns = admitted_ns if admitted_ns > free_ns else free_ns
        if start_ns == arrival_ns:
            self._controller_cause = _CONTROLLER
        elif start_ns > free_ns:
            self._controller_cause = _COMMANDS
        self.controller_wait_ns = self.waited_ns = start_ns - arrival_ns
        self.waited_for = self._controller_cause
        return start_ns

    # --- reads --------------------------------------------------------------------------------------------------------

    def _read(self, zone: int, sector: int, nr_sectors: int, arrival_ns: int) -> int:
        p = self.parameters
        start_ns = self._reach_controller(arrival_ns, arrival_ns)
        if end_ns := self._read_ahead.read(zone, sector, nr_sectors, start_ns):
            return end_ns  # the measured rate includes the wait for other commands
        if len(self._in_flight) >= p.commands_max:
            # A command is taken only when one has ended, so at most one has to be waited for.
            self._reads_wait_ns = admitted_ns = heappop(self._in_flight)
            start_ns = self._reach_controller(arrival_ns, admitted_ns)
        self._controller_free_ns = now_ns = start_ns + p.controller_read_ns
        nand, random = self._nand, self._random
        nr_dies = nand.nr_dies
        number = int(random() * nr_dies)
        left = nr_sectors << SECTOR_SHIFT
        end_ns = now_ns
        while left:
            piece = left if left < p.stripe_bytes else p.stripe_bytes
            left -= piece
            read_ns = p.die_read_ns
            if random() < p.slow_page_share:
                read_ns += p.slow_page_ns
            at_ns = nand.read(number, now_ns, read_ns, int(p.channel_byte_ns * piece))
            if nand.waited_ns > self.waited_ns:
                self.waited_ns, self.waited_for = nand.waited_ns, _DIE
            number = (number + 1) % nr_dies
            service_ns = p.bus_ns + int(p.bus_byte_ns * piece)
            ready_ns = at_ns + p.read_base_ns
            done_ns = self._bus.transfer(ready_ns, service_ns)
            if done_ns - ready_ns - service_ns > self.waited_ns:
                self.waited_ns, self.waited_for = done_ns - ready_ns - service_ns, _BUS
            if done_ns > end_ns:
                end_ns = done_ns
        heappush(self._in_flight, end_ns)
        return end_ns

    # --- writes -------------------------------------------------------------------------------------------------------

    def _cost(self, operation: Operation, nr_sectors: int) -> _WriteCost:
        costs = self._costs[operation]
        if len(costs) >= _COSTS_MAX:
            costs.clear()
        cost = costs[nr_sectors] = _WriteCost(
            self.parameters, nr_sectors << SECTOR_SHIFT,
            append=operation == _APPEND, whole_blocks=self._whole_blocks,
        )  # fmt: skip
        return cost

    def _write(self, zone: int, arrival_ns: int, condition: int, cost: _WriteCost) -> int:
        p, bus = self.parameters, self._bus
        admitted_ns = arrival_ns
        passes = False
        if len(self._in_flight) >= p.commands_max:
            admitted_ns = heappop(self._in_flight)
            passes = self._reads_wait_ns > arrival_ns >= self._writes_wait_ns
            if not passes:
                self._writes_wait_ns = admitted_ns
        start_ns = self._pass_reads(arrival_ns) if passes else self._reach_controller(arrival_ns, admitted_ns)
        latency_ns = cost.latency_ns + int(-p.jitter_ns * log(1.0 - self._random()))
        # What the controller does for this write after its answer, more or less, delays only the next one.
        rest_ns = int(cost.spread_ns * (2 * self._random() - 1))
        now_ns = start_ns + cost.taken_ns
        if cost.is_merged:
            now_ns = self._merge(zone, now_ns, cost)
        if arrival_ns < self._write_until_ns:
            latency_ns += p.overlap_ns
        if condition == _EMPTY:
            latency_ns += cost.first_ns
        elif condition == _CLOSED:
            latency_ns += p.reopen_ns
        # The data go over the bus between two runs of transfers to the host.
        asked_ns = now_ns
        if now_ns < bus.free_ns and (asked_ns := bus.idle_ns(now_ns)) - now_ns > self.waited_ns:
            self.waited_ns, self.waited_for = asked_ns - now_ns, _BUS
        # One write can wait for room beside the controller. The next one waits in it, and all requests behind that.
        held_ns = asked_ns
        if self._room_ns > asked_ns:
            held_ns = self._room_ns
            self._controller_cause = _BUFFER
        free_ns = held_ns
        if passes:
            self._turn_ns = asked_ns
            # The reads that it passes have their answers already. So the next ones wait for this write instead.
            free_ns = max(free_ns, self._controller_free_ns + asked_ns - start_ns)
        self._controller_free_ns = free_ns + rest_ns
        now_ns = self._nand.store(held_ns, cost.nr_bytes)
        if now_ns > asked_ns:
            self._room_ns = now_ns
            self._controller_free_ns = max(self._controller_free_ns, held_ns)
            if now_ns - asked_ns > self.waited_ns:
                self.waited_ns, self.waited_for = now_ns - asked_ns, _BUFFER
        self._write_until_ns = end_ns = now_ns + latency_ns
        heappush(self._in_flight, end_ns)
        return end_ns

    def _pass_reads(self, arrival_ns: int) -> int:
        """Return when the controller takes a write that arrives while reads wait for the drive to take them.

        Reads and writes come from queues of their own, which take turns. A write that arrives before the turn of the
        last one is over has the same turn.
        """
        start_ns = self._turn_ns
        if start_ns <= arrival_ns:
            start_ns = arrival_ns + int(self._random() * self.parameters.queue_turn_ns)
        self.controller_wait_ns = self.waited_ns = start_ns - arrival_ns
        self.waited_for = _COMMANDS
        return start_ns

    def _merge(self, zone: int, now_ns: int, cost: _WriteCost) -> int:
        """Merge a write of less than 8 KiB into what the drive stores as a whole; return when the write is taken."""
        p = self.parameters
        if cost.nr_bytes >= _WHOLE_BLOCK_BYTES:
            mean_ns, shape = p.partial_4k_ns, p.partial_4k_shape
        else:
            mean_ns = p.partial_ns
            shape = p.partial_shape if zone == self._merge_zone else p.partial_other_zone_shape
        self._merge_zone = zone
        if cost.is_append:
            mean_ns += p.partial_append_ns
        merges = self._merges
        if len(merges) >= p.partial_slots and (free_ns := merges.popleft()) > now_ns:
            self._controller_cause = Wait.MERGE
            if free_ns - now_ns > self.waited_ns:
                self.waited_ns, self.waited_for = free_ns - now_ns, Wait.MERGE
            now_ns = free_ns
        begin_ns = max(now_ns, merges[-1]) if merges else now_ns
        merges.append(begin_ns + int(mean_ns * self._rng.gammavariate(shape, 1 / shape)))
        return now_ns

    # --- zone management ----------------------------------------------------------------------------------------------

    def _manage(self, operation: Operation, zone: int, arrival_ns: int, condition: int, written_sectors: int) -> int:
        """Return when a command of zone management completes.

        A reset or finish waits for the one before it. All other commands wait for neither.
        """
        self.controller_wait_ns = self.waited_ns = 0
        self.waited_for = Wait.NOTHING
        p = self.parameters
        if operation in (Operation.OPEN, Operation.CLOSE):
            service_ns = p.open_ns if operation == Operation.OPEN else p.close_ns
            return arrival_ns + service_ns + int(-p.management_jitter_ns * log(1.0 - self._random()))
        if operation == Operation.RESET:
            service_ns = self._reset_ns(zone, condition, written_sectors)
            if arrival_ns - self._write_until_ns < _BESIDE_NS:
                service_ns = int(service_ns * p.reset_beside_writes)
        elif operation == Operation.FINISH:
            service_ns = self._finish_ns(zone, condition, written_sectors)
        else:  # a flush and conditions set by hand wait for nothing
            return arrival_ns
        start_ns = max(arrival_ns, self._management_free_ns)
        if start_ns > arrival_ns:
            self.waited_ns, self.waited_for = start_ns - arrival_ns, Wait.MANAGEMENT
        self._management_free_ns = start_ns + service_ns
        return self._management_free_ns

    def _reset_ns(self, zone: int, condition: int, written_sectors: int) -> int:
        p = self.parameters
        share = self._finished.pop(zone, None)
        if share is not None and condition == Condition.FULL:
            service_ns = p.reset_ns - p.reset_finished_ns
        else:
            share = min(written_sectors / self._capacity_sectors, 1.0)
            service_ns = p.reset_ns
            if condition != Condition.FULL and written_sectors << SECTOR_SHIFT > _WHOLE_BLOCK_BYTES:
                service_ns += p.reset_active_ns
            if self._random() < p.reset_slow_share:
                service_ns += int(p.reset_slow_ns * share**0.6)
        if share:
            service_ns += p.reset_written_ns + int(p.reset_capacity_ns * share)
        return service_ns

    def _finish_ns(self, zone: int, condition: int, written_sectors: int) -> int:
        p = self.parameters
        if condition in (Condition.EMPTY, Condition.FULL) or written_sectors <= 0:
            share, service_ns = 0.0, p.finish_empty_ns
        else:
            share = min(written_sectors / self._capacity_sectors, 1.0)
            left_bytes = max(self._capacity_sectors - written_sectors, 0) << SECTOR_SHIFT
            padding_ns = left_bytes * p.finish_byte_ns * self._rng.gauss(1.0, p.finish_spread)
            service_ns = p.finish_ns + max(int(padding_ns), 0)
        if condition != Condition.FULL:
            if len(self._finished) >= _FINISHED_MAX:
                self._finished.clear()
            self._finished[zone] = share
        return service_ns
