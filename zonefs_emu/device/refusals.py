"""The log of refused operations: the request, the state of its zone, and the rule that it broke.

It has rings of fixed slots in the image's mapped memory. So an entry costs a few microseconds, the log is bounded, and
it survives the death of the process. Front-ends turn most errors into EIO; ``why`` explains them from this log.

Malformed and unknown requests have a small ring of their own, so that a peer that sends many of them does not push out
refusals by the rules of zones.

The log is an observer: :meth:`RefusalLog.add` never raises, and an error of the log or of its listener switches that
one off. Characters that cannot be encoded in UTF-8 (in a front-end's name, a request) are escaped.
"""

import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zonefs_emu.device.rules import Rule
from zonefs_emu.device.switch import Switch
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector

SLOT_BYTES: Final = 256
NR_HOLDERS_MAX: Final = 42
#: The longest description of a request, in bytes of UTF-8.
REQUEST_BYTES: Final = 4 * NR_HOLDERS_MAX
#: One in this many slots is for requests that were malformed or unknown.
_REQUESTS_SHARE: Final = 8
#: seq, time_ns, front_end, operation, status, condition, request length, rule, number of holders, zone, open, active,
#: wp, sector, sectors, then holders or request; a CRC-32 of these is the end of the slot.
_SLOT: Final = struct.Struct(f"<QQ24sBBBBHHIIIQQQ{REQUEST_BYTES}s")
_CRC: Final = struct.Struct("<I")
_SEQ: Final = struct.Struct("<Q")
NO_ZONE: Final = 0xFFFFFFFF
_NO_OPERATION: Final = 0xFF
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused operation.

    *zone_no* is -1 if the request has no zone; *cond* and *wp* (absolute sector) are the zone's at that time.
    *holders*: up to NR_HOLDERS_MAX zones that held the open or active resources, if that limit was reached. *request*:
    the front-end's description of a malformed or unknown request, whose *operation* may be None. *rule* is the number
    of a :class:`Rule`, which only a later version may know.
    """

    seq: int
    time_ns: int
    front_end: str
    operation: Operation | None
    status: Status
    rule: int
    zone_no: int
    cond: Condition
    wp: Sector
    sector: Sector
    nr_sectors: int
    nr_open: int
    nr_active: int
    holders: tuple[int, ...] = ()
    request: str = ""


class _Ring:
    """The slots from *first* up to *end*, and the next one to be filled."""

    def __init__(self, first: int, end: int, seqs: Sequence[int]) -> None:
        """Continue after the highest of *seqs*, the numbers in all slots of the log."""
        self._first = first
        self._end = end
        self._next = max(range(first, end), key=seqs.__getitem__, default=first)

    def take(self) -> int:
        """Return the slot to be filled."""
        self._next += 1
        if self._next == self._end:
            self._next = self._first
        return self._next


class RefusalLog:
    """The last refusals in *memory* (a multiple of SLOT_BYTES). Thread safe."""

    def __init__(self, memory: memoryview) -> None:
        """Find the ends of the rings."""
        self._memory = memory
        self._nr_slots = len(memory) // SLOT_BYTES
        self.switch = Switch("the log of refusals")
        self.listener_switch = Switch("the listener of the log of refusals")
        self.last_seq = 0
        try:
            self._find_ends()
        except Exception as error:  # the boundary of observers
            self.switch.put_off(error)
        self._promised = self.last_seq
        self._lock = threading.Lock()
        #: Called with each refusal by the thread that refused, perhaps with the device's lock held.
        self.listener: Callable[[Refusal], None] | None = None

    def _find_ends(self) -> None:
        seqs = [self._seq(slot) for slot in range(self._nr_slots)]
        nr_of_zones = self._nr_slots - self._nr_slots // _REQUESTS_SHARE
        self._zones = _Ring(0, nr_of_zones, seqs)
        self._requests = _Ring(nr_of_zones, self._nr_slots, seqs)
        self.last_seq = max(seqs, default=0)

    def next_seq(self) -> int:
        """Return the number of the next refusal, which the caller is going to :meth:`add`; 1 is the first."""
        with self._lock:
            self._promised += 1
            return self._promised

    def add(self, refusal: Refusal) -> None:
        """Put *refusal* into the slot of the oldest one in its ring. Never raises."""
        if self.switch.error is None:
            try:
                self._store(refusal)
            except Exception as error:  # the boundary of observers
                self.switch.put_off(error)
        listener = self.listener
        if listener is not None:
            try:
                listener(refusal)
            except Exception as error:  # the boundary of observers
                self.listener = None
                self.listener_switch.put_off(error)

    def _store(self, refusal: Refusal) -> None:
        holders = refusal.holders
        request = refusal.request.encode(errors="backslashreplace")[:REQUEST_BYTES]
        data = _SLOT.pack(
            refusal.seq, refusal.time_ns, refusal.front_end.encode(errors="backslashreplace")[:24],
            _NO_OPERATION if refusal.operation is None else refusal.operation, refusal.status, refusal.cond,
            len(request), refusal.rule, len(holders), refusal.zone_no if refusal.zone_no >= 0 else NO_ZONE,
            refusal.nr_open, refusal.nr_active, refusal.wp, refusal.sector & _U64, refusal.nr_sectors & _U64,
            struct.pack(f"<{len(holders)}I", *holders) if holders else request,
        )  # fmt: skip
        with self._lock:
            slot = (self._requests if request else self._zones).take()
            self._memory[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = data + _CRC.pack(zlib.crc32(data))
            self.last_seq = max(self.last_seq, refusal.seq)

    def last(self, count: int, *, after: int = 0) -> list[Refusal]:
        """Return up to *count* refusals with a number above *after*, oldest first.

        Damaged slots are left out. If the memory cannot be read, the log is switched off and the list is empty.
        """
        try:
            return self._last(count, after)
        except Exception as error:  # the boundary of observers
            self.switch.put_off(error)
            return []

    def _last(self, count: int, after: int) -> list[Refusal]:
        found = {seq: slot for slot in range(self._nr_slots) if (seq := self._seq(slot)) > after}
        newest = sorted(found, reverse=True)[:count]
        refusals = (self._read(found[seq]) for seq in reversed(newest))
        return [refusal for refusal in refusals if refusal is not None]

    def _seq(self, slot: int) -> int:
        """Return the number of the refusal in *slot*, 0 if it is empty or damaged."""
        data = self._memory[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        seq: int = _SEQ.unpack_from(data)[0]
        whole = zlib.crc32(data[: _SLOT.size]) == _CRC.unpack_from(data, _SLOT.size)[0]
        return seq if whole else 0

    def _read(self, slot: int) -> Refusal | None:
        (
            seq, time_ns, front_end, operation, status, cond, length, rule, nr_holders, zone_no, nr_open, nr_active,
            wp, sector, nr_sectors, rest,
        ) = _SLOT.unpack_from(self._memory, slot * SLOT_BYTES)  # fmt: skip
        try:
            return Refusal(
                seq=seq, time_ns=time_ns, front_end=front_end.rstrip(b"\0").decode(errors="replace"),
                operation=None if operation == _NO_OPERATION else Operation(operation), status=Status(status),
                rule=rule, zone_no=-1 if zone_no == NO_ZONE else zone_no, cond=Condition(cond), wp=wp, sector=sector,
                nr_sectors=nr_sectors, nr_open=nr_open, nr_active=nr_active,
                holders=struct.unpack_from(f"<{nr_holders}I", rest), request=rest[:length].decode(errors="replace"),
            )  # fmt: skip
        except (ValueError, struct.error):  # an unknown number: the slot is of a later version
            return None


def explain(refusal: Refusal, geometry: Geometry, rules: Mapping[int, Rule]) -> str:
    """Return one sentence with the request, the rule that it broke, and the clause that states the rule.

    *rules* has all rules by number. For the number of an unknown rule, of a later version, the sentence says so.
    """
    rule = rules.get(refusal.rule)
    sentence = f"by rule {refusal.rule}, which only a later version knows" if rule is None else rule.sentence
    request = refusal.request
    if not request and refusal.operation is not None:
        request = refusal.operation.name.lower().replace("_", "-")
        if refusal.nr_sectors:
            request += f" of {refusal.nr_sectors} sectors"
        if refusal.operation is not Operation.FLUSH:
            request += f" at sector {refusal.sector}"
    what = f"{refusal.front_end}: {request} was refused ({refusal.status.name})"
    parts = [f"{what}: {sentence}"]
    # A slot of another version, or a forged one, may name a zone that does not exist.
    if 0 <= refusal.zone_no < geometry.nr_zones:
        zone = f"zone {refusal.zone_no} is {refusal.cond.name}"
        if refusal.cond in _WITH_WP:
            zone += f" with wp at sector {refusal.wp}"
            capacity_end = geometry.zone_start(refusal.zone_no) + geometry.zone_cap(refusal.zone_no)
            zone += f" and its capacity ends at sector {capacity_end}"
        parts.append(zone)
    if refusal.holders:
        zones = ", ".join(map(str, refusal.holders))
        nr_holding = refusal.nr_open if refusal.status is Status.OPEN_RESOURCE else refusal.nr_active
        more = nr_holding - len(refusal.holders)
        parts.append(
            f"{nr_holding} zones are {'open' if refusal.status is Status.OPEN_RESOURCE else 'active'}: {zones}"
            + (f" and {more} more" if more > 0 else "")
        )
    return "; ".join(parts) + ("" if rule is None else f" [{rule.clause}]")


_WITH_WP: Final = frozenset((Condition.EMPTY, Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))


def now_ns() -> int:
    """Return the time of day in nanoseconds, for readers of the log."""
    return time.time_ns()
