"""The dies of a zoned SSD, the write buffer in front of them, and how reads pass the programs that empty it."""

from collections import deque
from heapq import heappop, heappush, heapreplace
from random import Random
from typing import Final

from zonefs_emu.model.timing.bus import Bus
from zonefs_emu.model.timing.parameters import FlashParameters

#: Later than any time.
_NEVER_NS: Final = 1 << 63


class _Die:
    """One die: what it does now, and the programs that wait for it.

    From *origin_ns* on, the die executes *slices* slices of a program, each of the model's slice time. Reads whose end
    was computed lie before *origin_ns*; *reads* of them came since the last slice. *waiting* has the slices of further
    programs.
    """

    __slots__ = ("channel", "has_end", "origin_ns", "reads", "slices", "waiting")

    def __init__(self, channel: Bus) -> None:
        self.channel = channel
        self.has_end = False  # whether it is in the heap of ends
        self.origin_ns = 0
        self.slices = 0
        self.reads = 0
        self.waiting: deque[int] = deque()


class Nand:
    """Dies on channels, and the write buffer.

    No simulation runs in the background: each call computes what has happened until its time, and what it adds. A write
    that has to wait for room looks ahead to the end of as many programs as that takes. A read that comes meanwhile
    finds the dies as they will be then: if its die has begun another program by then, the read waits for that begin.
    An exact order would need answers that change after they were given.
    """

    def __init__(self, parameters: FlashParameters, random: Random) -> None:
        p = parameters
        self._random = random.random
        self._slice_ns = p.slice_ns
        self._program_bytes = p.program_bytes
        self._programs_per_die = p.programs_per_die
        self._program_slices = p.program_slices
        self._spread = p.program_spread
        self._reads_between = p.reads_between_slices
        self._interrupt_ns = p.interrupt_ns
        self._interrupt_more_ns = p.interrupt_more_ns
        self._row_bytes = p.row_bytes
        self._row_slices = p.row_slices
        self._row_share = p.row_share
        self._housekeeping_bytes = p.housekeeping_bytes
        self._housekeeping_slices = p.housekeeping_slices
        self._buffer_bytes = p.buffer_bytes
        self._channels = [Bus() for _ in range(p.nr_channels)]
        #: The number of dies.
        self.nr_dies = p.nr_channels * p.dies_per_channel
        self._dies = [_Die(self._channels[number % p.nr_channels]) for number in range(self.nr_dies)]
        # A heap of (time, number of a die). The program of that die ends then or later, because a read or the next
        # program came since. Each die that executes a program is in the heap once, and others may be.
        self._ends: list[tuple[int, int]] = []
        self._next_die = 0  # the die that gets the next program
        self._next_count = 0  # how many it has got in a row
        #: Bytes in the write buffer, as of the last write that found it full or the last program that began.
        self._buffered_bytes = 0
        self._filling_bytes = 0  # of those, what no program has taken yet
        self._until_row_bytes = p.row_bytes
        self._until_housekeeping_bytes = p.housekeeping_bytes
        #: Nanoseconds that the last read or write waited, for a die or for room in the buffer.
        self.waited_ns = 0
        #: Nanoseconds of dies' work that were begun: reads and slices.
        self.busy_ns = 0

    def forget(self, before_ns: int) -> None:
        """Note that no later request arrives before *before_ns*."""
        for channel in self._channels:
            channel.forget(before_ns)

    def store(self, now_ns: int, nr_bytes: int) -> int:
        """Take *nr_bytes* into the buffer at *now_ns* or when there is room, and return when that was."""
        program_bytes = self._program_bytes
        begin_ns = now_ns
        while nr_bytes:
            piece = nr_bytes if nr_bytes < program_bytes else program_bytes
            nr_bytes -= piece
            if self._buffered_bytes + piece > self._buffer_bytes:
                now_ns = self._make_room(now_ns, piece)
            self._buffered_bytes += piece
            self._filling_bytes += piece
            if self._filling_bytes >= program_bytes:
                self._filling_bytes -= program_bytes
                self._begin_program(now_ns)
        self.waited_ns = now_ns - begin_ns
        return now_ns

    def read(self, number: int, now_ns: int, read_ns: int, transfer_ns: int) -> int:
        """Read from die *number*: *read_ns* in the die, then *transfer_ns* on its channel. Returns when that ends."""
        die = self._dies[number]
        if die.slices:
            self._catch_up(die, now_ns)
        start_ns = die.origin_ns
        after_ns = 0  # until the program goes on
        if die.slices:
            if now_ns > start_ns:
                # A slice is under way: it ends first.
                after_ns = self._run_slices(die, -(-(now_ns - start_ns) // self._slice_ns))
                start_ns = die.origin_ns
            elif die.reads < self._reads_between:
                die.reads += 1
                after_ns = self._interrupt_more_ns
            else:
                after_ns = self._run_slices(die, 1)
                start_ns = die.origin_ns
        elif now_ns > start_ns:
            start_ns = now_ns
        self.waited_ns = start_ns - now_ns
        self.busy_ns += read_ns
        end_ns = die.origin_ns = die.channel.transfer(start_ns + read_ns, transfer_ns)
        die.origin_ns += after_ns
        return end_ns

    def _run_slices(self, die: _Die, count: int) -> int:
        """Let *count* slices of *die* pass, at most those of its program; a read follows.

        Returns the die's added time after the read if it interrupts a program: this one, or the next that has waited
        for the die.
        """
        count = min(count, die.slices)
        die.origin_ns += count * self._slice_ns
        die.slices -= count
        if not die.slices:
            self._end_program(die, die.origin_ns)
        die.reads = 1
        return self._interrupt_ns if die.slices else 0

    def _end_program(self, die: _Die, end_ns: int) -> None:
        """End the program of *die* at *end_ns*; the next one that waits begins."""
        self._buffered_bytes -= self._program_bytes
        die.origin_ns = end_ns
        die.slices = die.waiting.popleft() if die.waiting else 0
        die.reads = 0

    def _catch_up(self, die: _Die, now_ns: int) -> None:
        """End the programs of *die* that end until *now_ns*."""
        while die.slices and (end_ns := die.origin_ns + die.slices * self._slice_ns) <= now_ns:
            self._end_program(die, end_ns)

    def _make_room(self, now_ns: int, nr_bytes: int) -> int:
        """Return when *nr_bytes* fit into the buffer: after as many programs as that takes."""
        limit = self._buffer_bytes - nr_bytes
        while self._buffered_bytes > limit:
            end_ns = self._first_end_ns()
            if end_ns > now_ns:
                now_ns = end_ns
            # All of them, because the next write may come earlier than this one has room.
            while end_ns <= now_ns:
                self._end_program(self._dies[self._ends[0][1]], end_ns)
                end_ns = self._first_end_ns()
        return now_ns

    def _first_end_ns(self) -> int:
        """Return when the first of the running programs ends; its die is then at the head of the heap."""
        ends, slice_ns = self._ends, self._slice_ns
        while ends:
            noted_ns, number = ends[0]
            die = self._dies[number]
            if not die.slices:
                heappop(ends)
                die.has_end = False
                continue
            end_ns = die.origin_ns + die.slices * slice_ns
            if end_ns == noted_ns:
                return end_ns
            heapreplace(ends, (end_ns, number))
        return _NEVER_NS

    def _begin_program(self, now_ns: int) -> None:
        """Give a program to the die whose turn it is."""
        number = self._next_die
        die = self._dies[number]
        self._next_count += 1
        if self._next_count == self._programs_per_die:
            self._next_count = 0
            self._next_die = (number + 1) % self.nr_dies
        if die.slices:
            self._catch_up(die, now_ns)
        factor = 1 + self._spread * (2 * self._random() - 1)
        # Rounded up or down at random, so that the mean is kept.
        slices = int(self._program_slices * factor + self._random())
        if slices < 1:
            slices = 1
        self.busy_ns += slices * self._slice_ns
        if die.slices:
            die.waiting.append(slices)
        else:
            if now_ns > die.origin_ns:
                die.origin_ns = now_ns
            die.slices = slices
            if not die.has_end:
                die.has_end = True
                heappush(self._ends, (die.origin_ns, number))
        self._until_row_bytes -= self._program_bytes
        if self._until_row_bytes <= 0:
            self._until_row_bytes += self._row_bytes
            self._pause(now_ns, self._row_slices, self._row_share)
        self._until_housekeeping_bytes -= self._program_bytes
        if self._until_housekeeping_bytes <= 0:
            self._until_housekeeping_bytes += self._housekeeping_bytes
            self._pause(now_ns, self._housekeeping_slices, 1.0)

    def _pause(self, now_ns: int, slices: int, share: float) -> None:
        """Lengthen the programs that run on a *share* of the dies by *slices*."""
        for die in self._dies:
            self._catch_up(die, now_ns)
            if die.slices and self._random() < share:
                die.slices += slices
                self.busy_ns += slices * self._slice_ns
