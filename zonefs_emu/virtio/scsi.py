"""The virtio SCSI host: the frames of virtio for requests, task management and events, around a SCSI target.

May not know: rings, sockets, the effect of commands.

Queue 0 is the control queue, queue 1 the event queue, and all others take requests.

Source: virtio 1.4, "SCSI Host Device".
"""

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

from zonefs_emu.device.buffers import carve, gather, scatter, total_bytes
from zonefs_emu.scsi.cdb import Cdb, Command, parse
from zonefs_emu.scsi.result import DataIn, DataOut, ScsiResult
from zonefs_emu.scsi.rules import HostRule
from zonefs_emu.scsi.target import TaskResponse, decode_lun
from zonefs_emu.virtio.handler import Begin, Deferred
from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.ring import BrokenRingError, Chain

DEVICE_ID: Final = 8

F_CHANGE: Final = 1 << 2

CDB_BYTES: Final = 32
SENSE_BYTES: Final = 96
#: lun, id, task attribute, priority, crn; then the CDB
_REQUEST: Final = struct.Struct("<8sQBBB")
_LUN_BYTES: Final = 8
_CDB_AT: Final = _REQUEST.size
REQUEST_BYTES: Final = _CDB_AT + CDB_BYTES
#: sense length, residual, status qualifier, status, response; then the sense data
_RESPONSE: Final = struct.Struct("<IIHBB")
RESPONSE_BYTES: Final = _RESPONSE.size + SENSE_BYTES
_GOOD: Final = bytes(_RESPONSE.size)
_PUT_HEAD: Final = struct.Struct(f"{_RESPONSE.size}s").pack_into

_TASK_MANAGEMENT: Final = struct.Struct("<II8sQ")
_ASYNC_REQUEST: Final = struct.Struct("<I8sI")
_ASYNC_RESPONSE: Final = struct.Struct("<IB")
_EVENT: Final = struct.Struct("<I8sI")

T_TMF: Final = 0
T_AN_QUERY: Final = 1
T_AN_SUBSCRIBE: Final = 2
EVENT_PARAM_CHANGE: Final = 3
#: ASC 2Ah, ASCQ 09h: "CAPACITY DATA HAS CHANGED", after which Linux reads the disk's parameters again.
REASON_CAPACITY_CHANGED: Final = 0x2A | 0x09 << 8

#: The most LUN fields that are remembered with the LUN that they address.
_LUNS_MAX: Final = 256
#: The result of decode_address for a target that the host does not have.
_NO_TARGET: Final = -2


class Response(IntEnum):
    """The response field: the result of a request, apart from the SCSI status. Source: virtio 1.4, VIRTIO_SCSI_S_*."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


#: The response to a request that breaks a rule of the host.
RESPONSE_OF_RULE: Final[Mapping[HostRule, Response]] = MappingProxyType(
    {
        HostRule.VSCSI_OVERRUN: Response.OVERRUN,
        HostRule.VSCSI_TARGET: Response.BAD_TARGET,
        HostRule.VSCSI_TASK: Response.FUNCTION_REJECTED,
        HostRule.VSCSI_TASK_LUN: Response.INCORRECT_LUN,
        HostRule.VSCSI_OVERSIZED: Response.FAILURE,
    }
)


class Target(Protocol):
    """The part of :class:`zonefs_emu.scsi.target.Target` that the host uses."""

    def execute_parsed(self, lun: int, command: Command, cdb: Cdb, data_out: DataOut, data_in: DataIn) -> ScsiResult:
        """Execute *command*, which was parsed from *cdb*."""
        ...

    def may_block(self, lun: int, command: Command) -> bool:
        """Say whether *command* may wait for the host's disk, or copies data for milliseconds."""
        ...

    def manage_task(self, function: int, lun: int) -> TaskResponse:
        """Carry out a task management function."""
        ...

    def no_target(self, cdb: Cdb | None) -> None:
        """Note a request to a target that does not exist: the command of *cdb*, or (None) task management."""
        ...

    def refuse_oversized(self, nr_bytes: int) -> None:
        """Note a request with *nr_bytes* of buffers, which are too many."""
        ...


def decode_address(field: bytes) -> int:
    """Return the LUN in the 8-byte field of a request.

    Returns -1 (NO_LUN) if no logical unit can be there, -2 if the host has no such target. The *field* of a request
    that is cut short has fewer bytes.

    Source: virtio 1.4, SCSI Host Device: "first byte set to 1, second byte set to target, third and fourth byte
    representing a single level LUN structure, followed by four zero bytes", or C1h 01h and six zero bytes for the
    REPORT LUNS well-known logical unit.
    """
    if field[:1] == b"\x01":
        return _NO_TARGET if field[1:2] != b"\0" else decode_lun(field[2:8] + bytes(2))
    if field[:2] == b"\xc1\x01":
        return decode_lun(field)
    return _NO_TARGET


