"""The log of refused operations: what was asked, in what condition the zone was, which rule was broken.

A ring of fixed slots in the image's mapped memory, so that it costs a few microseconds, is bounded, and survives the
death of the process. Front-ends flatten errors to EIO; "why did I get EIO" is answered from here.
"""

import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zonefs_emu.device.rules import RULES, Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import Sector

SLOT_BYTES: Final = 256
NR_HOLDERS_MAX: Final = 42
#: seq, time_ns, front_end, operation, status, condition, -, rule, number of holders, zone, open, active, wp, sector,
#: sectors, holders; a CRC-32 of these is the end of the slot.
_SLOT: Final = struct.Struct(f"<QQ24sBBBxHHIIIQQQ{4 * NR_HOLDERS_MAX}s")
_CRC: Final = struct.Struct("<I")
_SEQ: Final = struct.Struct("<Q")
NO_ZONE: Final = 0xFFFFFFFF
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refused operation.

    *zone_no* is -1 where no zone is meant; *cond* and *wp* (absolute sector) are the zone's at that time. *holders*:
    up to NR_HOLDERS_MAX zones that held the open or active resources, where that limit was hit.
    """

    seq: int
    time_ns: int
    front_end: str
    operation: Operation
    status: Status
    rule: Rule
    zone_no: int
    cond: Condition
    wp: Sector
    sector: Sector
    nr_sectors: int
    nr_open: int
    nr_active: int
    holders: tuple[int, ...] = ()


class RefusalLog:
    """The ring of the last refusals in *memory* (a multiple of SLOT_BYTES). Thread safe."""

    def __init__(self, memory: memoryview) -> None:
        """Find the end of the ring."""
        self._memory = memory
        self._nr_slots = len(memory) // SLOT_BYTES
        # A number counts in the slot that it belongs to: one that is damaged must not decide where the ring goes on.
        self.last_seq: int = max(map(self._seq, range(self._nr_slots)), default=0)
        self._promised = self.last_seq
        self._lock = threading.Lock()
        #: Called with each refusal by the thread that refused, perhaps with the device's lock held.
        self.listener: Callable[[Refusal], None] | None = None

    def next_seq(self) -> int:
        """Return the number of the next refusal, which the caller is going to :meth:`add`; 1 is the first."""
        with self._lock:
            self._promised += 1
            return self._promised

    def add(self, refusal: Refusal) -> None:
        """Put *refusal* into its slot, in place of the one that is a ring older."""
        holders = refusal.holders
        data = _SLOT.pack(
            refusal.seq, refusal.time_ns, refusal.front_end.encode()[:24], refusal.operation, refusal.status,
            refusal.cond, refusal.rule, len(holders), refusal.zone_no if refusal.zone_no >= 0 else NO_ZONE,
            refusal.nr_open, refusal.nr_active, refusal.wp, refusal.sector & _U64, refusal.nr_sectors & _U64,
            struct.pack(f"<{len(holders)}I", *holders) if holders else b"",
        )  # fmt: skip
        at = (refusal.seq % self._nr_slots) * SLOT_BYTES
        self._memory[at : at + SLOT_BYTES] = data + _CRC.pack(zlib.crc32(data))
        with self._lock:
            self.last_seq = max(self.last_seq, refusal.seq)
        if self.listener is not None:
            self.listener(refusal)

    def last(self, count: int, *, after: int = 0) -> list[Refusal]:
        """Return up to *count* refusals with a number above *after*, oldest first. Damaged slots are left out."""
        last_seq = self.last_seq
        first = max(last_seq - min(count, self._nr_slots) + 1, after + 1, 1)
        found = (self._read(seq) for seq in range(first, last_seq + 1))
        return [refusal for refusal in found if refusal is not None]

    def _seq(self, slot: int) -> int:
        """Return the number of the refusal in *slot*, 0 if it is empty or damaged."""
        data = self._memory[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        seq: int = _SEQ.unpack_from(data)[0]
        whole = zlib.crc32(data[: _SLOT.size]) == _CRC.unpack_from(data, _SLOT.size)[0]
        return seq if whole and seq % self._nr_slots == slot else 0

    def _read(self, seq: int) -> Refusal | None:
        slot = seq % self._nr_slots
        if self._seq(slot) != seq:
            return None
        (
            _, time_ns, front_end, operation, status, cond, rule, nr_holders, zone_no, nr_open, nr_active,
            wp, sector, nr_sectors, holders,
        ) = _SLOT.unpack_from(self._memory, slot * SLOT_BYTES)  # fmt: skip
        try:
            return Refusal(
                seq=seq, time_ns=time_ns, front_end=front_end.rstrip(b"\0").decode(errors="replace"),
                operation=Operation(operation), status=Status(status), rule=Rule(rule),
                zone_no=-1 if zone_no == NO_ZONE else zone_no, cond=Condition(cond), wp=wp, sector=sector,
                nr_sectors=nr_sectors, nr_open=nr_open, nr_active=nr_active,
                holders=struct.unpack_from(f"<{nr_holders}I", holders),
            )  # fmt: skip
        except ValueError:  # a number of no enumeration: the slot is of a later version
            return None


def explain(refusal: Refusal, geometry: Geometry) -> str:
    """Return one sentence that says what was asked, what stood against it, and where that is written."""
    text = RULES[refusal.rule]
    request = refusal.operation.name.lower().replace("_", "-")
    if refusal.nr_sectors:
        request += f" of {refusal.nr_sectors} sectors"
    if refusal.operation is not Operation.FLUSH:
        request += f" at sector {refusal.sector}"
    what = f"{refusal.front_end}: {request} was refused ({refusal.status.name})"
    parts = [f"{what}: {text.sentence}"]
    if refusal.zone_no >= 0:
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
    return "; ".join(parts) + f" [{text.clause}]"


_WITH_WP: Final = frozenset((Condition.EMPTY, Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))


def now_ns() -> int:
    """Return the time of day in nanoseconds, for people who read the log."""
    return time.time_ns()
