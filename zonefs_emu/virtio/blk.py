"""The virtio block device with zones: features, configuration space, and every request.

May not know: rings, sockets. It sees chains of buffers and a device port.

Invariants:

* Every request that has room for a status byte is answered with one; a chain without that room, or without a header,
  breaks its ring, because there is nothing else to do with it.
* Nothing is assumed of how a request is cut into buffers, but the usual cuts are the fast ones.
* The zone rules hold for a driver that did not accept ZONED, too: it is told IOERR, as the zone statuses mean nothing
  to it.

Source: virtio 1.4, "Block Device".
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.buffers import Cursor, carve, gather, scatter, total_bytes
from zonefs_emu.device.device import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT, to_bytes
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.handler import LONG_BYTES, Begin, Deferred
from zonefs_emu.virtio.ring import TRANSFER_BYTES_MAX, BrokenRingError, Chain
from zonefs_emu.virtio.rules import BlkRule

DEVICE_ID: Final = 2

F_SIZE_MAX: Final = 1 << 1
F_SEG_MAX: Final = 1 << 2
F_RO: Final = 1 << 5
F_BLK_SIZE: Final = 1 << 6
F_FLUSH: Final = 1 << 9
F_TOPOLOGY: Final = 1 << 10
F_CONFIG_WCE: Final = 1 << 11
F_MQ: Final = 1 << 12
F_WRITE_ZEROES: Final = 1 << 14
F_ZONED: Final = 1 << 17

CONFIG_BYTES: Final = 96
CONFIG_WCE_OFFSET: Final = 32
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIIIIIIIIB3x")
assert _CONFIG.size == CONFIG_BYTES
MODEL_NONE: Final = 0
MODEL_HOST_MANAGED: Final = 1

T_IN: Final = 0
T_OUT: Final = 1
T_SCSI_CMD: Final = 2
T_SCSI_CMD_OUT: Final = 3
T_FLUSH: Final = 4
T_FLUSH_OUT: Final = 5
T_GET_ID: Final = 8
T_GET_LIFETIME: Final = 10
T_DISCARD: Final = 11
T_WRITE_ZEROES: Final = 13
T_SECURE_ERASE: Final = 14
T_ZONE_APPEND: Final = 15
T_ZONE_REPORT: Final = 16
T_ZONE_OPEN: Final = 18
T_ZONE_CLOSE: Final = 20
T_ZONE_FINISH: Final = 22
T_ZONE_RESET: Final = 24
T_ZONE_RESET_ALL: Final = 26
#: Legacy: the high bit of the type. Source: virtio 1.4, block device, legacy interface: VIRTIO_BLK_T_BARRIER.
T_BARRIER: Final = 1 << 31

S_OK: Final = 0
S_IOERR: Final = 1
S_UNSUPP: Final = 2
S_ZONE_INVALID_CMD: Final = 3
S_ZONE_UNALIGNED_WP: Final = 4
S_ZONE_OPEN_RESOURCE: Final = 5
S_ZONE_ACTIVE_RESOURCE: Final = 6

#: Answers of the device to requests that concern zones. Source: virtio 1.4, block device, "Device Operation".
ZONE_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {
        Status.OK: S_OK,
        Status.OUT_OF_RANGE: S_ZONE_INVALID_CMD,
        Status.UNALIGNED: S_ZONE_UNALIGNED_WP,
        Status.UNALIGNED_WP: S_ZONE_UNALIGNED_WP,
        Status.ZONE_BOUNDARY: S_ZONE_INVALID_CMD,
        Status.READ_BOUNDARY: S_ZONE_INVALID_CMD,
        Status.ZONE_FULL: S_ZONE_INVALID_CMD,
        Status.ZONE_READONLY: S_ZONE_INVALID_CMD,
        Status.ZONE_OFFLINE: S_ZONE_INVALID_CMD,
        Status.NOT_ZONE_START: S_ZONE_INVALID_CMD,
        Status.CONVENTIONAL: S_ZONE_INVALID_CMD,
        Status.BAD_TRANSITION: S_ZONE_INVALID_CMD,
        Status.APPEND_LIMIT: S_ZONE_INVALID_CMD,
        Status.OPEN_RESOURCE: S_ZONE_OPEN_RESOURCE,
        Status.ACTIVE_RESOURCE: S_ZONE_ACTIVE_RESOURCE,
        Status.IO_ERROR: S_IOERR,
        Status.NO_SPACE: S_IOERR,
        Status.POISONED: S_IOERR,
        Status.UNSUPPORTED: S_UNSUPP,
    }
)
#: The same for reads and writes, whose range and alignment are no matter of zones.
DATA_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {**ZONE_STATUS, Status.OUT_OF_RANGE: S_IOERR, Status.UNALIGNED: S_IOERR}
)
#: For a driver that did not accept ZONED and knows three statuses.
PLAIN_STATUS: Final[Mapping[Status, int]] = MappingProxyType(
    {status: code if code <= S_UNSUPP else S_IOERR for status, code in DATA_STATUS.items()}
)
#: What the rules that only this device has answer.
STATUS_OF_RULE: Final[Mapping[BlkRule, int]] = MappingProxyType(
    {
        BlkRule.BLK_TYPE: S_UNSUPP,
        BlkRule.BLK_NOT_ZONED: S_UNSUPP,
        BlkRule.BLK_SEGMENT: S_IOERR,
        # "The device MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard, secure erase and write zeroes
        # commands if any unknown flag is set."
        BlkRule.BLK_SEGMENT_FLAGS: S_UNSUPP,
        BlkRule.BLK_APPEND_ROOM: S_IOERR,
        BlkRule.BLK_REPORT_ROOM: S_ZONE_INVALID_CMD,
        BlkRule.BLK_OVERSIZED: S_IOERR,
    }
)

ID_BYTES: Final = 20
REPORT_HEADER: Final = struct.Struct("<Q56x")
REPORT_ZONE: Final = struct.Struct("<QQQBB38x")
HEADER: Final = struct.Struct("<IIQ")
_UNPACK_HEADER: Final = HEADER.unpack_from
_NO_WP: Final = (1 << 64) - 1
_APPEND_SECTOR: Final = struct.Struct("<Q")
_SEGMENT: Final = struct.Struct("<QII")
_UNMAP: Final = 1
#: What a merged write may have: buffers of one pwritev, and sectors (longer ones gain nothing and are answered later).
_MERGED_BUFFERS_MAX: Final = 1024
_MERGED_SECTORS_MAX: Final = 512
#: Reads of one step, so that the driver goes on with the first of a batch while the others are read.
_READS_MAX: Final = 8
#: Bits of a number of bytes that is no whole sectors, or LONG_BYTES and more.
_UNUSUAL_BYTES: Final = ~(LONG_BYTES - SECTOR_BYTES)
#: A longer report is made by the thread that may wait.
_QUICK_REPORT_BYTES: Final = 1 << 16
#: Zones asked of the device, encoded and stored at once: a report of a million zones is never all in memory, and the
#: device's lock is held for one portion.
_REPORT_PORTION: Final = 1024
#: Sizes of segments are offered in multiples of this.
_SEGMENT_UNIT_BYTES: Final = 1 << 20
_WRITE_ZEROES_SECTORS_MAX: Final = 1 << 16
_ZEROS: Final = memoryview(bytes(1 << 20))
#: errors, data_len, sense_len, residual at the end of a legacy SCSI request, before the status.
_SCSI_ERRORS: Final = struct.pack("<IIII", 255, 0, 0, 0)

_MANAGEMENT: Final[Mapping[int, Operation]] = MappingProxyType(
    {
        T_ZONE_OPEN: Operation.OPEN,
        T_ZONE_CLOSE: Operation.CLOSE,
        T_ZONE_FINISH: Operation.FINISH,
        T_ZONE_RESET: Operation.RESET,
    }
)
_TYPE_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        T_SCSI_CMD: "SCSI_CMD",
        T_SCSI_CMD_OUT: "SCSI_CMD_OUT",
        T_GET_LIFETIME: "GET_LIFETIME",
        T_DISCARD: "DISCARD",
        T_WRITE_ZEROES: "WRITE_ZEROES",
        T_SECURE_ERASE: "SECURE_ERASE",
        T_ZONE_APPEND: "ZONE_APPEND",
        T_ZONE_REPORT: "ZONE_REPORT",
        T_ZONE_OPEN: "ZONE_OPEN",
        T_ZONE_CLOSE: "ZONE_CLOSE",
        T_ZONE_FINISH: "ZONE_FINISH",
        T_ZONE_RESET: "ZONE_RESET",
        T_ZONE_RESET_ALL: "ZONE_RESET_ALL",
    }
)
_ZONED: Final = frozenset(_MANAGEMENT) | {T_ZONE_APPEND, T_ZONE_REPORT, T_ZONE_RESET_ALL}
_HAS_REFUSED: Final = frozenset(Status) - {Status.OK, Status.IO_ERROR, Status.NO_SPACE, Status.POISONED}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkOptions:
    """What may be chosen. *serial*: up to 20 bytes; *write_zeroes*: offer WRITE_ZEROES, which then writes at wp."""

    serial: str
    nr_queues: int = 1
    seg_max: int = 126
    write_zeroes: bool = False


class Blk:
    """A virtio block device on a port; one object for all of its queues."""

    def __init__(self, port: Port, options: BlkOptions) -> None:
        """Serve *port*, whose dialect is VIRTIO."""
        self.port = port
        self.options = options
        geometry = self._geometry = port.geometry
        self._readonly = port.device.image.readonly
        self._zoned_model = geometry.nr_conventional < geometry.nr_zones
        self._zone_size = geometry.zone_size
        self._capacity = geometry.zone_capacity
        self._granularity = geometry.write_granularity
        self._last_zone = geometry.nr_zones - 1
        self._last_capacity = geometry.zone_cap(self._last_zone)
        self._serial = options.serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self._port_read = port.read
        self._port_write = port.write
        self._has_pending_reset = port.has_pending_reset
        self.offered = self._offered()
        self.wce = True
        self.accept(self.offered)

    def _offered(self) -> int:
        offered = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE | bits.TRANSPORT
        if self.options.nr_queues > 1:
            offered |= F_MQ
        if self._readonly:
            offered |= F_RO
        if self._zoned_model:
            offered |= F_ZONED  # and never DISCARD: "a host-managed device MUST NOT offer VIRTIO_BLK_F_DISCARD"
        if self.options.write_zeroes:
            offered |= F_WRITE_ZEROES
        return offered

    @property
    def refuses_unzoned(self) -> bool:
        """Whether the standard wants a driver refused that does not accept ZONED (see ``--strict-features``)."""
        return self._zoned_model

    def accept(self, features: int) -> None:
        """Note what the driver accepted."""
        self._zoned = bool(features & F_ZONED)
        self._legacy = not features & bits.VERSION_1
        self._write_zeroes = bool(features & F_WRITE_ZEROES)
        # "If the driver accepted neither CONFIG_WCE nor FLUSH, every completed write must be stable."
        self._wce_counts = bool(features & F_CONFIG_WCE)
        self._writeback_always = bool(features & F_FLUSH)
        self._data_status = DATA_STATUS if self._zoned else PLAIN_STATUS
        self._set_write_through()

    def _set_write_through(self) -> None:
        writeback = self.wce if self._wce_counts else self._writeback_always
        self._write_through = not writeback

    # -- configuration space ----------------------------------------------------------------------------------

    def config(self) -> bytes:
        """Return the configuration space: 96 bytes."""
        geometry, options = self._geometry, self.options
        block_bytes = geometry.block_size_bytes
        granularity_bytes = to_bytes(geometry.write_granularity)
        exponent = max((granularity_bytes // block_bytes).bit_length() - 1, 0)
        zeroes = options.write_zeroes
        zoned = self._zoned_model
        # Segments that, all of them, are no more than a chain may have. A single one may well be longer.
        size_max = max(TRANSFER_BYTES_MAX // options.seg_max & -_SEGMENT_UNIT_BYTES, _SEGMENT_UNIT_BYTES)
        # "The device MUST NOT offer [...] max_append_sectors [greater than] seg_max * size_max".
        max_append = min(geometry.max_append, size_max * options.seg_max >> SECTOR_SHIFT)
        return _CONFIG.pack(
            geometry.size,
            size_max,
            options.seg_max,
            0, 0, 0,  # geometry: not offered
            block_bytes,
            exponent, 0, granularity_bytes // block_bytes, 0,  # topology, in logical blocks
            int(self.wce),
            options.nr_queues,
            0, 0, 0,  # discard: never offered
            _WRITE_ZEROES_SECTORS_MAX if zeroes else 0, 1 if zeroes else 0, 0,
            0, 0, 0,  # secure erase: not offered
            geometry.zone_size if zoned else 0,
            geometry.max_open_zones if zoned else 0,
            geometry.max_active_zones if zoned else 0,
            max_append if zoned else 0,
            granularity_bytes if zoned else 0,
            MODEL_HOST_MANAGED if zoned else MODEL_NONE,
        )  # fmt: skip

    def set_config(self, offset: int, data: bytes) -> None:
        """Take what the driver wrote at *offset*: only ``writeback`` can be written, everything else is ignored.

        Some front-ends send the whole space for a change of one byte.
        """
        at = CONFIG_WCE_OFFSET - offset
        if self._wce_counts and 0 <= at < len(data):
            self.wce = bool(data[at])
            self._set_write_through()

    def reset(self) -> None:
        """Do what a device reset does: the cache mode goes back. Zones stay as they are."""
        self.wce = True
        self._set_write_through()

    # -- requests ---------------------------------------------------------------------------------------------

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int | Deferred:
        """Execute from ``chains[index]`` on; see :class:`zonefs_emu.virtio.handler.Handler`."""
        kind, sector = -1, 0
        following = index
        for _, readable, writable in chains[index : index + _READS_MAX] if len(chains) > 1 else chains:
            if not readable or len(readable[0]) != 16 or not writable or len(writable[-1]) != 1:
                kind = -1
                break
            kind, _, sector = _UNPACK_HEADER(readable[0])
            if kind != T_IN or len(readable) != 1:
                break
            *data, status_byte = writable
            nr_bytes = len(data[0]) if len(data) == 1 else sum(map(len, data))
            if nr_bytes & _UNUSUAL_BYTES:
                if nr_bytes >= LONG_BYTES:
                    break
                status_byte[0] = self._no_sectors(Operation.READ, sector, nr_bytes)
            else:
                status = self._port_read(sector, nr_bytes >> SECTOR_SHIFT, data)
                status_byte[0] = self._data_status[status] if status else S_OK
            lengths.append(nr_bytes + 1)
            following += 1
        if following != index:
            return following - index
        chain = chains[index]
        if kind < 0:
            kind, sector = self._decode(chain)
        elif kind == T_OUT and len(chain[2]) == 1 and not self._write_through and not self._readonly:
            return self._step_out(chains, index, lengths, begin, sector)
        if self._may_wait((kind, sector), chain):
            return self._defer(chain, kind, sector)
        begin(index, ())
        lengths.append(self._execute_decoded(chain, kind, sector))
        return 1

    def _defer(self, chain: Chain, kind: int, sector: int) -> Deferred:
        return Deferred(partial(self._execute_decoded, chain, kind, sector))

    def _step_out(
        self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin, sector: int
    ) -> int | Deferred:
        """Execute the write at ``chains[index]`` and those that follow on it, as one write if the device takes it."""
        zone_no = sector // self._zone_size
        if self._has_pending_reset(zone_no):
            return self._defer(chains[index], T_OUT, sector)
        data = chains[index][1][1:]
        nr_bytes = len(data[0]) if len(data) == 1 else sum(map(len, data))
        if nr_bytes & _UNUSUAL_BYTES:
            if nr_bytes >= LONG_BYTES:
                return self._defer(chains[index], T_OUT, sector)
            chains[index][2][0][0] = self._no_sectors(Operation.WRITE, sector, nr_bytes)
            lengths.append(1)
            return 1
        nr_sectors = nr_bytes >> SECTOR_SHIFT
        following = index + 1
        end = sector + nr_sectors
        if following < len(chains):
            limit = self._merge_limit(zone_no, sector, nr_sectors)
            spans = [(sector, nr_sectors)]
            granularity = self._granularity
            while following < len(chains):
                _, readable, writable = chains[following]
                if len(writable) != 1 or len(writable[0]) != 1 or len(readable) != 2 or len(readable[0]) != 16:
                    break
                kind, _, at = _UNPACK_HEADER(readable[0])
                buffer = readable[1]
                size = len(buffer)
                more = size >> SECTOR_SHIFT
                if (
                    kind != T_OUT
                    or at != end
                    or size & 511
                    or more % granularity
                    or end + more > limit
                    or len(data) >= _MERGED_BUFFERS_MAX
                ):
                    break
                spans.append((at, more))
                data.append(buffer)
                end += more
                following += 1
            if following > index + 1:
                begin(index, spans)
                status = self._port_write(sector, end - sector, data)
                if status not in _HAS_REFUSED:
                    code = self._data_status[status]
                    for chain in chains[index:following]:
                        chain[2][0][0] = code
                        lengths.append(1)
                    return following - index
                # Refused as a whole: nothing has changed. Each by itself gets its own answer.
                data = chains[index][1][1:]
        begin(index, ())
        status = self._port_write(sector, nr_sectors, data)
        chains[index][2][0][0] = self._out_status(status, sector)
        lengths.append(1)
        return 1

    def _merge_limit(self, zone_no: int, sector: int, nr_sectors: int) -> int:
        """Return the sector up to which writes may follow on one of *nr_sectors* at *sector* as one write."""
        if nr_sectors % self._granularity or zone_no > self._last_zone:
            return 0
        capacity = self._capacity if zone_no != self._last_zone else self._last_capacity
        return min(zone_no * self._zone_size + capacity, sector + _MERGED_SECTORS_MAX)

    def _out_status(self, status: Status, sector: int) -> int:
        # "The device MUST return UNALIGNED_WP if the end is not a multiple of write_granularity": that also covers
        # half blocks; in a conventional zone they are just an error.
        if status is Status.UNALIGNED and self._zoned:
            zone_no = sector // self._zone_size
            if zone_no <= self._last_zone and not self._geometry.is_conventional(zone_no):
                return S_ZONE_UNALIGNED_WP
        return self._data_status[status]

    def _decode(self, chain: Chain) -> tuple[int, int]:
        """Return type and sector of a request, as its header says at this moment: the only look at it.

        Raises:
            BrokenRingError: it has no whole header, or no room for a status.
        """
        header = gather(chain[1], 0, HEADER.size)
        if len(header) < HEADER.size or not chain[2]:
            msg = f"a request with a header of {len(header)} bytes and {total_bytes(chain[2])} bytes for the answer"
            raise BrokenRingError(msg)
        kind, _, sector = HEADER.unpack(header)
        return kind, sector

    def _may_wait(self, request: tuple[int, int], chain: Chain) -> bool:
        """Say whether the *request* (type and sector) of *chain* may wait for the host's disk, or takes long."""
        kind, sector = request
        if self._legacy:
            kind &= ~T_BARRIER
        if kind in (T_FLUSH, T_FLUSH_OUT, T_WRITE_ZEROES, T_ZONE_RESET_ALL):
            return True
        if kind in (T_OUT, T_ZONE_APPEND):
            if self._write_through or self._has_pending_reset(sector // self._zone_size):
                return True
            return total_bytes(chain[1]) > LONG_BYTES
        return total_bytes(chain[2]) > (_QUICK_REPORT_BYTES if kind == T_ZONE_REPORT else LONG_BYTES)

    def execute(self, chain: Chain) -> int:
        """Execute one request; see :class:`zonefs_emu.virtio.handler.Handler`."""
        kind, sector = self._decode(chain)
        return self._execute_decoded(chain, kind, sector)

    def _execute_decoded(self, chain: Chain, kind: int, sector: int) -> int:
        """Execute the request of *kind* at *sector*, whose header is not looked at again."""
        _, readable, writable = chain
        room = total_bytes(writable)
        data_out = carve(readable, HEADER.size, total_bytes(readable))
        data_in = carve(writable, 0, room - 1)
        if self._legacy and kind & T_BARRIER:
            # "all preceding requests must be complete before this one, and all following must not be started until
            # this is": always so here, as the requests of a queue are executed one after the other.
            kind &= ~T_BARRIER
        status = self._execute(kind, sector, data_out, data_in)
        scatter(writable, room - 1, bytes((status,)))
        return room

    def fail(self, chain: Chain) -> int:
        """Answer IOERR; see :class:`zonefs_emu.virtio.handler.Handler`."""
        writable = chain[2]
        if not writable:
            msg = "a request without room for the answer"
            raise BrokenRingError(msg)
        writable[-1][-1] = S_IOERR
        # "The device MUST write at least len bytes to descriptor, beginning at the first device-writable buffer."
        return 1 if len(writable) == len(writable[0]) == 1 else 0

    def refuse_oversized(self, chain: Chain) -> int:
        """Refuse a request that is too long; see :class:`zonefs_emu.virtio.handler.Handler`."""
        nr_bytes = total_bytes(chain[1]) + total_bytes(chain[2])
        self._broken(BlkRule.BLK_OVERSIZED, f"a request of {nr_bytes} bytes")
        return self.fail(chain)

    def _execute(self, kind: int, sector: int, data_out: list[memoryview], data_in: list[memoryview]) -> int:
        """Do a request of *kind*; return its status."""
        match kind:
            case 0:  # T_IN
                return self._in(sector, data_in)
            case 1:  # T_OUT
                return self._out(sector, data_out)
            case 4 | 5:  # T_FLUSH, T_FLUSH_OUT
                return self._data_status[self.port.flush()]
            case 8:  # T_GET_ID
                identity = self._serial[: total_bytes(data_in)]
                scatter(data_in, 0, identity)
                return S_OK
            case 13 if self._write_zeroes:  # T_WRITE_ZEROES
                return self._zero(data_out)
            case 2 | 3:  # T_SCSI_CMD, T_SCSI_CMD_OUT
                # Legacy SCSI pass-through: "errors" says that nothing was done, the status that it never is.
                room = total_bytes(data_in)
                if room >= len(_SCSI_ERRORS):
                    scatter(data_in, room - len(_SCSI_ERRORS), _SCSI_ERRORS)
                return self._unknown(kind)
            case _ if kind not in _ZONED:
                return self._unknown(kind)
            case _ if self._zoned:
                return self._execute_zoned(kind, sector, data_out, data_in)
            case _:
                return self._broken(BlkRule.BLK_NOT_ZONED, f"{_TYPE_NAMES[kind]} at sector {sector}")

    def _unknown(self, kind: int) -> int:
        name = f" ({_TYPE_NAMES[kind]})" if kind in _TYPE_NAMES else ""
        return self._broken(BlkRule.BLK_TYPE, f"a request of type {kind}{name}")

    def _broken(self, rule: BlkRule, request: str) -> int:
        """Note that *request* is refused by a *rule* of virtio-blk's own, and return its status."""
        self.port.refuse(rule, None, Status.UNSUPPORTED, request=request)
        return STATUS_OF_RULE[rule]

    def _no_sectors(self, operation: Operation, sector: int, nr_bytes: int) -> int:
        """Note that the data of a request are no whole sectors, and return its status."""
        request = f"{operation.name.lower()} of {nr_bytes} bytes at sector {sector}"
        zone_no = sector // self._zone_size
        status = self.port.refuse(
            DeviceRule.UNALIGNED, operation, Status.UNALIGNED, sector, zone_no=zone_no, request=request
        )
        return ZONE_STATUS[status] if operation is Operation.APPEND else self._data_status[status]

    def _write_protected(self, operation: Operation, sector: int) -> int:
        """Note a change that the image does not take, and return its status."""
        zone_no = sector // self._zone_size
        return ZONE_STATUS[self.port.refuse(DeviceRule.POISONED, operation, Status.POISONED, sector, zone_no=zone_no)]

    def _in(self, sector: int, data_in: list[memoryview]) -> int:
        nr_bytes = total_bytes(data_in)
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.READ, sector, nr_bytes)
        return self._data_status[self.port.read(sector, nr_bytes >> SECTOR_SHIFT, data_in)]

    def _out(self, sector: int, data_out: list[memoryview]) -> int:
        nr_bytes = total_bytes(data_out)
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.WRITE, sector, nr_bytes)
        if self._readonly:
            return self._write_protected(Operation.WRITE, sector)
        status = self.port.write(sector, nr_bytes >> SECTOR_SHIFT, data_out)
        if not status and self._write_through:
            status = self.port.flush()
        return self._out_status(status, sector)

    def _zero(self, data_out: list[memoryview]) -> int:
        """Do WRITE_ZEROES: the specification is silent on zones, and Linux takes it for a write at wp."""
        nr_bytes = total_bytes(data_out)
        if nr_bytes != _SEGMENT.size:  # max_write_zeroes_seg is 1
            return self._broken(BlkRule.BLK_SEGMENT, f"WRITE_ZEROES with {nr_bytes} bytes of segments")
        sector, nr_sectors, flags = _SEGMENT.unpack(gather(data_out, 0, nr_bytes))
        if flags & ~_UNMAP:
            return self._broken(BlkRule.BLK_SEGMENT_FLAGS, f"WRITE_ZEROES at sector {sector} with flags {flags:#x}")
        if nr_sectors > _WRITE_ZEROES_SECTORS_MAX:
            return self._broken(BlkRule.BLK_SEGMENT, f"WRITE_ZEROES of {nr_sectors} sectors at sector {sector}")
        if self._readonly:
            return self._write_protected(Operation.WRITE, sector)
        while nr_sectors:
            part = min(nr_sectors, len(_ZEROS) >> SECTOR_SHIFT)
            status = self.port.write(sector, part, [_ZEROS[: part << SECTOR_SHIFT]])
            if status:
                return self._out_status(status, sector)
            sector += part
            nr_sectors -= part
        return self._data_status[self.port.flush()] if self._write_through else S_OK

    def _execute_zoned(self, kind: int, sector: int, data_out: list[memoryview], data_in: list[memoryview]) -> int:
        operation = _MANAGEMENT.get(kind)
        if operation is not None:
            if self._readonly:
                return self._write_protected(operation, sector)
            return ZONE_STATUS[self.port.manage(operation, sector)]
        if kind == T_ZONE_RESET_ALL:
            if self._readonly:
                return self._write_protected(Operation.RESET, sector)
            return ZONE_STATUS[self.port.manage_all(Operation.RESET)]
        if kind == T_ZONE_REPORT:
            return self._report(sector, data_in)
        return self._append(sector, data_out, data_in)

    def _append(self, sector: int, data_out: list[memoryview], data_in: list[memoryview]) -> int:
        """Do ZONE_APPEND; *data_in* begins with 8 bytes for the sector where the data landed."""
        room = total_bytes(data_in)
        nr_bytes = total_bytes(data_out)
        if room < _APPEND_SECTOR.size:
            return self._broken(BlkRule.BLK_APPEND_ROOM, f"append at sector {sector} with {room} writable bytes")
        if self._readonly:
            return self._write_protected(Operation.APPEND, sector)
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.APPEND, sector, nr_bytes)
        status, landed = self.port.append(sector, nr_bytes >> SECTOR_SHIFT, data_out)
        if not status and self._write_through:
            status = self.port.flush()
        if not status:
            # First in the writable part. That is next to the status where there are 9 bytes, as in the standard; Linux
            # gives 16, a structure with padding, looks for the sector in the first 8 and for the status in the last.
            scatter(data_in, 0, _APPEND_SECTOR.pack(landed))
        return ZONE_STATUS[status]

    def _report(self, sector: int, data_in: list[memoryview]) -> int:
        """Do ZONE_REPORT: as many zones as fit, from the one that holds *sector* on."""
        geometry = self._geometry
        room = total_bytes(data_in)
        max_zones = (room - REPORT_HEADER.size) // REPORT_ZONE.size
        if sector >= geometry.size:
            request = f"zone report from sector {sector}"
            return ZONE_STATUS[self.port.refuse(DeviceRule.OUT_OF_RANGE, None, Status.OUT_OF_RANGE, request=request)]
        if max_zones < 1:
            return self._broken(BlkRule.BLK_REPORT_ROOM, f"zone report from sector {sector} with room for {room} bytes")
        first = geometry.zone_no(sector)
        count = min(max_zones, geometry.nr_zones - first)
        target = Cursor(data_in)
        target.store(REPORT_HEADER.pack(count))
        for zone_no in range(first, first + count, _REPORT_PORTION):
            zones = self.port.report(zone_no, min(_REPORT_PORTION, first + count - zone_no))
            target.store(b"".join([encode_zone(zone) for zone in zones]))
        return S_OK


def encode_zone(zone: Zone) -> bytes:
    """Return *zone* as struct virtio_blk_zone_descriptor: capacity, start and wp in sectors, type, state."""
    # z_wp "is undefined for conventional zones and for zones in VIRTIO_BLK_ZS_RDONLY, VIRTIO_BLK_ZS_FULL and
    # VIRTIO_BLK_ZS_OFFLINE state". What Linux shows of any disk: for READONLY and OFFLINE all ones, for FULL the end.
    match zone.cond:
        case Condition.READONLY | Condition.OFFLINE:
            wp = _NO_WP
        case Condition.NOT_WP | Condition.FULL:
            wp = zone.start + zone.size
        case _:
            wp = zone.wp
    return REPORT_ZONE.pack(zone.capacity, zone.start, wp, zone.type, zone.cond)
