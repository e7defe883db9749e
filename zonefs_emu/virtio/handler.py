"""The interface for executing the chains of one queue."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.ring import Chain

#: begin(first, spans): called before the requests from the *first* of the batch on are executed as one change. spans:
#: (sector, nr_sectors) of each if they are merged writes, () for one request.
Begin: TypeAlias = Callable[[int, Sequence[tuple[int, int]]], None]


class Deferred:
    """A request that was decoded and may wait for the host's disk. Falsy, unlike a number of executed requests.

    The decoded request is executed, because the guest may change its header meanwhile.
    """

    __slots__ = ("execute",)

    def __init__(self, execute: Callable[[], int]) -> None:
        """*execute* carries the request out on a thread that may wait; it returns the bytes written into it."""
        self.execute = execute

    def __bool__(self) -> Literal[False]:
        """Return False: no request was executed."""
        return False


class Handler(Protocol):
    """Executes requests in order."""

    @property
    def plain(self) -> PlainRequests | None:
        """The requests that the walker executes without the handler, or None if there are none."""
        ...

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int | Deferred:
        """Execute one or more requests from ``chains[index]`` on; append the bytes written into each to *lengths*.

        Calls *begin* before every change of a zone. Returns how many requests were executed, or the next request if
        that may wait for the host's disk.

        If it raises, the requests whose lengths were appended are done, and the next one is the one that failed.

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

    def fail(self, chain: Chain) -> int:
        """Answer a request that met an internal error; return the bytes written into it.

        Raises:
            BrokenRingError: it has no room for an answer.
        """
        ...

    def refuse_oversized(self, chain: Chain) -> int:
        """Note that a request is longer than CHAIN_BYTES_MAX, and answer it as :meth:`fail` does.

        Raises:
            BrokenRingError: it has no room for an answer.
        """
        ...
