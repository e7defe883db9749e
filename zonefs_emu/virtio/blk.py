"""The virtio block device with zones: every request, executed on a device port.

May not know: rings, sockets. It gets chains of buffers and a device port. :mod:`blk_codec` has the form of requests in
memory, :mod:`blk_config` features and configuration space, and :mod:`blk_merge` the merging of writes.

Invariants:

* Every request that has room for a status byte is answered with one; a chain without that room, or without a header,
  breaks its ring, because it cannot be answered.
* The header of a request is copied from the guest's memory once. The request is checked and executed by that copy, on
  any thread, so a later change by the guest has no effect. A header that ended a run of reads or writes is copied again
  when its own request is executed.
* A request may be divided into buffers in any way; the usual ways are faster.
* The zone rules also hold for a driver that did not accept ZONED. It gets IOERR instead of a zone status, which it does
  not know.

Source: virtio 1.4, "Block Device".
"""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.buffers import LONG_BYTES, SHORT_SECTORS_MAX, Cursor, gather, scatter, total_bytes
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT
from zonefs_emu.virtio import blk_codec as codec, features as bits
from zonefs_emu.virtio.blk_codec import (
    APPEND_SECTOR,
    DATA_STATUS,
    HEADER,
    PLAIN_STATUS,
    S_IOERR,
    S_OK,
    S_ZONE_UNALIGNED_WP,
    STATUS_OF_RULE,
    T_IN,
    T_OUT,
    TYPE_NAMES,
    ZONE_STATUS,
    Request,
    decode,
    decode_header,
)
from zonefs_emu.virtio.blk_config import (
    F_CONFIG_WCE,
    F_FLUSH,
    F_WRITE_ZEROES,
    F_ZONED,
    WRITE_ZEROES_SECTORS_MAX,
    BlkOptions,
    ConfigSpace,
)
from zonefs_emu.virtio.blk_merge import Merger
from zonefs_emu.virtio.handler import Begin, Deferred
from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtio.rules import BlkRule

_UNPACK_HEADER: Final = HEADER.unpack_from
#: A number of bytes has one of these bits if it is no whole number of sectors, or is at least LONG_BYTES.
_UNUSUAL_BYTES: Final = ~(LONG_BYTES - SECTOR_BYTES)
#: A report of this size or more is made by the worker's thread.
_QUICK_REPORT_BYTES: Final = 1 << 16
#: The most zones that are read from the device, encoded and stored at once. So a report of a million zones is never in
#: memory as a whole, and the device's lock is held for one portion at a time.
_REPORT_PORTION: Final = 1024
_ZEROS: Final = memoryview(bytes(1 << 20))

_MANAGEMENT: Final[Mapping[int, Operation]] = MappingProxyType(
    {
        codec.T_ZONE_OPEN: Operation.OPEN,
        codec.T_ZONE_CLOSE: Operation.CLOSE,
        codec.T_ZONE_FINISH: Operation.FINISH,
        codec.T_ZONE_RESET: Operation.RESET,
    }
)
_ZONED: Final = frozenset(_MANAGEMENT) | {codec.T_ZONE_APPEND, codec.T_ZONE_REPORT, codec.T_ZONE_RESET_ALL}
#: Requests that may wait for the host's disk, whatever their length.
_SLOW: Final = frozenset((codec.T_FLUSH, codec.T_FLUSH_OUT, codec.T_WRITE_ZEROES, codec.T_ZONE_RESET_ALL))
#: With these statuses a write has changed nothing because it broke a rule; parts of it may break none.
_HAS_REFUSED: Final = frozenset(Status) - {Status.OK, Status.IO_ERROR, Status.NO_SPACE, Status.POISONED}