class RequestQueue:
    """The request queues: a :class:`zonefs_emu.virtio.handler.Handler`."""

    def __init__(self, target: Target, plain: PlainRequests | None = None) -> None:
        """Hand commands to *target*; *plain* are those that a compiled ring walker may execute."""
        self.plain = plain
        self._may_block = target.may_block
        self._target_execute = target.execute_parsed
        self._no_target = target.no_target
        self._refuse_oversized = target.refuse_oversized
        self._luns: dict[bytes, int] = {}

    def _lun(self, field: bytes) -> int:
        """Return the LUN that *field* addresses, and remember it for the next request."""
        lun = decode_address(field)
        if len(self._luns) < _LUNS_MAX:
            self._luns[field] = lun
        return lun

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int | Deferred:
        """Execute the request at ``chains[index]``; see :meth:`Handler.step`."""
        chain = chains[index]
        readable = chain[1]
        # Copied and parsed once, because the guest may change its memory between the checks and the execution.
        if readable and len(readable[0]) == REQUEST_BYTES:
            head = bytes(readable[0])
        else:
            head = gather(readable, 0, REQUEST_BYTES)
        lun = self._luns.get(head[:_LUN_BYTES])
        if lun is None:
            lun = self._lun(head[:_LUN_BYTES])
        cdb = head[_CDB_AT:]
        command = parse(cdb)
        if len(head) == REQUEST_BYTES and self._may_block(lun, command):
            return Deferred(partial(self._execute, chain, lun, command, cdb))
        begin(index, ())
        lengths.append(self._execute(chain, lun, command, cdb))
        return 1

    def execute(self, chain: Chain) -> int:
        """Execute one request; see :meth:`Handler.execute`."""
        head = gather(chain[1], 0, REQUEST_BYTES)
        cdb = head[_CDB_AT:]
        return self._execute(chain, self._lun(head[:_LUN_BYTES]), parse(cdb), cdb)

    def _execute(self, chain: Chain, lun: int, command: Command, cdb: bytes) -> int:
        _, readable, writable = chain
        if (
            len(cdb) == CDB_BYTES
            and len(readable[0]) == REQUEST_BYTES
            and writable
            and len(writable[0]) == RESPONSE_BYTES
        ):
            data_out, data_in = readable[1:], writable[1:]
            room = RESPONSE_BYTES + sum(map(len, data_in)) if data_in else RESPONSE_BYTES
        else:
            data_out = carve(readable, REQUEST_BYTES, total_bytes(readable))
            room = total_bytes(writable)
            if len(cdb) < CDB_BYTES or room < RESPONSE_BYTES:
                nr_bytes = min(total_bytes(readable), REQUEST_BYTES)
                message = (
                    f"a request has {nr_bytes} bytes of header and {room} bytes for the answer, which is too little"
                )
                raise BrokenRingError(message)
            data_in = carve(writable, RESPONSE_BYTES, room)
        if lun == _NO_TARGET:
            self._no_target(cdb)
            return self._answer(writable, _RESPONSE.pack(0, 0, 0, 0, Response.BAD_TARGET), b"")
        status, sense, residual, overrun = self._target_execute(lun, command, cdb, data_out, data_in)
        if overrun:
            # VIRTIO_SCSI_S_OVERRUN: "if the content of the CDB [...] requires more data than is available in the datain
            # and dataout buffers".
            return self._answer(writable, _RESPONSE.pack(0, residual, 0, 0, Response.OVERRUN), b"")
        if not status and not residual:
            if len(writable[0]) >= RESPONSE_BYTES:
                _PUT_HEAD(writable[0], 0, _GOOD)
            else:
                scatter(writable, 0, _GOOD)
            return room
        length = min(len(sense), SENSE_BYTES)
        self._answer(writable, _RESPONSE.pack(length, residual, 0, status, Response.OK), sense[:length])
        return room

    @staticmethod
    def _answer(writable: Sequence[memoryview], head: bytes, sense: bytes) -> int:
        scatter(writable, 0, head + sense)
        return RESPONSE_BYTES

    def fail(self, chain: Chain) -> int:
        """Answer FAILURE; see :meth:`Handler.fail`."""
        writable = chain[2]
        room = total_bytes(writable)
        if room < RESPONSE_BYTES:
            message = f"a request has {room} bytes for the answer, which is too little"
            raise BrokenRingError(message)
        return self._answer(writable, _RESPONSE.pack(0, 0, 0, 0, Response.FAILURE), b"")

    def refuse_oversized(self, chain: Chain) -> int:
        """Refuse a request that is too long; see :meth:`Handler.refuse_oversized`."""
        self._refuse_oversized(total_bytes(chain[1]) + total_bytes(chain[2]))
        return self.fail(chain)


