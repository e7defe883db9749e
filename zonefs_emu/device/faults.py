"""Injected faults: what a fault matches, when it fires, and its effect.

Pure: the device asks :meth:`FaultTable.fired` before it carries a command out, and applies the effects. Deterministic:
a fault counts the operations that match it, and fires at the nth one, or at each from the nth on. A delay is drawn from
the fault's seed and the count.

The table is kept in the image (:meth:`FaultTable.encode`), so that faults survive restarts and hold for every
front-end. An image of a later version may have entries, or a whole table, that this version does not know. They have no
effect, are listed, and stay byte for byte until they are removed. So an image opens with any fault table.
"""

import json
import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from enum import Enum
from itertools import count as count_from
from typing import Final

from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.transitions import ZONE_OPERATIONS, Operation
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition, Zone
from zonefs_emu.units import Sector

NR_FAULTS_MAX: Final = 64
DELAY_NS_MAX: Final = 3600 * 1_000_000_000
_COUNT_DIGITS: Final = 20
#: The version of the table's text that is written here.
VERSION: Final = 0
_BLANKS: Final = " \t\n\r"


class Effect(Enum):
    """What a fault does when it fires."""

    FAIL = "fail"  #: the operation answers *status*; nothing changes
    PARTIAL = "partial"  #: a write or append moves its first *nr_sectors* and wp, then answers *status*
    COND = "cond"  #: the zone goes into *cond* before the operation is checked
    DELAY = "delay"  #: the operation takes *delay_min_ns* to *delay_max_ns* longer
    LIE = "lie"  #: reports show wp moved by *nr_sectors* (negative: back)
    RECOMMEND_RESET = "recommend-reset"  #: reports say that the zone should be reset
    RECOMMEND_FINISH = "recommend-finish"  #: reports say that the zone, while it is active, should be finished
    EXCURSION = "excursion"  #: the drive finishes the zone, if it is active, before the operation is checked


#: The effects that change reports and nothing else; and those among them that a drive announces to its hosts.
ON_REPORT: Final = frozenset((Effect.LIE, Effect.RECOMMEND_RESET, Effect.RECOMMEND_FINISH))
RECOMMENDING: Final = frozenset((Effect.RECOMMEND_RESET, Effect.RECOMMEND_FINISH))
_WRITING: Final = frozenset((Operation.WRITE, Operation.APPEND))
#: The operations that a fault can act on. ALLOCATE_ZRWA counts as OPEN; SET_EXTENSION and FLUSH_ZRWA meet no fault.
FAULTY: Final = (*ZONE_OPERATIONS, Operation.FLUSH)


