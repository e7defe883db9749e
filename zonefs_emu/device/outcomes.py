"""The outcomes of a power cut: which unflushed writes and changes of zones are there after it.

The model is a drive with a volatile write cache:

* Flushed data is there.
* Writes since the last flush reached the medium in order: all before some moment, and none after it. With *reorder*,
  each sequential zone has a moment of its own, and each write to a conventional zone is kept or lost independently.
* With *torn*, the write at that moment may be there in part, in whole logical blocks.
* A zone that was reset, finished or failed since the last flush is as before that or as after it.
* A zone random write area takes writes as a conventional zone does. A write pointer that moved since the last flush
  in such a zone is where it was then, or, if all writes to the zone are there, where it is now.
* A write pointer never lies beyond data that is there, and open zones come back closed, or empty.

May not know: files, locks, threads. The power-cut lab (:mod:`zonefs_emu.device.powercut`) collects the history and
writes the images.
"""

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from typing import Final

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Condition
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.units import Sector, to_bytes

_FAILED: Final = frozenset((Condition.READONLY, Condition.OFFLINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One write since the last flush.

    *before*: the former content, in a conventional zone or one with a zone random write area; empty for other zones.
    """

    zone_no: int
    sector: Sector
    nr_sectors: int
    before: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One outcome: how many sectors of each write are there, and which changes of zones are."""

    kept: tuple[int, ...]
    changed: tuple[bool, ...]


class History:
    """What happened from the last flush to an instant; none of it changes any more.

    *writes*: since that flush, oldest first. Later ones may be appended to the list, and are not part of the history;
    those that are part of it are copied at the first use, because copying a million takes too long for the instant.

    *baseline*, *present*: the zone states of the flush and of the instant.

    *old_extents*: by zone, how many sectors from its start have data before its write pointer moved back; 0 if it did
    not since the flush.
    """

    def __init__(
        self,
        geometry: Geometry,
        writes: list[Write],
        *,
        baseline: ZoneStates,
        present: ZoneStates,
        old_extents: "array[int]",
    ) -> None:
        self._geometry = geometry
        self._noted, self._nr_writes = writes, len(writes)
        self.baseline = baseline
        self.present = present
        self._old_extents = old_extents

    @cached_property
    def writes(self) -> Sequence[Write]:
        """The writes since the last flush, oldest first."""
        return self._noted[: self._nr_writes]

    @property
    def covering(self) -> tuple[ZoneStates, ...]:
        """Zone states of which one or another covers each byte that an outcome can have."""
        before_resets = ZoneStates(self.baseline.conds, self._old_extents, self.baseline.attributes)
        return self.present, self.baseline, before_resets

    @cached_property
    def _changed_zones(self) -> list[int]:
        """The zones whose present states differ from the baseline."""
        if self.baseline == self.present:
            return []
        changed = enumerate(zip(zip(*self.baseline, strict=True), zip(*self.present, strict=True), strict=True))
        return [zone_no for zone_no, (before, now) in changed if before != now]

    def advances(self) -> Iterator[Write]:
        """Yield what was written to each zone since the baseline as one write; for writes that were not observed."""
        for zone_no in self._changed_zones:
            before = self.baseline.wps[zone_no]
            nr_sectors = self.present.wps[zone_no] - before
            if nr_sectors > 0 and self.baseline.conds[zone_no] not in _FAILED:
                sector = self._geometry.zone_start(zone_no) + before
                yield Write(zone_no=zone_no, sector=sector, nr_sectors=nr_sectors, before=b"")

    def draw(self, seed: int, *, torn: bool = False, reorder: bool = False) -> Cut:
        """Return one outcome; the same *seed* and history give the same one."""
        generator = random.Random(seed)
        writes = self.writes
        block = self._geometry.block_sectors
        changed = tuple(generator.random() < 0.5 for _ in self._changed_zones)

        def part(write: Write) -> int:
            return generator.randrange(0, write.nr_sectors, block) if torn else 0

        kept = [write.nr_sectors for write in writes]
        if not reorder:
            moment = generator.randint(0, len(writes))
            for index in range(moment, len(writes)):
                kept[index] = part(writes[index]) if index == moment else 0
            return Cut(kept=tuple(kept), changed=changed)
        by_zone: dict[int, list[int]] = {}
        for index, write in enumerate(writes):
            if write.before:
                kept[index] = generator.choice((0, part(write), write.nr_sectors))
            else:
                by_zone.setdefault(write.zone_no, []).append(index)
        for indices in by_zone.values():
            moment = generator.randint(0, len(indices))
            for place, index in enumerate(indices[moment:]):
                kept[index] = part(writes[index]) if place == 0 else 0
        return Cut(kept=tuple(kept), changed=changed)

    def every(self, *, torn: bool = False, at_most: int = 1000) -> Iterator[Cut]:
        """Yield up to *at_most* different outcomes without reordering: each moment, with each zone changed or not.

        If there are too many changed zones, those with the highest numbers are varied first.
        """
        yield from islice(self._distinct(torn=torn), at_most)

    def _distinct(self, *, torn: bool) -> Iterator[Cut]:
        nr_changed = len(self._changed_zones)
        seen: set[bytes] = set()
        for kept in self._moments(torn=torn):
            # A zone is as before or as after independently of the others. Where that makes no difference, as for one
            # that was opened and comes back closed in any case, it is not varied: n such zones would be 2^n images.
            after, before = (self.states(Cut(kept=kept, changed=(value,) * nr_changed)) for value in (True, False))
            choices = [
                (True, False) if any(of[zone_no] != other[zone_no] for of, other in zip(after, before, strict=True))
                else (True,)
                for zone_no in self._changed_zones
            ]  # fmt: skip
            for changed in product(*choices):
                cut = Cut(kept=kept, changed=changed)
                key = self._key(cut)
                if key not in seen:
                    seen.add(key)
                    yield cut

    def _moments(self, *, torn: bool) -> Iterator[tuple[int, ...]]:
        """Yield how many sectors of each write are there, for each moment; with *torn*, also within a write."""
        writes, block = self.writes, self._geometry.block_sectors
        whole = tuple(write.nr_sectors for write in writes)
        for moment in range(len(writes) + 1):
            rest = (0,) * (len(writes) - moment)
            yield whole[:moment] + rest
            if torn and moment < len(writes):
                for part in range(block, writes[moment].nr_sectors, block):
                    yield (*whole[:moment], part, *rest[1:])

    def _key(self, cut: Cut) -> bytes:
        """Return what two cuts have in common only if they leave the same image."""
        overwritten = array("Q", (kept for write, kept in zip(self.writes, cut.kept, strict=True) if write.before))
        digest = hashlib.blake2b(overwritten.tobytes())
        for part in self.states(cut):
            digest.update(bytes(memoryview(part)))
        return digest.digest()

    def states(self, cut: Cut) -> ZoneStates:
        """Return the zone states that *cut* leaves."""
        geometry, present = self._geometry, self.present
        conds, wps, attributes = states = self.baseline.copy()
        for write, kept in zip(self.writes, cut.kept, strict=True):
            if write.before or not kept:
                continue
            zone_no = write.zone_no
            wps[zone_no] = write.sector + kept - geometry.zone_start(zone_no)
            full = wps[zone_no] == geometry.zone_cap(zone_no)
            conds[zone_no] = Condition.FULL if full else Condition.CLOSED
        incomplete = {
            write.zone_no
            for write, kept in zip(self.writes, cut.kept, strict=True)
            if write.before and kept < write.nr_sectors
        }
        areas = {write.zone_no for write in self.writes if write.before} - incomplete
        for zone_no, changed in zip(self._changed_zones, cut.changed, strict=True):
            # A change is there only if the data that was there when it was made is.
            if changed and (zone_no in areas or wps[zone_no] == present.wps[zone_no] or present.wps[zone_no] == 0):
                conds[zone_no], wps[zone_no] = present.conds[zone_no], present.wps[zone_no]
                attributes[zone_no] = present.attributes[zone_no]
        for zone_no, cond in enumerate(conds):
            if cond in ACTIVE_CONDITIONS:
                conds[zone_no] = after_power_cycle(Condition(cond), wps[zone_no], attributes[zone_no])
        return states

    def undone(self, cut: Cut) -> Iterator[tuple[Sector, bytes]]:
        """Yield the first sector and the former content of what *cut* loses of writes that overwrote something.

        Lost writes to other zones are beyond the write pointer. Writes are undone from the newest to the oldest, so
        that of overlapping lost writes the content before the oldest one remains, and a write that was kept hides an
        older one that was lost.
        """
        hidden: set[Sector] = set()
        for write, kept in reversed(list(zip(self.writes, cut.kept, strict=True))):
            if not write.before:
                continue
            for index in range(kept, write.nr_sectors):
                sector = write.sector + index
                if sector not in hidden:
                    yield sector, write.before[to_bytes(index) : to_bytes(index + 1)]
            hidden.update(range(write.sector, write.sector + kept))