class ControlQueue:
    """The control queue: a :class:`zonefs_emu.virtio.handler.Handler`."""

    plain: PlainRequests | None = None

    def __init__(self, target: Target) -> None:
        """Hand task management to *target*."""
        self._target = target

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int:
        """Execute the request at ``chains[index]``; see :meth:`Handler.step`. No control request may wait."""
        begin(index, ())
        lengths.append(self.execute(chains[index]))
        return 1

    def execute(self, chain: Chain) -> int:
        """Execute one request; see :meth:`Handler.execute`."""
        _, readable, writable = chain
        data = gather(readable, 0, _TASK_MANAGEMENT.size)
        answer = self._answer(data)
        if total_bytes(writable) < len(answer):
            message = f"a control request has {total_bytes(writable)} bytes for the answer, which is too little"
            raise BrokenRingError(message)
        scatter(writable, 0, answer)
        return len(answer)

    def fail(self, chain: Chain) -> int:
        """Answer FAILURE; see :meth:`Handler.fail`. The place of the response depends on the type of the request."""
        _, readable, writable = chain
        kind = int.from_bytes(gather(readable, 0, 4), "little")
        is_query = kind in (T_AN_QUERY, T_AN_SUBSCRIBE)
        answer = _ASYNC_RESPONSE.pack(0, Response.FAILURE) if is_query else bytes((Response.FAILURE,))
        if total_bytes(writable) < len(answer):
            message = f"a control request has {total_bytes(writable)} bytes for the answer, which is too little"
            raise BrokenRingError(message)
        scatter(writable, 0, answer)
        return len(answer)

    def refuse_oversized(self, chain: Chain) -> int:
        """Refuse a request that is too long; see :meth:`Handler.refuse_oversized`."""
        self._target.refuse_oversized(total_bytes(chain[1]) + total_bytes(chain[2]))
        return self.fail(chain)

    def _answer(self, data: bytes) -> bytes:
        kind = int.from_bytes(data[:4], "little") if len(data) >= 4 else -1
        if kind == T_TMF and len(data) == _TASK_MANAGEMENT.size:
            _, subtype, field, _ = _TASK_MANAGEMENT.unpack(data)
            return bytes((self._manage(subtype, field),))
        if kind in (T_AN_QUERY, T_AN_SUBSCRIBE) and len(data) >= _ASYNC_REQUEST.size:
            # The disk has no asynchronous notifications, so none is supported, and none is subscribed to.
            return _ASYNC_RESPONSE.pack(0, Response.OK)
        message = f"a control request of kind {kind} with {len(data)} bytes is not known"
        raise BrokenRingError(message)

    def _manage(self, subtype: int, field: bytes) -> Response:
        lun = decode_address(field)
        if lun == _NO_TARGET:
            self._target.no_target(None)
            return Response.BAD_TARGET
        match self._target.manage_task(subtype, lun):
            case TaskResponse.COMPLETE:
                return Response.OK
            case TaskResponse.REJECTED:
                return Response.FUNCTION_REJECTED
            case TaskResponse.INCORRECT_LUN:
                return Response.INCORRECT_LUN


class EventQueue:
    """The events of the event queue: each is kept until the driver has a buffer for it."""

    def __init__(self) -> None:
        """Begin without events."""
        self._events: deque[bytes] = deque()
        #: Whether the driver accepted CHANGE, and with it events of changed parameters.
        self.wants_changes = False

    def parameters_changed(self) -> None:
        """Queue the event after which the driver reads the disk's parameters again, unless it is queued already."""
        event = _EVENT.pack(EVENT_PARAM_CHANGE, b"\x01\0\x40\0\0\0\0\0", REASON_CAPACITY_CHANGED)
        if self.wants_changes and event not in self._events:
            self._events.append(event)

    def next_event(self) -> bytes | None:
        """Return the next event and remove it from the queue; None if there is none."""
        return self._events.popleft() if self._events else None

    def put_back(self, event: bytes) -> None:
        """Keep *event* as the next one, because the driver has no buffer for it yet."""
        self._events.appendleft(event)

    def clear(self) -> None:
        """Drop all events."""
        self._events.clear()