class Blk:
    """A virtio block device on a port; one object for all of its queues."""

    def __init__(self, port: Port, options: BlkOptions) -> None:
        """Serve *port*, whose dialect is VIRTIO, to a driver that accepts all features until :meth:`accept`."""
        self.port = port
        geometry = self._geometry = port.geometry
        self._readonly = port.device.image.readonly
        self._zone_size = geometry.zone_size
        self._last_zone = geometry.nr_zones - 1
        self._serial = options.serial.encode()[: codec.ID_BYTES].ljust(codec.ID_BYTES, b"\0")
        self._port_read = port.read
        self._port_write = port.write
        self._has_pending_reset = port.has_pending_reset
        self._collect = Merger(geometry).collect
        self.plain: PlainRequests | None = PlainRequests(
            port, SHORT_SECTORS_MAX, may_write=lambda: not self._write_through
        )
        self._config = ConfigSpace(geometry, options, readonly=self._readonly)
        self.offered = self._config.offered
        self._cache_features = 0
        self.accept(self.offered)

    @property
    def refuses_unzoned(self) -> bool:
        """Whether the standard requires that a driver that does not accept ZONED is refused (``--strict-features``)."""
        return self._config.is_zoned

    def accept(self, features: int) -> None:
        """Behave as the *features* require that the driver accepted; all are among those offered."""
        self._zoned = bool(features & F_ZONED)
        self._legacy = not features & bits.VERSION_1
        self._write_zeroes = bool(features & F_WRITE_ZEROES)
        # "A write becomes stable once it is completed and [...] neither VIRTIO_BLK_F_CONFIG_WCE nor VIRTIO_BLK_F_FLUSH
        # feature were negotiated".
        self._wce_counts = bool(features & F_CONFIG_WCE)
        self._writeback_always = bool(features & F_FLUSH)
        self._data_status = DATA_STATUS if self._zoned else PLAIN_STATUS
        before, self._cache_features = self._cache_features, features & (F_CONFIG_WCE | F_FLUSH)
        # Features are accepted again while a driver runs, when logging of pages begins. Its cache mode stays then.
        if self._cache_features != before:
            self._begin_cache_mode()
        self._set_write_through()

    def _begin_cache_mode(self) -> None:
        # "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the device MUST initialize writeback
        # to 0."
        self._config.wce = self._cache_features != F_CONFIG_WCE

    def _set_write_through(self) -> None:
        writeback = self._config.wce if self._wce_counts else self._writeback_always
        self._write_through = not writeback

    def config(self) -> bytes:
        """Return the configuration space: 96 bytes."""
        return self._config.encode()

    def set_config(self, offset: int, data: bytes) -> None:
        """Receive a write of *data* at *offset* of the configuration space, where only the cache mode can be changed.

        Without CONFIG_WCE the write has no effect.
        """
        if self._wce_counts:
            self._config.take(offset, data)
            self._set_write_through()

    def reset(self) -> None:
        """Do what a device reset does: restore the cache mode. Zones do not change."""
        self._begin_cache_mode()
        self._set_write_through()

    # -- requests ---------------------------------------------------------------------------------------------

    def step(self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin) -> int | Deferred:
        """Execute from ``chains[index]`` on; see :class:`zonefs_emu.virtio.handler.Handler`."""
        kind, sector = -1, 0
        following = index
        for _, readable, writable in chains[index:] if index else chains:
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
            kind, sector = decode_header(chain)
        elif kind == T_OUT and len(chain[2]) == 1 and not self._write_through and not self._readonly:
            return self._step_writes(chains, index, lengths, begin, sector)
        request = decode(chain, kind, sector, legacy=self._legacy)
        if self._may_wait(request):
            return Deferred(partial(self._answer, request))
        begin(index, ())
        lengths.append(self._answer(request))
        return 1

    def _step_writes(
        self, chains: Sequence[Chain], index: int, lengths: list[int], begin: Begin, sector: int
    ) -> int | Deferred:
        """Execute the write at ``chains[index]`` and those that continue it, as one write if the device takes it.

        A merged write that the device refuses has changed nothing. Each of its parts is then executed by itself, so
        that it gets its own answer.
        """
        chain = chains[index]
        data = chain[1][1:]
        nr_buffers = len(data)
        nr_bytes = len(data[0]) if nr_buffers == 1 else sum(map(len, data))
        if self._has_pending_reset(sector // self._zone_size):
            return self._defer_write(chain, sector)
        if nr_bytes & _UNUSUAL_BYTES:
            if nr_bytes >= LONG_BYTES:
                return self._defer_write(chain, sector)
            chain[2][0][0] = self._no_sectors(Operation.WRITE, sector, nr_bytes)
            lengths.append(1)
            return 1
        nr_sectors = nr_bytes >> SECTOR_SHIFT
        if index + 1 < len(chains):
            spans = self._collect(chains, index, sector, nr_sectors, data)
            nr_merged = len(spans)
            if nr_merged > 1:
                begin(index, spans)
                last, count = spans[-1]
                status = self._port_write(sector, last + count - sector, data)
                if status not in _HAS_REFUSED:
                    code = self._data_status[status]
                    for merged in chains[index : index + nr_merged]:
                        merged[2][0][0] = code
                        lengths.append(1)
                    return nr_merged
                parts = [data[:nr_buffers], *([buffer] for buffer in data[nr_buffers:])]
                for following, ((at, count), part) in enumerate(zip(spans, parts, strict=True), index):
                    begin(following, ())
                    status = self._port_write(at, count, part)
                    chains[following][2][0][0] = self._out_status(status, at)
                    lengths.append(1)
                return nr_merged
        begin(index, ())
        status = self._port_write(sector, nr_sectors, data)
        chain[2][0][0] = self._out_status(status, sector)
        lengths.append(1)
        return 1

    def _defer_write(self, chain: Chain, sector: int) -> Deferred:
        return Deferred(partial(self._answer, decode(chain, T_OUT, sector, legacy=self._legacy)))

    def _out_status(self, status: Status, sector: int) -> int:
        # "VIRTIO_BLK_S_ZONE_UNALIGNED_WP is set by the device when [...] the ending sector of the request data
        # multiplied by 512 is not a multiple of [...] write_granularity" in a write to an SWR zone. A write of part of
        # a block is such a write. In a conventional zone it is an I/O error.
        if status is Status.UNALIGNED and self._zoned:
            zone_no = sector // self._zone_size
            if zone_no <= self._last_zone and not self._geometry.is_conventional(zone_no):
                return S_ZONE_UNALIGNED_WP
        return self._data_status[status]

    def _may_wait(self, request: Request) -> bool:
        """Say whether *request* may wait for the host's disk, or copies data for milliseconds."""
        kind = request.kind
        if kind in _SLOW:
            return True
        if kind in (T_OUT, codec.T_ZONE_APPEND):
            if self._write_through or self._has_pending_reset(request.sector // self._zone_size):
                return True
            return request.nr_out_bytes >= LONG_BYTES
        return request.nr_in_bytes >= (_QUICK_REPORT_BYTES if kind == codec.T_ZONE_REPORT else LONG_BYTES)

    def execute(self, chain: Chain) -> int:
        """Execute one request; see :class:`zonefs_emu.virtio.handler.Handler`."""
        kind, sector = decode_header(chain)
        return self._answer(decode(chain, kind, sector, legacy=self._legacy))

    def _answer(self, request: Request) -> int:
        """Execute *request* and store its status; return the bytes written."""
        request.status[0] = self._execute(request)
        return request.nr_in_bytes + 1

    def fail(self, chain: Chain) -> int:
        """Answer IOERR; see :class:`zonefs_emu.virtio.handler.Handler`."""
        writable = chain[2]
        if not writable:
            message = "a request has no room for the answer"
            raise BrokenRingError(message)
        writable[-1][-1] = S_IOERR
        # "The device MUST write at least len bytes to descriptor, beginning at the first device-writable buffer": only
        # the last byte was written, so the length is 0 unless that byte is the only one.
        return 1 if len(writable) == len(writable[0]) == 1 else 0

    def refuse_oversized(self, chain: Chain) -> int:
        """Refuse a request that is too long; see :class:`zonefs_emu.virtio.handler.Handler`."""
        nr_bytes = total_bytes(chain[1]) + total_bytes(chain[2])
        self._broken(BlkRule.BLK_OVERSIZED, f"a request of {nr_bytes} bytes")
        return self.fail(chain)

    def _execute(self, request: Request) -> int:
        """Execute *request*; return its status."""
        kind = request.kind
        match kind:
            case codec.T_IN:
                return self._in(request)
            case codec.T_OUT:
                return self._out(request)
            case codec.T_FLUSH | codec.T_FLUSH_OUT:
                return self._data_status[self.port.flush()]
            case codec.T_GET_ID:
                scatter(request.data_in, 0, self._serial[: request.nr_in_bytes])
                return S_OK
            case codec.T_WRITE_ZEROES if self._write_zeroes:
                return self._zero(request)
            case codec.T_SCSI_CMD | codec.T_SCSI_CMD_OUT:
                # Legacy SCSI pass-through: the field "errors" shows that the command was not executed, and the status
                # UNSUPP that the device has no such requests.
                room = request.nr_in_bytes
                if room >= len(codec.SCSI_ERRORS):
                    scatter(request.data_in, room - len(codec.SCSI_ERRORS), codec.SCSI_ERRORS)
                return self._unknown(kind)
            case _ if kind not in _ZONED:
                return self._unknown(kind)
            case _ if self._zoned:
                return self._execute_zoned(request)
            case _:
                return self._broken(BlkRule.BLK_NOT_ZONED, f"{TYPE_NAMES[kind]} at sector {request.sector}")

    def _unknown(self, kind: int) -> int:
        name = f" ({TYPE_NAMES[kind]})" if kind in TYPE_NAMES else ""
        return self._broken(BlkRule.BLK_TYPE, f"a request of type {kind}{name}")

    def _broken(self, rule: BlkRule, request: str) -> int:
        """Note that *request* is refused by a *rule* of virtio-blk, and return its status."""
        self.port.refusals.refuse(rule, None, Status.UNSUPPORTED, request=request)
        return STATUS_OF_RULE[rule]

    def _no_sectors(self, operation: Operation, sector: int, nr_bytes: int) -> int:
        """Note that the data of a request is not whole sectors, and return its status."""
        request = f"{operation.name.lower()} of {nr_bytes} bytes at sector {sector}"
        zone_no = sector // self._zone_size
        status = self.port.refusals.refuse(
            DeviceRule.UNALIGNED, operation, Status.UNALIGNED, sector, zone_no=zone_no, request=request
        )
        return ZONE_STATUS[status] if operation is Operation.APPEND else self._data_status[status]

    def _write_protected(self, operation: Operation, sector: int) -> int:
        """Note that a request would change a read-only image, and return its status."""
        zone_no = sector // self._zone_size
        return ZONE_STATUS[
            self.port.refusals.refuse(DeviceRule.POISONED, operation, Status.POISONED, sector, zone_no=zone_no)
        ]

    def _in(self, request: Request) -> int:
        sector, nr_bytes = request.sector, request.nr_in_bytes
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.READ, sector, nr_bytes)
        return self._data_status[self.port.read(sector, nr_bytes >> SECTOR_SHIFT, request.data_in)]

    def _out(self, request: Request) -> int:
        sector, nr_bytes = request.sector, request.nr_out_bytes
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.WRITE, sector, nr_bytes)
        if self._readonly:
            return self._write_protected(Operation.WRITE, sector)
        status = self.port.write(sector, nr_bytes >> SECTOR_SHIFT, request.data_out)
        if not status and self._write_through:
            status = self.port.flush()
        return self._out_status(status, sector)

    def _zero(self, request: Request) -> int:
        """Do WRITE_ZEROES; return its status. It obeys the rules of a write, also those of zones.

        The standard does not say how it treats zones. Linux treats it as a write at the write pointer.
        """
        nr_bytes = request.nr_out_bytes
        if nr_bytes != codec.SEGMENT.size:  # max_write_zeroes_seg is 1
            return self._broken(BlkRule.BLK_SEGMENT, f"WRITE_ZEROES with {nr_bytes} bytes of segments")
        sector, nr_sectors, flags = codec.SEGMENT.unpack(gather(request.data_out, 0, nr_bytes))
        if flags & ~codec.UNMAP:
            return self._broken(BlkRule.BLK_SEGMENT_FLAGS, f"WRITE_ZEROES at sector {sector} with flags {flags:#x}")
        if nr_sectors > WRITE_ZEROES_SECTORS_MAX:
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

    def _execute_zoned(self, request: Request) -> int:
        kind, sector = request.kind, request.sector
        operation = _MANAGEMENT.get(kind)
        if operation is not None:
            if self._readonly:
                return self._write_protected(operation, sector)
            return ZONE_STATUS[self.port.manage(operation, sector)]
        if kind == codec.T_ZONE_RESET_ALL:
            if self._readonly:
                return self._write_protected(Operation.RESET, sector)
            return ZONE_STATUS[self.port.manage_all(Operation.RESET)]
        if kind == codec.T_ZONE_REPORT:
            return self._report(sector, request)
        return self._append(sector, request)

    def _append(self, sector: int, request: Request) -> int:
        """Do ZONE_APPEND; return its status. The writable part begins with 8 bytes for the sector of the data."""
        room, nr_bytes = request.nr_in_bytes, request.nr_out_bytes
        if room < APPEND_SECTOR.size:
            return self._broken(BlkRule.BLK_APPEND_ROOM, f"append at sector {sector} with {room} writable bytes")
        if self._readonly:
            return self._write_protected(Operation.APPEND, sector)
        if nr_bytes % SECTOR_BYTES:
            return self._no_sectors(Operation.APPEND, sector, nr_bytes)
        status, landed = self.port.append(sector, nr_bytes >> SECTOR_SHIFT, request.data_out)
        if not status and self._write_through:
            status = self.port.flush()
        if not status:
            # The sector is stored at the start of the writable part. In the standard, that part has 9 bytes, so the
            # status follows the sector. Linux gives a structure of 16 bytes with padding, and expects the sector in the
            # first 8 bytes and the status in the last one.
            scatter(request.data_in, 0, APPEND_SECTOR.pack(landed))
        return ZONE_STATUS[status]

    def _report(self, sector: int, request: Request) -> int:
        """Do ZONE_REPORT; return its status. The report has as many zones as fit, from the one with *sector* on."""
        geometry = self._geometry
        room = request.nr_in_bytes
        max_zones = (room - codec.REPORT_HEADER.size) // codec.REPORT_ZONE.size
        if sector >= geometry.size:
            what = f"zone report from sector {sector}"
            return ZONE_STATUS[
                self.port.refusals.refuse(DeviceRule.OUT_OF_RANGE, None, Status.OUT_OF_RANGE, request=what)
            ]
        if max_zones < 1:
            return self._broken(BlkRule.BLK_REPORT_ROOM, f"zone report from sector {sector} with room for {room} bytes")
        first = geometry.zone_no(sector)
        count = min(max_zones, geometry.nr_zones - first)
        target = Cursor(request.data_in)
        target.store(codec.REPORT_HEADER.pack(count))
        for zone_no in range(first, first + count, _REPORT_PORTION):
            zones = self.port.report(zone_no, min(_REPORT_PORTION, first + count - zone_no))
            target.store(b"".join([codec.encode_zone(zone) for zone in zones]))
        return S_OK
