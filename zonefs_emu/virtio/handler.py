"""What executes the chains of one queue, as a transport sees it."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from zonefs_emu.virtio.ring import Chain

#: begin(first, spans): the requests from the *first* of the batch on are executed now, as one change. spans: (sector,
#: nr_sectors) of each if they are several writes merged into one, () if it is one request.
Begin: TypeAlias = Callable[[int, Sequence[tuple[int, int]]], None]


class Handler(Protocol):
    """Executes requests in order."""

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int:
        """Execute one or more requests from ``chains[index]`` on; append the bytes written into each to *lengths*.

        Calls *begin* before whatever may change a zone. Returns how many were executed; 0 if the next one may wait for
        the host's disk: then :meth:`execute` is called for it, on a thread that may wait.

        Raises:
            BrokenRingError: a chain that cannot even be answered.
        """
        ...

    def execute(self, chain: Chain) -> int:
        """Execute one request, however long it takes; return the bytes written into it.

        Raises:
            BrokenRingError: as :meth:`step`.
        """
        ...


def gather(buffers: Sequence[memoryview], offset: int, length: int) -> bytes:
    """Return *length* bytes from *offset* on of *buffers* taken as one; fewer if they end before."""
    return b"".join(carve(buffers, offset, offset + length))


def carve(buffers: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """Return the bytes from *start* up to *end* of *buffers* taken as one, as slices."""
    found: list[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if start < size and end > 0:
            found.append(buffer[max(start, 0) : min(end, size)])
        start -= size
        end -= size
        if end <= 0:
            break
    return found


def scatter(buffers: Sequence[memoryview], offset: int, data: bytes | bytearray) -> None:
    """Store *data* at *offset* of *buffers* taken as one; they must have room for it."""
    done = 0
    for part in carve(buffers, offset, offset + len(data)):
        part[:] = data[done : done + len(part)]
        done += len(part)


def total_bytes(buffers: Sequence[memoryview]) -> int:
    """Return the bytes in *buffers*."""
    return len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
