"""The interface for executing the chains of one queue."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.ring import Chain

#: begin(first, spans): called before a change of zones by one request, or by merged writes. *first* is the index in the
#: batch of the request, or of the first write. *spans*: (sector, nr_sectors) of each merged write; () for one request.
Begin: TypeAlias = Callable[[int, Sequence[tuple[int, int]]], None]


class Deferred:
    """A decoded request that may wait for the host's disk. It is falsy, unlike a number of executed requests.

    It holds the request as it was decoded, because the guest may change the header in its memory meanwhile.
    """

    __slots__ = ("execute",)

    def __init__(self, execute: Callable[[], int]) -> None:
        """*execute* carries the request out, on a thread that may wait; it returns the bytes written into the chain."""
        self.execute = execute

    def __bool__(self) -> Literal[False]:
        """Return False: no request was executed."""
        return False


class Handler(Protocol):
    """Executes the requests of queues, in the order in which each queue passes them."""

    @property
    def plain(self) -> PlainRequests | None:
        """The requests that the walker executes without the handler, or None if there are none."""
        ...

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int | Deferred:
        """Execute one or more requests from ``chains[index]`` on; append the bytes written into each to *lengths*.

        Calls *begin* before every change of a zone. Returns how many requests were executed. If the first of them may
        wait for the host's disk, nothing is executed, and that request is returned.

        If the method raises, the requests whose lengths were appended are done, and the next request has failed.

        Raises:
            BrokenRingError: a chain has no header, or no room for an answer.
        """
        ...

    def execute(self, chain: Chain) -> int:
        """Execute one request, however long it takes; return the bytes written into it.

        Raises:
            BrokenRingError: as :meth:`step`.
        """
        ...

    def fail(self, chain: Chain) -> int:
        """Answer a request that met an internal error; return the bytes written into it.

        Raises:
            BrokenRingError: it has no room for an answer.
        """
        ...

    def refuse_oversized(self, chain: Chain) -> int:
        """Note that a request has more than CHAIN_BYTES_MAX bytes, and answer it as :meth:`fail` does.

        Raises:
            BrokenRingError: it has no room for an answer.
        """
        ...