@dataclass(slots=True, kw_only=True)
class Fault:
    """One fault: *operations* on the *nr_zones* zones from *first_zone* (0 zones: on all of them).

    It fires at the *nth* match (from 1), or with *every* at each from that one on. *seen* counts the matches so far. An
    operation on several zones matches once if one of them is the fault's; a flush is on all zones.

    Raises:
        UsageError: the parts do not fit together; the sentence says which would.
    """

    id: int = 0
    effect: Effect
    operations: frozenset[Operation] = frozenset()
    first_zone: int = 0
    nr_zones: int = 0
    nth: int = 1
    every: bool = False
    status: Status = Status.IO_ERROR
    nr_sectors: Sector = 0
    cond: Condition = Condition.READONLY
    delay_min_ns: int = 0
    delay_max_ns: int = 0
    seed: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        self._check_matching()
        self._check_effect()

    def _check_matching(self) -> None:
        """Check which operations on which zones are counted."""
        if self.nth < 1 or self.first_zone < 0 or self.nr_zones < 0 or self.seen < 0:
            message = "a fault counts operations from 1 and zones from 0"
            raise UsageError(message)
        if self.effect in ON_REPORT:
            if self.operations or self.every or self.nth != 1:
                message = f"'{self.effect.value}' changes every report: it takes no operations and no counts"
                raise UsageError(message)
        elif not self.operations:
            message = f"'{self.effect.value}' needs the operations on which it acts"
            raise UsageError(message)
        if not self.operations.issubset(FAULTY):
            message = "a fault acts only on operations of a host: " + ", ".join(each.name.lower() for each in FAULTY)
            raise UsageError(message)

    def _check_effect(self) -> None:
        """Check what the fault does when it fires."""
        if self.effect is Effect.PARTIAL and (self.nr_sectors < 1 or not self.operations <= _WRITING):
            message = "'partial' needs the number of sectors that reach the zone (at least 1), of writes or appends"
            raise UsageError(message)
        if self.effect is Effect.COND and self.cond not in (Condition.READONLY, Condition.OFFLINE):
            message = f"a zone fails into READONLY or OFFLINE, not {self.cond.name}"
            raise UsageError(message)
        if self.effect in (Effect.FAIL, Effect.PARTIAL) and self.status is Status.OK:
            message = "a failure needs a status other than OK"
            raise UsageError(message)
        if not 0 <= self.delay_min_ns <= self.delay_max_ns or (self.effect is Effect.DELAY) != bool(self.delay_max_ns):
            message = "a time is needed for 'delay' and for no other effect: one time, or the least and the greatest"
            raise UsageError(message)
        if self.delay_max_ns > DELAY_NS_MAX:
            message = f"a delay is at most {DELAY_NS_MAX // 1_000_000_000} seconds long"
            raise UsageError(message)

    def covers(self, zone_no: int) -> bool:
        """Say whether *zone_no* is one of the fault's zones."""
        return not self.nr_zones or self.first_zone <= zone_no < self.first_zone + self.nr_zones

    def fires(self, operation: Operation, zone_no: int, nr_zones: int = 1) -> int:
        """Count *operation* on the *nr_zones* zones from *zone_no* on if it matches.

        Returns the first zone of the operation that is one of the fault's if the fault fires, -1 otherwise.
        """
        if operation not in self.operations:
            return -1
        first = max(zone_no, self.first_zone) if self.nr_zones else zone_no
        if first >= zone_no + nr_zones or not self.covers(first):
            return -1
        self.seen += 1
        return first if self.seen == self.nth or (self.every and self.seen > self.nth) else -1

    def delay_ns(self) -> int:
        """Return the delay of the operation at which the fault has just fired."""
        # Drawn from the seed and the count alone, so a fault that was saved needs no further state.
        return random.Random(f"{self.seed} {self.seen}").randint(self.delay_min_ns, self.delay_max_ns)

    def as_dict(self) -> dict[str, object]:
        """Return the fault as an object for JSON."""
        plain: dict[str, object] = {name: getattr(self, name) for name in _names()}
        plain["effect"] = self.effect.value
        plain["operations"] = sorted(operation.name.lower() for operation in self.operations)
        plain["status"] = self.status.name
        plain["cond"] = self.cond.name
        return plain

    @classmethod
    def from_dict(cls, plain: dict[str, object]) -> "Fault":
        """Return the fault that :meth:`as_dict` gave.

        Raises:
            UsageError: an unknown or ill-typed part; names the part.
        """
        names = _names()
        values: dict[str, object] = {}
        for name, value in plain.items():
            if name not in names:
                message = f"a fault has no part '{name}'; it has {', '.join(names)}"
                raise UsageError(message)
            try:
                values[name] = _PARSERS.get(name, _plain_int)(value)
            except (KeyError, ValueError, TypeError, AttributeError):
                message = f"a fault's '{name}' cannot be {value!r}"
                raise UsageError(message) from None
        if "effect" not in values:
            message = "a fault needs an effect: " + ", ".join(effect.value for effect in Effect)
            raise UsageError(message)
        return cls(**values)  # type: ignore[arg-type]  # each value was made by its field's parser


def _names() -> list[str]:
    return [part.name for part in fields(Fault) if part.init]


