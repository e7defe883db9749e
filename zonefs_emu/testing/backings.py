"""Backings without a file: in memory, failing on demand, and one that computes what a power cut could leave.

The model of a power cut: what was written before the last completed sync is there; of what was written since, any set
of 512-byte sectors is there, in any combination, the rest is as it was before.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from zonefs_emu.units import SECTOR_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BLOCK_BYTES: Final = 4096
_ZEROS: Final = bytes(_BLOCK_BYTES)
#: One sector's write: (offset, data), the offset in bytes.
Piece: TypeAlias = tuple[int, bytes]


class MemoryBacking:
    """A file in memory. A second backing of the same *memory* stands for a later process that opens the file."""

    def __init__(self, memory: bytearray) -> None:
        """Use *memory* in place; its other users may not resize it."""
        self.memory = memory
        self.preadv: Callable[[Sequence[Buffer], int], int] = self._preadv
        self.pwritev: Callable[[Sequence[Buffer], int], int] = self._pwritev
        self.is_closed = False

    @property
    def length(self) -> int:
        """Length in bytes."""
        return len(self.memory)

    @property
    def permissions(self) -> int:
        """Permission bits of the file that it stands for."""
        return 0o600

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to *length* bytes."""
        with memoryview(self.memory) as memory:
            return bytes(memory[offset : offset + length])

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of *data*."""
        assert offset + len(data) <= len(self.memory)
        self.memory[offset : offset + len(data)] = data

    def sync(self) -> None:
        """Do nothing: memory has no cache that could be synced."""

    def punch(self, offset: int, length: int) -> None:
        """Turn the range into zeros."""
        MemoryBacking.pwrite(self, bytes(length), offset)

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the runs of blocks between *start* and *end* that are not all zeros."""
        run = start
        for offset in range(start, end, _BLOCK_BYTES):
            block = self.memory[offset : min(offset + _BLOCK_BYTES, end)]
            if block == _ZEROS[: len(block)]:
                if run < offset:
                    yield run, offset - run
                run = min(offset + _BLOCK_BYTES, end)
        if run < end:
            yield run, end - run

    def reserve(self, offset: int, length: int) -> None:
        """Do nothing: all memory is there."""

    def resize(self, length: int) -> None:
        """Cut the memory to *length*, or add zeros up to it."""
        del self.memory[length:]
        self.memory.extend(bytes(length - len(self.memory)))

    def map(self, offset: int, length: int, lost: Callable[[], None] | None = None) -> memoryview:  # noqa: ARG002  (cannot be lost)
        """Return the range itself."""
        return memoryview(self.memory)[offset : offset + length]

    def close(self) -> None:
        """Note that the backing is not used any more."""
        self.is_closed = True

    def _preadv(self, buffers: Sequence["Buffer"], offset: int) -> int:
        done = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            data = self.pread(len(view), offset + done)
            view[: len(data)] = data
            done += len(data)
        return done

    def _pwritev(self, buffers: Sequence["Buffer"], offset: int) -> int:
        data = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
        self.pwrite(data, offset)
        return len(data)


class FailingBacking(MemoryBacking):
    """Memory whose *fail_at*-th call that writes or syncs (from 1), and with *lasting* every later one, fails.

    A write that fails has written its first half, in whole sectors. *calls* counts the calls, so that a first run that
    never fails tells how many places there are to fail at.
    """

    def __init__(self, memory: bytearray, *, fail_at: int = 0, errno: int = 5, lasting: bool = False) -> None:
        """Fail with *errno*, by default EIO; *fail_at* 0 never fails."""
        super().__init__(memory)
        self.calls = 0
        self.fail_at = fail_at
        self.failed: list[str] = []
        self._errno = errno
        self._lasting = lasting

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of *data*, or half of it and fail."""
        if self._fails("write"):
            half = len(data) // 2 // SECTOR_BYTES * SECTOR_BYTES
            super().pwrite(data[:half], offset)
            self._raise()
        super().pwrite(data, offset)

    def sync(self) -> None:
        """Do nothing, or fail."""
        if self._fails("sync"):
            self._raise()

    def punch(self, offset: int, length: int) -> None:
        """Turn the range into zeros, or fail."""
        if self._fails("punch"):
            self._raise()
        super().punch(offset, length)

    def _fails(self, kind: str) -> bool:
        self.calls += 1
        fails = self.calls == self.fail_at or (self._lasting and 0 < self.fail_at < self.calls)
        if fails:
            self.failed.append(kind)
        return fails

    def _raise(self) -> None:
        raise OSError(self._errno, os.strerror(self._errno))


class EventKind(Enum):
    """The kinds of events that :class:`CrashBacking` logs."""

    WRITE = "write"
    SYNC = "sync"
    PUNCH = "punch"
    RESIZE = "resize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One call: *data* was written at *offset* (a punch writes zeros). *offset* of a RESIZE is the new length."""

    kind: EventKind
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerCut:
    """A result of a power cut: a possible *content* of the file if the power is cut after *position* events."""

    position: int
    content: bytearray


