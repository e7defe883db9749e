"""The state of a drive and the positions of its queues, in memory that outlives its process.

The keeper (:mod:`keeper`) owns the memory and does not read it. A drive that takes over learns from it, and from the
completion queues in guest memory, which commands were answered. The intents of the others are in the records of their
queues, and so are the answers that are held (:mod:`zonefs_emu.inflight.holding_record`).

::

    offset 0x0000  words of 8 bytes: which state counts, 0 for none; then of each completion queue: tail << 1 | phase
           0x1000  two places for a state of STATE_BYTES: its length in 8 bytes, and JSON
           0x9000  the record of each I/O submission queue

A state is stored in the place that does not count, and one store then makes it count. A kill between any two stores
leaves the old state or the new one.
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypedDict
from uuid import UUID

from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.nvme.controller import IO_QUEUES_MAX, QUEUE_ENTRIES_MAX, ControllerState

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Changes with what a state has, with the layout of this memory, and with what a keeper and its daemon say.
VERSION: Final = 5
_WORDS_BYTES: Final = 0x1000
STATE_BYTES: Final = 0x4000
_NR_PLACES: Final = 2
_RINGS: Final = _WORDS_BYTES + _NR_PLACES * STATE_BYTES
_RING_BYTES: Final = record_bytes(QUEUE_ENTRIES_MAX + 1)
RECORD_BYTES: Final = _RINGS + IO_QUEUES_MAX * _RING_BYTES
_LENGTH_BYTES: Final = 8
#: Word 0 says which state counts; the words of the completion queues follow it.
_TAILS: Final = 1


class Identity(TypedDict):
    """The identity of a drive and the version of this record. A drive that differs in them must not take over."""

    version: int
    nqn: str
    serial: str
    #: A digest of the UUIDs of all images in their order: a drive may have any number of them.
    images: str


def identity_of(nqn: str, serial: str, uuids: Iterable[UUID]) -> Identity:
    """Return the identity of a drive whose namespaces are the images *uuids*."""
    return Identity(
        version=VERSION, nqn=nqn, serial=serial, images=sha256(b"".join(uuid.bytes for uuid in uuids)).hexdigest()
    )


class Completion(TypedDict):
    """A completion of the admin queue. *tail* is the word of the queue before the completion is posted."""

    tail: int
    result: int
    cid: int
    status_field: int


class QueuesState(TypedDict):
    """The queues: number, base, size, and vector or completion queue of each; and the head of the admin queue."""

    cqs: list[tuple[int, int, int, int]]
    sqs: list[tuple[int, int, int, int]]
    shadow: tuple[int, int] | None
    admin_head: int


class DriveState(QueuesState):
    """The settings of a guest."""

    identity: Identity
    cntlid: int
    controller: ControllerState
    nr_resets: int
    cc: int
    is_fatal: bool
    #: The last completion of the admin queue, which may not be posted yet.
    completion: Completion | None


class DriveRecord:
    """The memory; *buffer* has :data:`RECORD_BYTES`, zero at first."""

    def __init__(self, buffer: "Buffer") -> None:
        self._bytes = memoryview(buffer).cast("B")
        assert len(self._bytes) == RECORD_BYTES
        self._words = self._bytes[:_WORDS_BYTES].cast("Q")
        #: The word of each completion queue, by its number.
        self.tails = self._words[_TAILS : _TAILS + IO_QUEUES_MAX + 1]

    def save(self, state: DriveState) -> None:
        """Store *state* and make it count."""
        data = json.dumps(state).encode()
        assert len(data) <= STATE_BYTES - _LENGTH_BYTES, f"a state of {len(data)} bytes"
        place = self._words[0] % _NR_PLACES
        at = _WORDS_BYTES + place * STATE_BYTES
        self._bytes[at + _LENGTH_BYTES : at + _LENGTH_BYTES + len(data)] = data
        self._bytes[at : at + _LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
        self._words[0] = place + 1

    def load(self) -> DriveState | None:
        """Return the state that counts; None if there is none yet."""
        counting = self._words[0]
        if not counting:
            return None
        at = _WORDS_BYTES + (counting - 1) * STATE_BYTES
        length = int.from_bytes(self._bytes[at : at + _LENGTH_BYTES], "little")
        state: DriveState = json.loads(bytes(self._bytes[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length]))
        return state

    def new_ring(self, number: int, size: int) -> HoldingRecord:
        """Return the record of a new I/O submission queue."""
        memory = self.ring_memory(number, size)
        memory[:_LENGTH_BYTES] = bytes(_LENGTH_BYTES)  # a record of an earlier queue does not count
        ring = HoldingRecord(memory, size, packed=False)
        ring.start_split(0)
        return ring

    def ring(self, number: int, size: int) -> HoldingRecord:
        """Return the record of an I/O submission queue that an earlier process has served, to be started."""
        return HoldingRecord(self.ring_memory(number, size), size, packed=False)

    def ring_memory(self, number: int, size: int) -> memoryview:
        """Return the memory of the record of an I/O submission queue."""
        at = _RINGS + (number - 1) * _RING_BYTES
        return self._bytes[at : at + record_bytes(size)]