def _plain_int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _operations(value: object) -> frozenset[Operation]:
    if not isinstance(value, list):
        raise TypeError
    return frozenset(Operation[name.upper()] for name in value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


_PARSERS: Final[dict[str, Callable[[object], object]]] = {
    "effect": Effect,
    "operations": _operations,
    "every": _bool,
    "status": lambda value: Status[str(value)],
    "cond": lambda value: Condition[str(value)],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownFault:
    """An unknown entry of the table: its *text*, and the text of its *count* ("null" if it has none).

    *id* is the number by which it is listed and removed; a free number if the entry has none.
    """

    id: int
    text: str
    count: str

    def as_dict(self) -> dict[str, object]:
        """Return the entry as an object for JSON, without the parts of a fault."""
        return {"id": self.id, "unknown": self.text}


class FaultTable:
    """The faults of one device. A table without a known fault is falsy, which is all that reads and writes check."""

    def __init__(
        self, entries: Iterable[Fault | UnknownFault] = (), *, version: int = VERSION, opaque: bytes | None = None
    ) -> None:
        """Start with *entries*; *opaque*: the text of a table that cannot be read. *version*: that of the text."""
        #: All entries in the order of the image; and the faults among them, which have an effect.
        self.entries = list(entries)
        self.faults: Final = [entry for entry in self.entries if isinstance(entry, Fault)]
        #: The version of the text that :meth:`encode` returns.
        self.version = version
        self._opaque = opaque
        #: Grows with each match of a fault that can still fire.
        self.nr_counted = 0
        # Without the lock, one of two simultaneous counts could be lost, and a fault could be counted while it is
        # removed.
        self._counting = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is any fault."""
        return bool(self.faults)

    def add(self, fault: Fault) -> Fault:
        """Add *fault* under the next free id.

        Raises:
            UsageError: there are NR_FAULTS_MAX already, or the image has a table that cannot be read.
        """
        if self._opaque is not None:
            message = "the image has a fault table of another version, which a new fault would destroy: remove it first"
            raise UsageError(message, exit_code=1)
        if len(self.entries) >= NR_FAULTS_MAX:
            message = f"the image has {NR_FAULTS_MAX} faults, which is the most: remove one first"
            raise UsageError(message)
        fault.id = max((entry.id for entry in self.entries), default=0) + 1
        self.entries.append(fault)
        self.faults.append(fault)
        return fault

    def remove(self, fault_id: int) -> Callable[[], None]:
        """Remove the entry *fault_id*, and return a function that puts it back.

        Raises:
            UsageError: there is no such entry.
        """
        with self._counting:
            removed = [entry for entry in self.entries if entry.id == fault_id]
            if not removed:
                message = f"there is no fault {fault_id}"
                raise UsageError(message)
            opaque, version = self._opaque, self.version
            self._set_entries(entry for entry in self.entries if entry.id != fault_id)
            if opaque is not None:
                self._opaque, self.version = None, VERSION

        def put_back() -> None:
            with self._counting:
                self._set_entries(sorted((*self.entries, *removed), key=lambda entry: entry.id))
                self._opaque, self.version = opaque, version

        return put_back

    def _set_entries(self, entries: Iterable[Fault | UnknownFault]) -> None:
        self.entries = list(entries)
        self.faults[:] = [entry for entry in self.entries if isinstance(entry, Fault)]

    def fired(self, operation: Operation, zone_no: int, nr_zones: int = 1) -> list[tuple[Fault, int]]:
        """Count *operation* on the *nr_zones* zones from *zone_no* on.

        Returns the faults that fire at it, oldest first, each with the zone at which it does.
        """
        fired = []
        with self._counting:
            for fault in self.faults:
                seen = fault.seen
                at = fault.fires(operation, zone_no, nr_zones)
                if fault.seen != seen and (fault.every or seen < fault.nth):
                    self.nr_counted += 1
                if at >= 0:
                    fired.append((fault, at))
        return fired

    def reported(self, zone: Zone) -> Zone:
        """Return *zone* as a report shows it."""
        for fault in self.faults:
            if fault.effect is Effect.LIE and fault.covers(zone.zone_no):
                wp = min(max(zone.wp + fault.nr_sectors, zone.start), zone.start + zone.capacity)
                zone = zone._replace(wp=wp)
            elif fault.effect is Effect.RECOMMEND_RESET and fault.covers(zone.zone_no):
                zone = zone._replace(reset_recommended=True)
            elif (
                fault.effect is Effect.RECOMMEND_FINISH
                and fault.covers(zone.zone_no)
                and zone.cond in ACTIVE_CONDITIONS
            ):
                zone = zone._replace(attributes=zone.attributes | Attribute.FINISH_RECOMMENDED)
        return zone

    def encode(self) -> bytes:
        """Return the table for the image. The counts are first and have one width, because only they change often."""
        if self._opaque is not None:
            return self._opaque
        entries = tuple(self.entries)
        if not entries:
            return b"[]"
        counts = ",".join(_count(entry).rjust(_COUNT_DIGITS) for entry in entries)
        return f"[[{counts}],{','.join(map(_text, entries))}]".encode()

    @classmethod
    def decode(cls, data: bytes, version: int = VERSION) -> "FaultTable":
        """Return the table of *data*, a text of *version*. An unknown text is kept as it is."""
        try:
            if version == VERSION:
                return cls(_entries(data.decode()))
        except (ValueError, RecursionError):
            pass  # the text is not a list of objects with a count each, or not JSON
        unknown = UnknownFault(id=1, text=data.decode(errors="backslashreplace"), count="null")
        return cls([unknown], version=version, opaque=data)


def _count(entry: Fault | UnknownFault) -> str:
    return str(entry.seen) if isinstance(entry, Fault) else entry.count


def _text(entry: Fault | UnknownFault) -> str:
    if isinstance(entry, UnknownFault):
        return entry.text
    plain = entry.as_dict()
    del plain["seen"]
    return json.dumps(plain, separators=(",", ":"))


def _entries(text: str) -> list[Fault | UnknownFault]:
    """Return the entries of a table's *text*.

    Raises:
        ValueError: it is not a list of objects, or it does not begin with one count for each.
    """
    items = _items(text or "[]")
    counts = ["null"] * len(items)
    # Older images have the count in each fault.
    if items and items[0].startswith("["):
        counts, items = _items(items[0]), items[1:]
    entries: list[Fault | UnknownFault] = []
    for item, count in zip(items, counts, strict=True):
        plain = json.loads(item)
        if not isinstance(plain, dict):
            raise ValueError(item)  # noqa: TRY004  (of the text, not of an argument)
        try:
            entries.append(Fault.from_dict(plain if count == "null" else plain | {"seen": json.loads(count)}))
        except UsageError:
            given = plain.get("id")
            entry_id = given if isinstance(given, int) and given > 0 else 0
            entries.append(UnknownFault(id=entry_id, text=item, count=count))
    # The lowest free numbers, so that they stay the same when faults are added.
    taken = {entry.id for entry in entries}
    free = (number for number in count_from(1) if number not in taken)
    return [replace(entry, id=next(free)) if not entry.id else entry for entry in entries]


def _items(text: str) -> list[str]:
    """Return the texts of the items of the JSON list *text*, each unchanged.

    Raises:
        ValueError: it is no list.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError(text)
    items: list[str] = []
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]" or items:
        _, end = decoder.raw_decode(text, at)
        items.append(text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise ValueError(text)
        at = _skip(text, at + 1)
    if _skip(text, at + 1) != len(text):
        raise ValueError(text)
    return items


def _skip(text: str, at: int) -> int:
    """Return the place of the first character from *at* on that is no blank."""
    return len(text) - len(text[at:].lstrip(_BLANKS))
