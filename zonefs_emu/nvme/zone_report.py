"""The data of Zone Management Receive: reports of zones, with or without their descriptor extensions.

Source: NVMe Zoned Namespace Command Set 1.1, "Zone Management Receive command".
"""

import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Attribute, Condition, Zone
from zonefs_emu.units import SECTOR_BYTES

DESCRIPTOR_BYTES: Final = 64
_REPORT_HEADER: Final = struct.Struct("<Q56x")
_DESCRIPTOR: Final = struct.Struct("<BBBxxxxxQQQ32x")
#: The write pointer of a zone that has none.
_NO_WP: Final = 0xFFFFFFFFFFFFFFFF
_SEQUENTIAL: Final = 2
_RESET_RECOMMENDED: Final = 1 << 2
#: Bits of "Zone Attributes" by the attributes of a zone: Zone Finished by Controller, Finish Zone Recommended, ZRWA
#: Valid, Zone Descriptor Extension Valid.
_BITS: Final[Mapping[Attribute, int]] = MappingProxyType(
    {
        Attribute.FINISHED_BY_CONTROLLER: 1 << 0,
        Attribute.FINISH_RECOMMENDED: 1 << 1,
        Attribute.ZRWA: 1 << 3,
        Attribute.EXTENSION: 1 << 7,
    }
)
#: The bits for each combination. To ask a flag for each zone takes half the time of a report.
_ATTRIBUTES: Final = bytes(sum(bit for flag, bit in _BITS.items() if every & flag) for every in range(256))
#: How many zones one step of a report scans.
_REPORT_ZONES: Final = 4096
_ALL_CONDITIONS: Final = frozenset(Condition) - {Condition.NOT_WP}
#: "Zone Receive Action Specific": the zones that a report lists.
FILTERS: Final[Mapping[int, frozenset[Condition]]] = MappingProxyType(
    {
        0: _ALL_CONDITIONS,
        1: frozenset((Condition.EMPTY,)),
        2: frozenset((Condition.IMP_OPEN,)),
        3: frozenset((Condition.EXP_OPEN,)),
        4: frozenset((Condition.CLOSED,)),
        5: frozenset((Condition.FULL,)),
        6: frozenset((Condition.READONLY,)),
        7: frozenset((Condition.OFFLINE,)),
    }
)
#: Conditions in which the write pointer of a zone has a meaning.
_WITH_WP: Final = frozenset((Condition.EMPTY, Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))


class ZoneReporter:
    """Reports the zones of the device behind *port*, in its logical blocks."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._geometry = port.geometry
        self._sector_shift = (self._geometry.block_size_bytes // SECTOR_BYTES).bit_length() - 1

    def report(
        self, zone_no: int, nr_bytes: int, conds: frozenset[Condition], *, partial: bool, extended: bool
    ) -> tuple[Status, bytes]:
        """Return (OK, report) for the zones from *zone_no* on that are in *conds*: *nr_bytes*, with zeros at the end.

        The header of a *partial* report counts the zones that it lists, and that of another report all that match. With
        *extended*, each descriptor is followed by its extension, or zeros if the zone has none; if an extension cannot
        be read, the status is that of the port, and there is no report.
        """
        entry_bytes = DESCRIPTOR_BYTES + (self._geometry.extension_bytes if extended else 0)
        nr_listed_max = max(nr_bytes - _REPORT_HEADER.size, 0) // entry_bytes
        listed = bytearray(_REPORT_HEADER.size)
        nr_listed = 0
        for zone in self.matching(zone_no, conds, nr_listed_max):
            nr_listed += 1
            listed += self._descriptor(zone)
            if extended:
                status, extension = self._port.extension(zone.zone_no)
                if status:
                    return status, b""
                listed += extension
        if partial:
            nr_found = nr_listed
        elif conds == _ALL_CONDITIONS:
            nr_found = self._geometry.nr_zones - zone_no
        else:
            nr_found = self._port.count(zone_no, conds)
        _REPORT_HEADER.pack_into(listed, 0, nr_found)
        return Status.OK, bytes(listed[:nr_bytes]).ljust(nr_bytes, b"\0")

    def matching(self, zone_no: int, conds: frozenset[Condition], nr_max: int | None = None) -> Iterator[Zone]:
        """Yield up to *nr_max* zones from *zone_no* on that are in *conds*; None: all of them.

        The states are read in portions, so the zones of a long report may be of different moments.
        """
        every = conds == _ALL_CONDITIONS
        left = self._geometry.nr_zones if nr_max is None else nr_max
        while left > 0 and zone_no < self._geometry.nr_zones:
            zones = self._port.report(zone_no, min(left, _REPORT_ZONES), None if every else conds)
            if not zones:
                return
            yield from zones
            left -= len(zones)
            zone_no = zones[-1].zone_no + 1

    def _descriptor(self, zone: Zone) -> bytes:
        shift = self._sector_shift
        wp = zone.wp >> shift if zone.cond in _WITH_WP else _NO_WP
        attributes = _ATTRIBUTES[zone.attributes] | (_RESET_RECOMMENDED if zone.reset_recommended else 0)
        return _DESCRIPTOR.pack(
            _SEQUENTIAL, zone.cond << 4, attributes, zone.capacity >> shift, zone.start >> shift, wp
        )
