"""One controller: its registers, admin commands, features, and the events that it reports to its host.

A controller belongs to one host. One thread, the one that serves its admin queue, calls all methods but three: the
threads of I/O queues, of which a transport may have several, look at :attr:`Controller.is_ready` and call
:meth:`Controller.namespaces_of_queue` and :meth:`Controller.note_error`.

Source: NVM Express Base Specification 2.0, "Controller Properties", "Admin Command Set", "Features".
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from itertools import count
from types import MappingProxyType
from typing import Final, TypeAlias, TypedDict
from weakref import WeakValueDictionary

from zonefs_emu.nvme import identify, logs
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.changed_namespaces import ChangedNamespaces, critical_warning, is_protected
from zonefs_emu.nvme.changed_zones import ChangedZones
from zonefs_emu.nvme.command import ALL_NAMESPACES, AdminOpcode, Command, IoOpcode, name_of
from zonefs_emu.nvme.identify import Cns, CommandSet, ControllerIdentity
from zonefs_emu.nvme.logs import ErrorEntry, Log
from zonefs_emu.nvme.namespace import Namespace
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus, status_field
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.nvme.timestamp import TIMESTAMP_BYTES, Timestamp
from zonefs_emu.units import SECTOR_SHIFT

#: Firmware revision; it changes with the served protocol and not with the program.
FIRMWARE: Final = "2.0"
#: Queue entries, less one (CAP.MQES).
QUEUE_ENTRIES_MAX: Final = 127
#: I/O queues of one controller.
IO_QUEUES_MAX: Final = 16

#: CAP: contiguous queues; 5 s until ready; NVM and I/O command sets; ready with its media (CRMS); pages of 4 KiB.
CAPABILITIES: Final = QUEUE_ENTRIES_MAX | 1 << 16 | 10 << 24 | 1 << 37 | 1 << 43 | 1 << 59

_ENABLE: Final = 1
_SHUTDOWN: Final = 0b11 << 14
_READY: Final = 1
_SHUTDOWN_DONE: Final = 0b10 << 2

#: The result of an event: a notice, Zone Descriptor Changed, and the log page; dword 1 has the namespace.
_ZONE_NOTICE: Final = 2 | 0xEF << 8 | Log.CHANGED_ZONES << 16
#: Namespace Attribute Changed; the log page has the namespaces.
_NAMESPACE_NOTICE: Final = 2 | 0x00 << 8 | Log.CHANGED_NAMESPACES << 16
_NSID_SHIFT: Final = 32
_RETAIN_EVENT: Final = 1 << 15
_HOST_ID_EXTENDED: Final = 1


class Register(IntEnum):
    """Offsets of the controller's properties."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    CRTO = 0x68


