"""The I/O commands of one namespace: a zoned device behind a port, as one queue uses it.

A transport calls :meth:`Namespace.transfer` with the command, provides buffers for the returned number of bytes, and
calls :meth:`Namespace.execute`. Blocks of the namespace are those of the image; the port counts in sectors.

Source: NVM Command Set 1.0, "I/O Commands"; Zoned Namespace Command Set 1.1, "I/O Commands".
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from zonefs_emu.device.buffers import scatter
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import ZNS, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import Command, IoOpcode, ReceiveAction, SendAction, name_of
from zonefs_emu.nvme.identify import COPY_RANGES_MAX, MDTS_BYTES
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus, status_of
from zonefs_emu.nvme.zone_report import FILTERS, ZoneReporter
from zonefs_emu.units import SECTOR_SHIFT

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Flags of the first and the second command of a fused operation.
_FUSED: Final = 0b11
_FUA: Final = 1 << 30
_SELECT_ALL: Final = 1 << 8
_ZRWA: Final = 1 << 9
_PARTIAL: Final = 1 << 16
_PIREMAP: Final = 1 << 25
#: A longer report takes so long that a worker makes it.
_QUICK_REPORT_BYTES: Final = 1 << 16
_OPERATION_OF: Final[Mapping[int, Operation]] = MappingProxyType(
    {
        SendAction.CLOSE: Operation.CLOSE,
        SendAction.FINISH: Operation.FINISH,
        SendAction.OPEN: Operation.OPEN,
        SendAction.RESET: Operation.RESET,
    }
)
#: A source range of a copy, in format 0: first block and number of blocks, less one.
_COPY_RANGE: Final = struct.Struct("<8xQH14x")
_ZEROS: Final = memoryview(bytes(MDTS_BYTES))


class Transfer(NamedTuple):
    """How many bytes a command moves, and whether they come from the host."""

    nr_bytes: int
    from_host: bool


NOTHING: Final = Transfer(0, from_host=False)


def require_zns(geometry: Geometry) -> None:
    """Make sure that NVMe can express *geometry*.

    Raises:
        UsageError: it has conventional zones, or a last zone that is smaller than the others; with the remedy.
    """
    if geometry.conventional:
        message = (
            f"the image has {geometry.nr_conventional} conventional zones, which NVMe does not have: "
            "create one without them (--nr-conv 0, or --preset small-zns or zn540)"
        )
        raise UsageError(message)
    if geometry.size % geometry.zone_size:
        message = (
            "the last zone of the image is smaller than the others, which NVMe does not allow: create one whose --size "
            "is a multiple of its --zone-size"
        )
        raise UsageError(message)


class Namespace:
    """One device as a namespace, for one queue, which gives it one command at a time."""

    def __init__(self, device: ZonedDevice, nsid: int) -> None:
        """Serve *device* as namespace *nsid*; see :func:`require_zns`."""
        self.device = device
        self.nsid = nsid
        self.port: Port = device.port("nvme", ZNS)
        self.geometry = device.geometry
        self._block_shift = self.geometry.block_size_bytes.bit_length() - 1
        self._sector_shift = self._block_shift - SECTOR_SHIFT
        self._reporter = ZoneReporter(self.port)
        self._readonly = device.image.readonly
        #: False after a host has switched the volatile write cache off: each write is then durable when it is answered.
        self.caches_writes = True
        self._handlers: Mapping[int, Callable[[Command, Sequence[Buffer]], Answer]] = {
            IoOpcode.FLUSH: self._flush,
            IoOpcode.WRITE: self._write,
            IoOpcode.READ: self._read,
            IoOpcode.COMPARE: self._compare,
            IoOpcode.WRITE_ZEROES: self._write_zeroes,
            IoOpcode.COPY: self._copy,
            IoOpcode.ZONE_SEND: self._send,
            IoOpcode.ZONE_RECEIVE: self._receive,
            IoOpcode.ZONE_APPEND: self._append,
        }

    def transfer(self, command: Command) -> Transfer:
        """Return how many bytes *command* moves, and in which direction.

        Raises:
            RefusedError: there is no such command, it moves more than MDTS allows, or it is a part of a fused
            operation, whose second command would be carried out even if the first one fails.
        """
        opcode = command.opcode
        if command.flags & _FUSED:
            raise RefusedError(NvmeRule.NVME_FIELD, "a part of a fused operation")
        if opcode in (IoOpcode.READ, IoOpcode.WRITE, IoOpcode.ZONE_APPEND, IoOpcode.COMPARE):
            found = Transfer(command.nr_blocks << self._block_shift, from_host=opcode != IoOpcode.READ)
        elif opcode == IoOpcode.ZONE_SEND and command.cdw13 & 0xFF == SendAction.SET_DESCRIPTOR:
            found = Transfer(self.geometry.extension_bytes, from_host=True)
        elif opcode == IoOpcode.COPY:
            found = Transfer(_COPY_RANGE.size * ((command.cdw12 & 0xFF) + 1), from_host=True)
        elif opcode == IoOpcode.ZONE_RECEIVE:
            found = Transfer((command.cdw12 + 1) << 2, from_host=False)
        elif opcode in self._handlers:
            return NOTHING
        else:
            raise RefusedError(NvmeRule.NVME_OPCODE, "no such I/O command")
        if found.nr_bytes > MDTS_BYTES:
            raise RefusedError(NvmeRule.NVME_TRANSFER, f"{found.nr_bytes} bytes in place of up to {MDTS_BYTES}")
        return found

    def may_wait(self, command: Command) -> bool:
        """Return whether *command*, which :meth:`transfer` has accepted, may wait for the host's disk or take long."""
        match command.opcode:
            case IoOpcode.WRITE | IoOpcode.ZONE_APPEND:
                is_through = not self.caches_writes or command.cdw12 & _FUA
                zone_no = self._sector(command.slba) // self.geometry.zone_size
                return bool(is_through) or self.port.has_pending_reset(zone_no)
            case IoOpcode.READ | IoOpcode.COMPARE:
                return False
            case IoOpcode.ZONE_SEND:
                if command.cdw13 & _ZRWA or command.cdw13 & 0xFF == SendAction.SET_DESCRIPTOR:
                    return self.port.has_pending_reset(self._sector(command.slba) // self.geometry.zone_size)
                return bool(command.cdw13 & _SELECT_ALL)
            case IoOpcode.ZONE_RECEIVE:
                return command.cdw12 >= _QUICK_REPORT_BYTES >> 2
            case _:
                return True

    def caches_plain_writes(self) -> bool:
        """Return whether a write without Force Unit Access is answered without a flush.

        False also for a read-only namespace, so that the compiled walkers leave its writes to Python, which refuses
        them.
        """
        return self.caches_writes and not self._readonly

    def execute(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        """Carry out *command* on *buffers*, whose bytes are together as many as :meth:`transfer` has returned.

        Does not raise for errors of the host: a command that is refused or fails has an answer with another status than
        SUCCESS. Blocks where :meth:`may_wait` says so.
        """
        handler = self._handlers.get(command.opcode)
        if handler is None:
            return self.refuse(command, RefusedError(NvmeRule.NVME_OPCODE, "no such I/O command"))
        try:
            return handler(command, buffers)
        except RefusedError as refused:
            return self.refuse(command, refused)

    def refuse(self, command: Command, refused: RefusedError) -> Answer:
        """Note that *command* breaks a rule of the drive, and return its answer."""
        request = f"{name_of(command.opcode, admin=False)}: {refused.what}"
        self.port.refusals.refuse(refused.rule, None, refused.status, request=request)
        return refused.answer

    def _sector(self, lba: int) -> int:
        return lba << self._sector_shift

    def _require_writable(self) -> None:
        if self._readonly:
            raise RefusedError(NvmeRule.NVME_READ_ONLY, "a change of a namespace that is read-only")

    def _flush(self, _command: Command, _buffers: "Sequence[Buffer]") -> Answer:
        return _answer(self.port.flush(), Operation.FLUSH)

    def _read(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        nr_sectors = command.nr_blocks << self._sector_shift
        status = self.port.read(self._sector(command.slba), nr_sectors, buffers)
        return _answer(status, Operation.READ) if status else SUCCESS

    def _write(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        self._require_writable()
        nr_sectors = command.nr_blocks << self._sector_shift
        status = self.port.write(self._sector(command.slba), nr_sectors, buffers)
        if status:
            return _answer(status, Operation.WRITE)
        return self._made_durable(command) or SUCCESS

    def _append(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        self._require_writable()
        if command.cdw12 & _PIREMAP:
            raise RefusedError(NvmeRule.NVME_FIELD, "PIREMAP, without protection information")
        nr_sectors = command.nr_blocks << self._sector_shift
        status, sector = self.port.append(self._sector(command.slba), nr_sectors, buffers)
        if status:
            return _answer(status, Operation.APPEND)
        return self._made_durable(command) or Answer(NvmeStatus.SUCCESS, sector >> self._sector_shift)

    def _write_zeroes(self, command: Command, _buffers: "Sequence[Buffer]") -> Answer:
        self._require_writable()
        nr_bytes = command.nr_blocks << self._block_shift
        if nr_bytes > MDTS_BYTES:
            raise RefusedError(NvmeRule.NVME_TRANSFER, f"{nr_bytes} bytes in place of up to {MDTS_BYTES}")
        status = self.port.write(self._sector(command.slba), nr_bytes >> SECTOR_SHIFT, (_ZEROS[:nr_bytes],))
        if status:
            return _answer(status, Operation.WRITE)
        return self._made_durable(command) or SUCCESS

    def _made_durable(self, command: Command) -> Answer | None:
        """Flush if *command* has FUA set or the host has switched the cache off; return a failure."""
        if self.caches_writes and not command.cdw12 & _FUA:
            return None
        status = self.port.flush()
        return _answer(status, Operation.FLUSH) if status else None

    def _compare(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        nr_bytes = command.nr_blocks << self._block_shift
        found = memoryview(bytearray(nr_bytes))
        status = self.port.read(self._sector(command.slba), nr_bytes >> SECTOR_SHIFT, (found,))
        if status:
            return _answer(status, Operation.READ)
        at = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            if found[at : at + len(view)] != view:
                raise RefusedError(NvmeRule.NVME_COMPARE, f"block {command.slba} and {command.nr_blocks - 1} more")
            at += len(view)
        return SUCCESS

    def _copy(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        """Read all source ranges and write them at SDLBA, as one write of the device."""
        self._require_writable()
        nr_ranges, form = (command.cdw12 & 0xFF) + 1, command.cdw12 >> 8 & 0xF
        if form:
            raise RefusedError(NvmeRule.NVME_FIELD, f"source ranges in format {form}")
        ranges = list(_COPY_RANGE.iter_unpack(b"".join(bytes(buffer) for buffer in buffers)))
        nr_bytes = sum((nr_blocks + 1) << self._block_shift for _, nr_blocks in ranges)
        if nr_ranges > COPY_RANGES_MAX or nr_bytes > MDTS_BYTES:
            raise RefusedError(NvmeRule.NVME_COPY, f"{nr_ranges} ranges of {nr_bytes} bytes")
        data = memoryview(bytearray(nr_bytes))
        at = 0
        for slba, nr_blocks in ranges:
            end = at + ((nr_blocks + 1) << self._block_shift)
            status = self.port.read(self._sector(slba), (end - at) >> SECTOR_SHIFT, (data[at:end],))
            if status:
                return _answer(status, Operation.READ)
            at = end
        status = self.port.write(self._sector(command.slba), nr_bytes >> SECTOR_SHIFT, (data,))
        if status:
            return _answer(status, Operation.WRITE)
        return self._made_durable(command) or SUCCESS

    # -- zone management --------------------------------------------------------------------------------------

    def _send(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        self._require_writable()
        action = command.cdw13 & 0xFF
        select_all = bool(command.cdw13 & _SELECT_ALL)
        with_zrwa = bool(command.cdw13 & _ZRWA)
        if with_zrwa:
            self._require_zrwa(action, select_all=select_all)
            if action == SendAction.OPEN:
                return _answer(self.port.allocate_zrwa(self._sector(command.slba)), Operation.ALLOCATE_ZRWA)
        if action == SendAction.OFFLINE:
            return self._take_offline(command, select_all=select_all)
        if action == SendAction.SET_DESCRIPTOR and self.geometry.extension_bytes:
            if select_all:
                raise RefusedError(NvmeRule.NVME_FIELD, "a descriptor extension for all zones")
            data = b"".join(bytes(buffer) for buffer in buffers)
            status = self.port.set_extension(self._sector(command.slba), data, zrwa=with_zrwa)
            return _answer(status, Operation.SET_EXTENSION)
        if action == SendAction.FLUSH_ZRWA and self.geometry.zrwa_size:
            if select_all:
                raise RefusedError(NvmeRule.NVME_FIELD, "a flush of the random write areas of all zones")
            return _answer(self.port.flush_zrwa(self._sector(command.slba)), Operation.FLUSH_ZRWA)
        operation = _OPERATION_OF.get(action)
        if operation is None:
            raise RefusedError(NvmeRule.NVME_FIELD, f"zone send action {action:02X}h")
        if select_all:
            return _answer(self.port.manage_all(operation), operation)
        return _answer(self.port.manage(operation, self._sector(command.slba)), operation)

    def _require_zrwa(self, action: int, *, select_all: bool) -> None:
        """Make sure that *action* can give a zone a random write area.

        Raises:
            RefusedError: it cannot, or the namespace has none.
        """
        if not self.geometry.zrwa_size:
            raise RefusedError(NvmeRule.NVME_FIELD, "a zone random write area, which the namespace does not have")
        if select_all or action not in (SendAction.OPEN, SendAction.SET_DESCRIPTOR):
            what = "a zone random write area with another action than to open a zone or to set its descriptor extension"
            raise RefusedError(NvmeRule.NVME_FIELD, what)

    def _take_offline(self, command: Command, *, select_all: bool) -> Answer:
        """Move READONLY zones to OFFLINE, the only transition of these that a host may request."""
        if select_all:
            for zone in self._reporter.matching(0, frozenset((Condition.READONLY,))):
                if status := self.port.set_cond(zone.zone_no, Condition.OFFLINE):
                    return _answer(status, Operation.SET_COND)
            return SUCCESS
        zone_no, offset = divmod(self._sector(command.slba), self.geometry.zone_size)
        if zone_no >= self.geometry.nr_zones:
            return self._out_of_range("zone send")
        if offset:
            raise RefusedError(NvmeRule.NVME_FIELD, f"block {command.slba} is not the first one of a zone")
        cond = self.port.zone(zone_no).cond
        if cond is Condition.OFFLINE:
            return SUCCESS
        if cond is not Condition.READONLY:
            status = self.port.refusals.refuse(
                DeviceRule.BAD_TRANSITION, Operation.SET_COND, Status.BAD_TRANSITION, self._sector(command.slba),
                zone_no=zone_no,
            )  # fmt: skip
            return _answer(status, Operation.SET_COND)
        return _answer(self.port.set_cond(zone_no, Condition.OFFLINE), Operation.SET_COND)

    def _receive(self, command: Command, buffers: "Sequence[Buffer]") -> Answer:
        action = command.cdw13 & 0xFF
        extended = action == ReceiveAction.EXTENDED_REPORT and self.geometry.extension_bytes > 0
        if action != ReceiveAction.REPORT and not extended:
            raise RefusedError(NvmeRule.NVME_FIELD, f"zone receive action {action:02X}h")
        conds = FILTERS.get(command.cdw13 >> 8 & 0xFF)
        if conds is None:
            raise RefusedError(
                NvmeRule.NVME_FIELD, f"zone receive action specific field {command.cdw13 >> 8 & 0xFF:02X}h"
            )
        sector = self._sector(command.slba)
        if sector >= self.geometry.size:
            return self._out_of_range("zone receive")
        nr_bytes = (command.cdw12 + 1) << 2
        status, report = self._reporter.report(
            sector // self.geometry.zone_size, nr_bytes, conds, partial=bool(command.cdw13 & _PARTIAL),
            extended=extended,
        )  # fmt: skip
        if status:
            return _answer(status, Operation.READ)
        scatter([memoryview(buffer).cast("B") for buffer in buffers], 0, report)
        return SUCCESS

    def _out_of_range(self, request: str) -> Answer:
        return _answer(
            self.port.refusals.refuse(DeviceRule.OUT_OF_RANGE, None, Status.OUT_OF_RANGE, request=request), None
        )


def refuse_command(namespaces: Mapping[int, Namespace], command: Command, refused: RefusedError) -> Answer:
    """Note that *command* of a queue with *namespaces* breaks a rule of the drive, and return its answer.

    The image of the namespace that *command* names keeps the refusal; that of the first one if there is no such
    namespace, because a refusal needs a log.
    """
    namespace = namespaces.get(command.nsid) or next(iter(namespaces.values()))
    return namespace.refuse(command, refused)


def flush_all(namespaces: Mapping[int, Namespace], command: Command) -> Answer:
    """Carry *command* out, a flush of all *namespaces* in their order; return the answer.

    The first failure ends it, and is the answer: the namespaces after that one are not flushed.
    """
    answers = (namespace.execute(command, ()) for namespace in namespaces.values())
    return next((answer for answer in answers if answer.status), SUCCESS)


def _answer(status: Status, operation: Operation | None) -> Answer:
    return Answer(status_of(status, operation)) if status else SUCCESS
