"""What a zoned device does, in the simplest words: what the zone machine is compared with.

Lists that are asked everything anew each time, too simple to be wrong, and written from the standards, not from the
tables of the machine.
"""

from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import MANAGEMENT, VIRTIO, ZBC, ZNS, Dialect, Operation
from zonefs_emu.model.zone import Condition

NW, EM, OI, OE, CL, RO, FU, OL = Condition
OPEN, CLOSE, FINISH, RESET = MANAGEMENT


class RefusedError(Exception):
    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class Reference:
    """Sectors written per zone, a condition per zone, and who was written last: asked anew each time."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.conventional = {n for first, count in geometry.conventional for n in range(first, first + count)}
        self.conds = [NW if n in self.conventional else EM for n in range(geometry.nr_zones)]
        self.written = [0] * geometry.nr_zones
        self.recency: list[int] = []  # implicitly open zones, least recently written first

    def capacity(self, zone_no: int) -> int:
        length = min(self.geometry.zone_size, self.geometry.size - zone_no * self.geometry.zone_size)
        return length if zone_no in self.conventional else min(self.geometry.zone_capacity, length)

    def open_zones(self) -> list[int]:
        return [n for n, cond in enumerate(self.conds) if cond in (OI, OE)]

    def active_zones(self) -> list[int]:
        return [n for n, cond in enumerate(self.conds) if cond in (OI, OE, CL)]

    def put(self, zone_no: int, cond: Condition) -> None:
        if zone_no in self.recency and cond is not OI:
            self.recency.remove(zone_no)
        if cond is EM:
            self.written[zone_no] = 0
        self.conds[zone_no] = cond

    def check_range(self, sector: int, nr_sectors: int) -> None:
        size = self.geometry.size
        if sector < 0 or nr_sectors < 0 or sector >= size or sector + nr_sectors > size:
            raise RefusedError(Status.OUT_OF_RANGE)

    def zones_of(self, sector: int, nr_sectors: int) -> list[int]:
        return sorted({s // self.geometry.zone_size for s in range(sector, sector + max(nr_sectors, 1))})

    def has_data(self, sector: int) -> bool:
        zone_no, offset = divmod(sector, self.geometry.zone_size)
        return zone_no in self.conventional or offset < self.written[zone_no]

    def read(self, sector: int, nr_sectors: int, dialect: Dialect) -> list[bool]:
        """Return for each sector whether it has data."""
        self.check_range(sector, nr_sectors)
        block = self.geometry.block_sectors
        if sector % block or nr_sectors % block:
            raise RefusedError(Status.UNALIGNED)
        zones = self.zones_of(sector, nr_sectors)
        for zone_no in zones:
            if self.conds[zone_no] is OL:
                raise RefusedError(Status.ZONE_OFFLINE)
            if len(zones) > 1 and dialect is VIRTIO and zone_no not in self.conventional:
                raise RefusedError(Status.READ_BOUNDARY)
        return [self.has_data(s) for s in range(sector, sector + nr_sectors)]

    def write(self, sector: int, nr_sectors: int) -> None:
        self.check_range(sector, nr_sectors)
        geometry = self.geometry
        zone_no = sector // geometry.zone_size
        for n in (zone_no,) if zone_no not in self.conventional else self.zones_of(sector, nr_sectors):
            if n not in self.conventional and n != zone_no:
                raise RefusedError(Status.ZONE_BOUNDARY)
            bad = {RO: Status.ZONE_READONLY, OL: Status.ZONE_OFFLINE, FU: Status.ZONE_FULL}.get(self.conds[n])
            if bad:
                raise RefusedError(bad)
            if n == zone_no and n in self.conventional and (
                sector % geometry.block_sectors or nr_sectors % geometry.block_sectors
            ):  # fmt: skip
                raise RefusedError(Status.UNALIGNED)
        if zone_no in self.conventional:
            return
        if sector + nr_sectors > zone_no * geometry.zone_size + self.capacity(zone_no):
            raise RefusedError(Status.ZONE_BOUNDARY)
        if sector != zone_no * geometry.zone_size + self.written[zone_no] or nr_sectors % geometry.write_granularity:
            raise RefusedError(Status.UNALIGNED_WP)
        if not nr_sectors:
            return
        self.make_room([zone_no])
        if self.conds[zone_no] is not OE:
            self.put(zone_no, OI)
            self.recency = [n for n in self.recency if n != zone_no] + [zone_no]
        self.written[zone_no] += nr_sectors
        if self.written[zone_no] == self.capacity(zone_no):
            self.put(zone_no, FU)

    def append(self, sector: int, nr_sectors: int) -> int:
        if sector < 0 or sector >= self.geometry.size or nr_sectors < 0:
            raise RefusedError(Status.OUT_OF_RANGE)
        zone_no, offset = divmod(sector, self.geometry.zone_size)
        if offset:
            raise RefusedError(Status.NOT_ZONE_START)
        refusals = {
            RO: Status.ZONE_READONLY,
            OL: Status.ZONE_OFFLINE,
            FU: Status.ZONE_FULL,
            NW: Status.CONVENTIONAL,
        }
        if self.conds[zone_no] in refusals:
            raise RefusedError(refusals[self.conds[zone_no]])
        if nr_sectors > self.geometry.max_append:
            raise RefusedError(Status.APPEND_LIMIT)
        where = sector + self.written[zone_no]
        if self.written[zone_no] + nr_sectors > self.capacity(zone_no):
            raise RefusedError(Status.ZONE_BOUNDARY)
        self.write(where, nr_sectors)
        return where

    def make_room(self, wanted: list[int]) -> None:
        """Refuse unless all *wanted* can be open together; close implicitly open zones for them."""
        geometry = self.geometry
        active = set(self.active_zones()) | set(wanted)
        if geometry.max_active_zones and len(active) > geometry.max_active_zones and active > set(self.active_zones()):
            raise RefusedError(Status.ACTIVE_RESOURCE)
        if not geometry.max_open_zones:
            return
        excess = len(set(self.open_zones()) | set(wanted)) - geometry.max_open_zones
        victims = [n for n in self.recency if n not in wanted]
        if excess > len(victims):
            raise RefusedError(Status.OPEN_RESOURCE)
        for n in victims[: max(excess, 0)]:
            self.put(n, CL)

    def manage(self, operation: Operation, sector: int, nr_zones: int, dialect: Dialect) -> None:
        geometry = self.geometry
        if sector < 0 or sector >= geometry.size or nr_zones < 1:
            raise RefusedError(Status.OUT_OF_RANGE)
        first, offset = divmod(sector, geometry.zone_size)
        if offset:
            raise RefusedError(Status.NOT_ZONE_START)
        if first + nr_zones > geometry.nr_zones:
            raise RefusedError(Status.OUT_OF_RANGE)
        zones = list(range(first, first + nr_zones))
        for n in zones:
            cond = self.conds[n]
            if cond in (RO, OL):
                by_condition = Status.ZONE_READONLY if cond is RO else Status.ZONE_OFFLINE
                raise RefusedError(Status.BAD_TRANSITION if dialect is ZNS else by_condition)
            if cond is NW:
                raise RefusedError(Status.CONVENTIONAL)
            forbidden = {OPEN: (FU,), CLOSE: (EM, FU), FINISH: (), RESET: ()}[operation]
            if cond in forbidden and dialect is not ZBC:
                raise RefusedError(Status.BAD_TRANSITION)
        if operation is OPEN:
            zones = [n for n in zones if self.conds[n] is not FU]
            self.make_room([n for n in zones if self.conds[n] is not OE])
        if operation is CLOSE:
            zones = [n for n in zones if self.conds[n] in (OI, OE)]
        if operation is FINISH and dialect is ZBC and geometry.max_open_zones:
            zones = [n for n in zones if self.conds[n] is not FU]
            in_range = [n for n in zones if self.conds[n] in (OI, OE)]
            if zones and not in_range and len(self.open_zones()) >= geometry.max_open_zones:
                if not self.recency:
                    raise RefusedError(Status.OPEN_RESOURCE)
                self.put(self.recency[0], CL)
        for n in zones:
            self.change(operation, n, dialect)

    def manage_all(self, operation: Operation, dialect: Dialect) -> None:
        acted_on = {OPEN: (CL,), CLOSE: (OI, OE), FINISH: (OI, OE, CL), RESET: (OI, OE, CL, FU)}[operation]
        zones = [n for n, cond in enumerate(self.conds) if cond in acted_on]
        if operation is OPEN:
            self.make_room(zones)
        for n in zones:
            self.change(operation, n, dialect)

    def change(self, operation: Operation, zone_no: int, dialect: Dialect) -> None:
        cond = {OPEN: OE, CLOSE: CL, FINISH: FU, RESET: EM}[operation]
        if cond is CL and not self.written[zone_no] and dialect is not ZNS:
            cond = EM
        self.put(zone_no, cond)

    def set_cond(self, zone_no: int, cond: Condition) -> None:
        if zone_no < 0 or zone_no >= self.geometry.nr_zones:
            raise RefusedError(Status.OUT_OF_RANGE)
        if cond not in (RO, OL) and (cond is NW) != (zone_no in self.conventional):
            raise RefusedError(Status.CONVENTIONAL)
        if cond in (OI, OE):
            raise RefusedError(Status.BAD_TRANSITION)
        if cond is CL and self.conds[zone_no] is not CL:
            if self.written[zone_no] in (0, self.capacity(zone_no)):
                raise RefusedError(Status.BAD_TRANSITION)
            active = set(self.active_zones()) | {zone_no}
            if self.geometry.max_active_zones and len(active) > self.geometry.max_active_zones:
                raise RefusedError(Status.ACTIVE_RESOURCE)
        self.put(zone_no, cond)

    def power_cycle(self) -> None:
        for n in self.active_zones():
            self.put(n, CL if self.written[n] else EM)
