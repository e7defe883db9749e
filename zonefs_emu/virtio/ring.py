"""The common part of split and packed rings.

Chains are taken from a ring and given back. A chain is a tuple, because one is made for every request: its token (by
which it is given back), and its readable and writable buffers, in order, as slices of guest memory. Everything in a
ring comes from the guest and is checked: indexes are bounded, addresses are translated, and chains are limited in
descriptors and in bytes. A violation of the standard raises BrokenRingError, which ends that ring only. A chain that is
only too long raises OversizedChainError, which a queue answers with its protocol's error.

A queue gives requests back in the order in which it took them. So the unfinished requests are always one run of the
ring, and recovery after a crash takes that run again without a record of each request. A queue that holds answers
(:mod:`zonefs_emu.virtqueue.timed_virtqueue`) gives them back in another order; a record then has those that are held.

Memory order. A side that sees an index must also see the entries below it. x86 keeps that order of stores, and on other
machines *fence* is called between them. Storing an index and then loading the other side's flag needs a full fence on
every machine.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from zonefs_emu.errors import PeerError
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory

#: token, device-readable buffers, device-writable buffers
Chain: TypeAlias = tuple[int, list[memoryview], list[memoryview]]

#: The most descriptors of a chain, those of indirect tables included: as many buffers as one preadv can move (IOV_MAX).
#: Devices offer fewer (seg_max), but a driver that ignores that offer is served.
CHAIN_DESCRIPTORS_MAX: Final = 1024
#: The most bytes of data that a device may offer to move with one request. Descriptors may name the same memory again
#: and again, so the size of the guest's memory is no limit. With this one, every sum of lengths fits 32 bits (used
#: lengths, SCSI residuals). It is far beyond what drivers send: Linux sends 1.25 MiB unless it is configured otherwise,
#: and the block sizes of benchmarks end at some 64 MiB.
TRANSFER_BYTES_MAX: Final = 1 << 30
#: The most bytes of one chain, readable and writable together: the data, with room for headers and the answer.
CHAIN_BYTES_MAX: Final = TRANSFER_BYTES_MAX + (1 << 16)
#: Source: virtio 1.4, Split Virtqueues: "The maximum Queue Size value is 32768."
QUEUE_SIZE_MAX: Final = 32768

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
DESC_BYTES: Final = 16

Fence: TypeAlias = Callable[[], object]


class BrokenRingError(PeerError):
    """The content of the ring breaks the standard; no further requests are taken from it."""


class OversizedChainError(BrokenRingError):
    """A chain has more than CHAIN_BYTES_MAX bytes. *chain* has been taken from the ring, and can be answered."""

    def __init__(self, chain: Chain) -> None:
        super().__init__(f"a chain has more than {CHAIN_BYTES_MAX} bytes")
        self.chain = chain


class Ring(ABC):
    """The rings of one virtqueue, seen from the device. Not thread safe.

    The initialisers of both kinds take *fence*, a full memory fence, and *ordered*: loads and stores of this machine
    keep their order, except that a load may pass an earlier store (x86). While dirty pages are logged, *logged* has the
    (guest address, bytes) that each request may write, by token; otherwise it is None.
    """

    size: int
    memory: GuestMemory
    logged: dict[int, list[tuple[int, int]]] | None

    @abstractmethod
    def pop(self, limit: int) -> Sequence[Chain]:
        """Take up to *limit* chains that the driver has made available.

        Raises:
            OversizedChainError: the next chain is too long; it alone has been taken.
            BrokenRingError: a chain or the available index breaks the standard; chains taken before it are lost.
        """

    @abstractmethod
    def push(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        """Give *chains* back and show them to the driver; *lengths*: bytes written into each.

        They are the oldest chains that were taken, in order, except in a queue that holds answers.
        """

    @abstractmethod
    def needs_call(self) -> bool:
        """Return whether the driver wants a notification of the chains that were given back since the last call."""

    @abstractmethod
    def sleep(self) -> bool:
        """Ask the driver to kick for the next request; return whether a request is there already."""

    @abstractmethod
    def wake(self) -> None:
        """Tell the driver that it need not kick."""

    @abstractmethod
    def has_work(self) -> bool:
        """Say whether the driver has made a chain available."""

    @property
    @abstractmethod
    def nr_available(self) -> int:
        """The chains that the driver has made available, or their descriptors, as far as is known without taking them.

        A driver that breaks the rules can make it any number.
        """

    @property
    @abstractmethod
    def base(self) -> int:
        """The answer to GET_VRING_BASE: the position to continue from."""


def check_size(size: int, *, power_of_two: bool) -> None:
    """Raise BrokenRingError unless *size* is a queue size.

    Source: virtio 1.4, Split Virtqueues: "Queue Size value is always a power of 2." Packed rings may have any size up
    to 2^15.
    """
    if not 0 < size <= QUEUE_SIZE_MAX or (power_of_two and size & (size - 1)):
        message = f"a queue cannot have {size} entries"
        raise BrokenRingError(message)


def check_bytes(chain: Chain, descriptors: Sequence[tuple[int, int, int]]) -> None:
    """Raise OversizedChainError if the *descriptors* of *chain* (guest address, bytes, flags) have too many bytes."""
    if sum([length for _, length, _ in descriptors]) > CHAIN_BYTES_MAX:
        raise OversizedChainError(chain)


def check_descriptors(count: int) -> None:
    """Raise BrokenRingError if *count* descriptors are too many for a chain."""
    if count > CHAIN_DESCRIPTORS_MAX:
        message = f"a chain has more than {CHAIN_DESCRIPTORS_MAX} descriptors"
        raise BrokenRingError(message)


def check_table(length: int) -> None:
    """Raise BrokenRingError unless *length* bytes are an indirect table: whole descriptors, and not too many."""
    if length % DESC_BYTES or not 0 < length <= CHAIN_DESCRIPTORS_MAX * DESC_BYTES:
        message = f"an indirect table of {length} bytes is not 1 to {CHAIN_DESCRIPTORS_MAX} whole descriptors"
        raise BrokenRingError(message)


def read_table(memory: GuestMemory, address: int, length: int) -> bytes:
    """Return the indirect table of *length* bytes at guest *address*.

    Raises:
        BrokenRingError: the length is not that of a table (:func:`check_table`), or not all of it is memory.
    """
    check_table(length)
    try:
        return memory.read(address, length)
    except BadAddressError as error:
        raise BrokenRingError(str(error)) from None