class CrashBacking(MemoryBacking):
    """Memory with a log of what was written and synced since it was made, from which :meth:`power_cuts` are derived.

    Stores to mapped memory are not logged: nothing may rely on them after a power cut.
    """

    def __init__(self, memory: bytearray) -> None:
        """Start with *memory* durable."""
        super().__init__(memory)
        self.initial = bytes(memory)
        self.events: list[Event] = []

    @property
    def position(self) -> int:
        """Number of events so far."""
        return len(self.events)

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of *data*; it is not durable yet."""
        self.events.append(Event(kind=EventKind.WRITE, offset=offset, data=bytes(data)))
        super().pwrite(data, offset)

    def sync(self) -> None:
        """Make everything written so far durable."""
        self.events.append(Event(kind=EventKind.SYNC))

    def punch(self, offset: int, length: int) -> None:
        """Turn the range into zeros; not durable yet."""
        self.events.append(Event(kind=EventKind.PUNCH, offset=offset, data=bytes(length)))
        super().punch(offset, length)

    def resize(self, length: int) -> None:
        """Cut the memory or add to it, which is durable at once, so the caller must have synced."""
        self.events.append(Event(kind=EventKind.RESIZE, offset=length))
        super().resize(length)

    def power_cuts(self, rng: random.Random, *, limit: int) -> Iterator[PowerCut]:
        """Yield what power cuts may leave: at each sync, resize and at the end, up to *limit* sets of unsynced sectors.

        All sets where there are no more than *limit*; else the extremes (none, all, all but one, one alone, each
        prefix) and sets drawn with *rng*. Any set at an earlier position is one of those at the next sync.
        """
        durable = bytearray(self.initial)
        pending: list[Piece] = []
        for position, event in enumerate((*self.events, Event(kind=EventKind.SYNC))):
            if event.kind not in (EventKind.SYNC, EventKind.RESIZE):
                pending.extend(_pieces(event))
                continue
            for chosen in _subsets(pending, rng, limit):
                yield PowerCut(position=position, content=_apply(bytearray(durable), chosen))
            _apply(durable, pending)
            pending.clear()
            if event.kind is EventKind.RESIZE:
                MemoryBacking(durable).resize(event.offset)


def _pieces(event: Event) -> Iterator[Piece]:
    """Yield the parts of a write that are in one sector each."""
    start, end = event.offset, event.offset + len(event.data)
    while start < end:
        stop = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        yield start, event.data[start - event.offset : stop - event.offset]
        start = stop


def _apply(content: bytearray, pieces: Sequence[Piece]) -> bytearray:
    for offset, data in pieces:
        content[offset : offset + len(data)] = data
    return content


def _subsets(pieces: Sequence[Piece], rng: random.Random, limit: int) -> Iterator[list[Piece]]:
    """Yield subsets of *pieces*, each in the order of writing: all, or *limit* of them with the extremes first."""
    count = len(pieces)
    full = (1 << count) - 1
    if full < limit:
        masks: Iterator[int] = iter(range(full + 1))
    else:
        masks = _drawn_masks(count, full, rng, limit)
    for mask in masks:
        yield [piece for index, piece in enumerate(pieces) if mask >> index & 1]


def _drawn_masks(count: int, full: int, rng: random.Random, limit: int) -> Iterator[int]:
    seen = {0, full}
    extremes = [mask for bit in range(count) for mask in (full ^ (1 << bit), 1 << bit, (1 << bit) - 1)]
    rng.shuffle(extremes)
    seen.update(extremes[: limit // 2])
    while len(seen) < limit:
        # Of every density: few sectors lost, few kept, half of them.
        density = rng.choice((0.1, 0.5, 0.9))
        seen.add(sum((rng.random() < density) << bit for bit in range(count)))
    yield from sorted(seen)