class Feature(IntEnum):
    """Feature identifiers."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    NR_QUEUES = 0x07
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B
    TIMESTAMP = 0x0E
    KEEP_ALIVE = 0x0F
    HOST_BEHAVIOUR = 0x16
    COMMAND_SET_PROFILE = 0x19
    HOST_ID = 0x81


#: Values at the start of a controller.
_DEFAULTS: Final[Mapping[int, int]] = {
    Feature.ARBITRATION: 0,
    Feature.POWER_MANAGEMENT: 0,
    Feature.TEMPERATURE_THRESHOLD: 343,
    Feature.ERROR_RECOVERY: 0,
    Feature.WRITE_CACHE: 1,
    Feature.NR_QUEUES: (IO_QUEUES_MAX - 1) << 16 | IO_QUEUES_MAX - 1,
    Feature.WRITE_ATOMICITY: 0,
    Feature.ASYNC_EVENTS: 0,
    Feature.KEEP_ALIVE: 0,
    Feature.COMMAND_SET_PROFILE: 0,
}
#: Features whose value is data, and its length.
_DATA_FEATURES: Final[Mapping[int, int]] = {
    Feature.TIMESTAMP: TIMESTAMP_BYTES, Feature.HOST_BEHAVIOUR: 512, Feature.HOST_ID: 16,
}  # fmt: skip
#: The I/O commands of each command set; the Zoned Namespace Command Set includes the NVM Command Set.
_ZONE_COMMANDS: Final = (IoOpcode.ZONE_SEND, IoOpcode.ZONE_RECEIVE, IoOpcode.ZONE_APPEND)
_IO_COMMANDS: Final[Mapping[int, tuple[IoOpcode, ...]]] = {
    CommandSet.NVM: tuple(opcode for opcode in IoOpcode if opcode not in _ZONE_COMMANDS),
    CommandSet.ZNS: tuple(IoOpcode),
}
_LOGS: Final = tuple(log for log in Log if log is not Log.DISCOVERY)


class ControllerState(TypedDict):
    """The settings of a host in a controller, for a controller that continues in another process: numbers and text."""

    cc: int
    csts: int
    features: list[tuple[int, int]]
    #: The values, in hexadecimal digits.
    data_features: list[tuple[int, str]]
    timestamp: tuple[int, int, int]
    event_cids: list[int]
    notices: list[int]
    unread_notice: int
    #: The write protected namespaces that the host knows as such.
    protected: list[int]


#: Carries out an admin command with data from the host; returns None if the answer comes later.
AdminHandler: TypeAlias = Callable[[Command, memoryview | bytes], Answer | None]


class Controller:
    """The controller of one host in *subsystem*. *admin*: the admin commands of its transport.

    *transport_handlers*: the commands among them that the transport carries out itself; they may raise RefusedError.
    """

    def __init__(
        self,
        subsystem: Subsystem,
        identity: ControllerIdentity,
        *,
        admin: tuple[AdminOpcode, ...],
        discovered: Callable[[], bytes] | None = None,
        transport_handlers: Mapping[int, AdminHandler] = MappingProxyType({}),
    ) -> None:
        """*discovered* returns the discovery log, which makes this a discovery controller without namespaces."""
        self.subsystem = subsystem
        self.identity = identity
        self.cc = 0
        self.csts = 0
        #: Called from any thread when :meth:`due_events` may return something.
        self.wake: Callable[[], None] = _nothing
        #: Called when the host resets or shuts down the controller, to drop its queues.
        self.on_disabled: Callable[[], None] = _nothing
        self._admin = admin
        self._discovered = discovered
        self.namespaces = {} if discovered else subsystem.namespaces()
        self.features: dict[int, int] = dict(_DEFAULTS)
        #: The timestamp is not among them: its bytes are computed when the host reads it.
        self._data_features: dict[int, bytes] = {
            feature: bytes(length) for feature, length in _DATA_FEATURES.items() if feature != Feature.TIMESTAMP
        }
        self._timestamp = Timestamp(subsystem.clock_ns)
        #: The namespaces of all queues, by identity. Weak references: a queue may be dropped without being closed. For
        #: other threads, adding one is one step, and so is listing all. A WeakSet was rejected: it cannot be gone
        #: through while another thread adds to it.
        self._of_queues: WeakValueDictionary[int, Namespace] = WeakValueDictionary()
        self._event_cids: list[int] = []
        self._notices: deque[int] = deque()
        #: The notice that was reported, and whose log page the host has not read yet: until then none follows; or 0.
        self._unread_notice = 0
        #: Whether zones or namespaces may have changed since this controller looked last.
        self._has_to_look = False
        self._changed = {nsid: ChangedZones(each, self._zones_changed) for nsid, each in self.namespaces.items()}
        self._changed_namespaces = ChangedNamespaces(
            {nsid: each.device for nsid, each in self.namespaces.items()}, self._namespaces_changed
        )
        self._errors: deque[ErrorEntry] = deque(maxlen=identify.ELPE + 1)
        self._error_numbers = count(1)
        self._handlers: Mapping[int, AdminHandler] = {
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.ASYNC_EVENT: self._async_event,
            AdminOpcode.KEEP_ALIVE: self._keep_alive,
            **transport_handlers,
        }

    def close(self) -> None:
        """End the controller; it reports no more events."""
        self._changed_namespaces.close()
        for changed in self._changed.values():
            changed.close()

    def state(self) -> ControllerState:
        """Return the state for :meth:`restore`. The error log is not in it, and begins anew."""
        return {
            "cc": self.cc,
            "csts": self.csts,
            "features": list(self.features.items()),
            "data_features": [(feature, value.hex()) for feature, value in self._data_features.items()],
            "timestamp": self._timestamp.state(),
            "event_cids": list(self._event_cids),
            "notices": list(self._notices),
            "unread_notice": self._unread_notice,
            "protected": self._changed_namespaces.known(),
        }

    def restore(self, state: ControllerState) -> None:
        """Continue from *state*, that of a controller in another process.

        It is not known which changed zones the host has read, so all of them count as unread. An unnecessary event
        makes the host read zones that it knows already; a missing one would leave it without the change.
        """
        self.cc, self.csts = state["cc"], state["csts"]
        self.features.update(state["features"])
        self._data_features.update((feature, bytes.fromhex(value)) for feature, value in state["data_features"])
        self._timestamp.restore(state["timestamp"])
        self._event_cids = list(state["event_cids"])
        self._notices = deque(state["notices"])
        self._unread_notice = state["unread_notice"]
        self._changed_namespaces.restore(state["protected"])
        for changed in self._changed.values():
            changed.forget()
        self._has_to_look = True

    def namespaces_of_queue(self) -> dict[int, Namespace]:
        """Return the namespaces for the use of one I/O queue; from any thread."""
        namespaces = {} if self._discovered else self.subsystem.namespaces()
        for namespace in namespaces.values():
            self._of_queues[id(namespace)] = namespace
        self._apply_write_cache()
        return namespaces

    # -- registers --------------------------------------------------------------------------------------------

    def read_register(self, offset: int) -> int | None:
        """Return the value of the register at *offset*; None if there is none."""
        match offset:
            case Register.CAP:
                return CAPABILITIES
            case Register.VS:
                return identify.VERSION
            case Register.CC:
                return self.cc
            case Register.CSTS:
                return self.csts
            case Register.CRTO:
                return 10 << 16 | 10
            case _:
                return None

    def write_register(self, offset: int, value: int) -> bool:
        """Set the register at *offset*; False if it cannot be set."""
        if offset != Register.CC:
            return False
        was, self.cc = self.cc, value & 0xFFFFFFFF
        if value & _ENABLE and not was & _ENABLE:
            self.csts = _READY
        if was & _ENABLE and not value & _ENABLE:
            self.reset()
        if value & _SHUTDOWN and not was & _SHUTDOWN:
            self.csts |= _SHUTDOWN_DONE
            self.on_disabled()
        return True

    def reset(self) -> None:
        """Drop the queues and settings of the host. Zones do not change."""
        self.cc &= ~_ENABLE
        self.csts = 0
        self._event_cids.clear()
        self._notices.clear()
        self._unread_notice = 0
        self._timestamp.reset()
        self.features.update(_DEFAULTS)
        self._apply_write_cache()
        self.on_disabled()

    @property
    def is_ready(self) -> bool:
        """Whether the controller accepts commands."""
        return bool(self.csts & _READY) and not self.csts & _SHUTDOWN_DONE

    # -- admin commands ---------------------------------------------------------------------------------------

    def data_length(self, command: Command) -> tuple[int, bool]:
        """Return how many bytes an admin *command* moves, and whether they come from the host."""
        match command.opcode:
            case AdminOpcode.IDENTIFY:
                return identify.IDENTIFY_BYTES, False
            case AdminOpcode.GET_LOG_PAGE:
                return ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) << 2, False
            case AdminOpcode.SET_FEATURES:
                return _DATA_FEATURES.get(command.cdw10 & 0xFF, 0), True
            case AdminOpcode.GET_FEATURES:
                return _DATA_FEATURES.get(command.cdw10 & 0xFF, 0), False
            case _:
                return 0, False

    def execute(self, command: Command, data: memoryview | bytes = b"") -> Answer | None:
        """Carry out an admin *command* with *data* from the host; None if its answer comes later, as an event."""
        handler = self._handlers.get(command.opcode) if command.opcode in self._admin else None
        try:
            if handler is None:
                raise RefusedError(NvmeRule.NVME_OPCODE, "no such admin command")
            length, _ = self.data_length(command)
            if length > identify.MDTS_BYTES:
                raise RefusedError(NvmeRule.NVME_TRANSFER, f"{length} bytes in place of up to {identify.MDTS_BYTES}")
            return handler(command, data)
        except RefusedError as refused:
            return self.refuse(command, refused)

    def refuse(self, command: Command, refused: RefusedError) -> Answer:
        """Note that an admin *command* breaks a rule of the drive, and return its answer."""
        request = f"admin command {name_of(command.opcode, admin=True)}: {refused.what}"
        for namespace in list(self.namespaces.values())[:1]:
            namespace.port.refusals.refuse(refused.rule, None, refused.status, request=request)
        self.note_error(0, command, refused.answer.status)
        return refused.answer

    def note_error(self, sqid: int, command: Command, status: NvmeStatus) -> None:
        """Put a refused *command* of queue *sqid* into the error log; from any thread."""
        number, lba = next(self._error_numbers), command.slba if sqid else 0
        self._errors.append(ErrorEntry(number, sqid, command.cid, status_field(status), lba, command.nsid))

    @property
    def _nr_errors(self) -> int:
        """How many errors were noted so far; the log keeps the last ones."""
        return max((entry.number for entry in tuple(self._errors)), default=0)

    def _identify(self, command: Command, _data: memoryview | bytes) -> Answer:
        cns = command.cdw10 & 0xFF
        command_set = command.cdw11 >> 24
        nsid = command.nsid
        geometries = [namespace.geometry for namespace in self.namespaces.values()]
        match cns:
            case Cns.CONTROLLER:
                found = identify.controller(self.identity)
            case Cns.SET_CONTROLLER if command_set in (CommandSet.NVM, CommandSet.ZNS):
                found = identify.set_controller(command_set, geometries)
            case Cns.ACTIVE_NAMESPACES | Cns.ALLOCATED_NAMESPACES:
                found = identify.namespace_list(self.namespaces, nsid)
            case Cns.SET_ACTIVE_NAMESPACES:
                found = identify.namespace_list(self.namespaces if command_set == CommandSet.ZNS else (), nsid)
            case Cns.CONTROLLERS | Cns.NAMESPACE_CONTROLLERS:
                # All namespaces are attached to all controllers that have namespaces.
                if cns == Cns.NAMESPACE_CONTROLLERS and nsid not in self.namespaces:
                    raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {nsid:X}h")
                found = identify.controller_list(self.subsystem.io_cntlids(), command.cdw10 >> 16)
            case Cns.ENDURANCE_GROUPS:
                found = identify.endurance_groups(command.cdw11 & 0xFFFF)
            case Cns.COMMAND_SETS:
                found = identify.command_sets()
            case Cns.NAMESPACE | Cns.DESCRIPTORS | Cns.SET_NAMESPACE | Cns.INDEPENDENT_NAMESPACE:
                found = self._identify_namespace(cns, nsid, command_set)
            case _:
                raise RefusedError(NvmeRule.NVME_FIELD, f"CNS {cns:02X}h, CSI {command_set:02X}h")
        return Answer(NvmeStatus.SUCCESS, data=found)

    def _identify_namespace(self, cns: int, nsid: int, command_set: int) -> bytes:
        namespace = self.namespaces.get(nsid)
        if namespace is None:
            if nsid in (0, ALL_NAMESPACES) or nsid > self.identity.max_nsid:
                raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {nsid:X}h")
            return bytes(identify.IDENTIFY_BYTES)  # inactive
        readonly = is_protected(namespace.device)
        match cns:
            case Cns.NAMESPACE:
                return identify.namespace(namespace.geometry, namespace.device.uuid, readonly=readonly)
            case Cns.DESCRIPTORS:
                return identify.descriptors(namespace.device.uuid)
            case Cns.INDEPENDENT_NAMESPACE:
                return identify.independent_namespace(readonly=readonly)
            case _:
                if command_set == CommandSet.ZNS:
                    return identify.zoned_namespace(namespace.geometry)
                if command_set == CommandSet.NVM:
                    return bytes(identify.IDENTIFY_BYTES)
                raise RefusedError(NvmeRule.NVME_FIELD, f"CNS {cns:02X}h, CSI {command_set:02X}h")

    def _get_log_page(self, command: Command, _data: memoryview | bytes) -> Answer:
        log = command.cdw10 & 0xFF
        offset = command.cdw12 | command.cdw13 << 32
        length, _ = self.data_length(command)
        if offset & 3:
            raise RefusedError(NvmeRule.NVME_FIELD, f"log page offset {offset}, which is not whole dwords")
        page = self._log_page(log, command)
        if offset > len(page):
            raise RefusedError(NvmeRule.NVME_FIELD, f"log page offset {offset}, of a page of {len(page)} bytes")
        return Answer(NvmeStatus.SUCCESS, data=page[offset : offset + length].ljust(length, b"\0"))

    def _log_page(self, log: int, command: Command) -> bytes:
        if self._discovered is not None:
            if log == Log.DISCOVERY:
                return self._discovered()
            raise RefusedError(NvmeRule.NVME_LOG_PAGE, f"log page {log:02X}h of a discovery controller")
        match log:
            case Log.SUPPORTED:
                return logs.supported(_LOGS)
            case Log.ERROR:
                return logs.errors(list(self._errors)).ljust(64 * (identify.ELPE + 1), b"\0")
            case Log.SMART:
                return logs.smart(*self._health())
            case Log.FIRMWARE:
                return logs.firmware(FIRMWARE)
            case Log.CHANGED_NAMESPACES:
                return self._changed_namespaces_page(command)
            case Log.EFFECTS:
                commands = _IO_COMMANDS.get(command.cdw14 >> 24)
                if commands is None:
                    raise RefusedError(NvmeRule.NVME_FIELD, f"effects of command set {command.cdw14 >> 24:02X}h")
                return logs.effects(self._admin, commands)
            case Log.ENDURANCE_GROUP:
                if command.cdw11 >> 16 != identify.ENDURANCE_GROUP:
                    raise RefusedError(NvmeRule.NVME_FIELD, f"endurance group {command.cdw11 >> 16}")
                capacity = sum(
                    each.geometry.zone_capacity * each.geometry.nr_zones for each in self.namespaces.values()
                )
                return logs.endurance_group(*self._health(), capacity << SECTOR_SHIFT)
            case Log.CHANGED_ZONES:
                return self._changed_zones(command)
            case _:
                raise RefusedError(NvmeRule.NVME_LOG_PAGE, f"log page {log:02X}h")

    def _health(self) -> tuple[Mapping[str, int], int, int]:
        """Return the counters of all namespaces, the number of errors, and the critical warning."""
        total: dict[str, int] = {}
        devices = [namespace.device for namespace in self.namespaces.values()]
        for device in devices:
            for name, number in device.statistics().items():
                total[name] = total.get(name, 0) + number
        return total, self._nr_errors, critical_warning(devices)

    def _abort(self, _command: Command, _data: memoryview | bytes) -> Answer:
        """Answer that no command was aborted.

        Commands are carried out in order, so only an Asynchronous Event Request waits. It stays, as the specification
        allows: a controller may abort what it can.
        """
        return Answer(NvmeStatus.SUCCESS, 1)

    def _keep_alive(self, _command: Command, _data: memoryview | bytes) -> Answer:
        return SUCCESS

    # -- features ---------------------------------------------------------------------------------------------

    def _set_features(self, command: Command, data: memoryview | bytes) -> Answer:
        feature, value = command.cdw10 & 0xFF, command.cdw11
        if command.cdw10 & 1 << 31:
            raise RefusedError(NvmeRule.NVME_FEATURE_SAVE, f"feature {feature:02X}h")
        if feature == Feature.TIMESTAMP:
            self._timestamp.set(bytes(data))
            return SUCCESS
        if feature in _DATA_FEATURES:
            self._data_features[feature] = bytes(data).ljust(_DATA_FEATURES[feature], b"\0")
            return SUCCESS
        if feature not in self.features:
            raise RefusedError(NvmeRule.NVME_FIELD, f"feature {feature:02X}h")
        match feature:
            case Feature.NR_QUEUES:
                if 0xFFFF in (value & 0xFFFF, value >> 16):
                    raise RefusedError(NvmeRule.NVME_FIELD, "65,536 queues")
                granted = [min(asked, IO_QUEUES_MAX - 1) for asked in (value & 0xFFFF, value >> 16)]
                self.features[feature] = granted[0] | granted[1] << 16
                return Answer(NvmeStatus.SUCCESS, self.features[feature])
            case Feature.COMMAND_SET_PROFILE if value & 0x1FF:
                raise RefusedError(NvmeRule.NVME_COMMAND_SETS, f"combination {value & 0x1FF}")
            case Feature.ASYNC_EVENTS:
                self.features[feature] = value
                self.wake()  # what changed before may be due now
            case Feature.WRITE_CACHE:
                self.features[feature] = value & 1
                self._apply_write_cache()
            case _:
                self.features[feature] = value
        return SUCCESS

    def _get_features(self, command: Command, _data: memoryview | bytes) -> Answer:
        feature, select = command.cdw10 & 0xFF, command.cdw10 >> 8 & 7
        if feature in _DATA_FEATURES and select == 0:
            result = _HOST_ID_EXTENDED if feature == Feature.HOST_ID else 0
            data = self._timestamp.data() if feature == Feature.TIMESTAMP else self._data_features[feature]
            return Answer(NvmeStatus.SUCCESS, result, data)
        if feature not in self.features:
            raise RefusedError(NvmeRule.NVME_FIELD, f"feature {feature:02X}h")
        match select:
            case 0:
                return Answer(NvmeStatus.SUCCESS, self.features[feature])
            case 1 | 2:
                return Answer(NvmeStatus.SUCCESS, _DEFAULTS[feature])
            case 3:
                return Answer(NvmeStatus.SUCCESS, 0b100)  # changeable, neither saveable nor of one namespace
            case _:
                raise RefusedError(NvmeRule.NVME_FIELD, f"selection {select} of a feature")

    def _apply_write_cache(self) -> None:
        for reference in self._of_queues.valuerefs():
            namespace = reference()
            if namespace is not None:
                namespace.caches_writes = bool(self.features[Feature.WRITE_CACHE])

    @property
    def keep_alive_ns(self) -> int:
        """The time without a command of the host after which the controller ends; 0: never."""
        return self.features[Feature.KEEP_ALIVE] * 1_000_000

    # -- events -----------------------------------------------------------------------------------------------

    def _async_event(self, command: Command, _data: memoryview | bytes) -> Answer | None:
        if len(self._event_cids) > identify.AERL:
            raise RefusedError(NvmeRule.NVME_EVENTS, f"request number {len(self._event_cids) + 1}")
        self._event_cids.append(command.cid)
        self.wake()
        return None

    def _zones_changed(self) -> None:
        """Note that others have changed zones; quick and thread safe.

        Every write of another front-end calls this, so it wakes the thread of the admin queue only if the host has
        enabled the events.
        """
        self._has_to_look = True
        if self._wants_events(_ZONE_NOTICE):
            self.wake()

    def _namespaces_changed(self) -> None:
        """Note that a namespace may be write protected now; quick and thread safe."""
        self._has_to_look = True
        self.wake()

    def _wants_events(self, notice: int) -> bool:
        """Whether the host has enabled the events of the kind of *notice*."""
        bit = identify.OAES_NAMESPACES if notice == _NAMESPACE_NOTICE else identify.OAES_ZONES
        return bool(self.features[Feature.ASYNC_EVENTS] & bit)

    def due_events(self) -> Iterator[tuple[int, Answer]]:
        """Yield (cid, answer) of each Asynchronous Event Request that an event now answers.

        Changes by the drive itself are reported (:class:`ChangedZones`, :class:`ChangedNamespaces`). After a notice,
        the next one waits until the host has read the log page of the first: "subsequent events of that event type are
        automatically masked until the host clears that event" (Base Specification, "Asynchronous Event Request
        command").
        """
        self._look_for_changes()
        if not self._event_cids or self._unread_notice:
            return
        for notice in self._notices:
            if self._wants_events(notice):
                self._notices.remove(notice)
                self._unread_notice = notice
                yield self._event_cids.pop(0), Answer(NvmeStatus.SUCCESS, notice)
                return

    def _look_for_changes(self) -> None:
        if not self._has_to_look:
            return
        self._has_to_look = False
        if self._changed_namespaces.look():
            self._add_notice(_NAMESPACE_NOTICE)
        for nsid, changed in self._changed.items():
            if changed.look():
                self._add_notice(_ZONE_NOTICE | nsid << _NSID_SHIFT)

    def _add_notice(self, notice: int) -> None:
        if self._wants_events(notice) and notice not in self._notices:
            self._notices.append(notice)

    def _changed_namespaces_page(self, command: Command) -> bytes:
        self._look_for_changes()
        retain = bool(command.cdw10 & _RETAIN_EVENT)
        if not retain:
            self._clear_notice(_NAMESPACE_NOTICE)
        return self._changed_namespaces.page(retain=retain)

    def _changed_zones(self, command: Command) -> bytes:
        changed = self._changed.get(command.nsid)
        if changed is None:
            raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {command.nsid:X}h")
        self._look_for_changes()
        retain = bool(command.cdw10 & _RETAIN_EVENT)
        if not retain:
            self._clear_notice(_ZONE_NOTICE | command.nsid << _NSID_SHIFT)
        return changed.page(retain=retain)

    def _clear_notice(self, notice: int) -> None:
        """Forget *notice*, which the host knows now, and let the next one follow."""
        if notice in self._notices:
            self._notices.remove(notice)
        if self._unread_notice == notice:
            self._unread_notice = 0
        if self._notices:
            self.wake()


def _nothing() -> None:
    pass
