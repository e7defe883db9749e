"""The space that zones take on the host.

May not know: which bytes may be freed at which time (image.py).
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.backing import Backing
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.units import to_bytes


def zone_extents(backing: Backing, geometry: Geometry) -> Iterator[tuple[int, int, int]]:
    """Yield (zone_no, start, end) of the runs of data in each zone, in bytes from the zone's start, ascending."""
    size = to_bytes(geometry.zone_size)
    for offset, length in backing.extents(0, to_bytes(geometry.size)):
        end = offset + length
        for zone_no in range(offset // size, -(-end // size)):
            zone = zone_no * size
            yield zone_no, max(offset - zone, 0), min(end - zone, size)


def punch_zones(backing: Backing, geometry: Geometry, zone_numbers: Sequence[int]) -> None:
    """Free the space of *zone_numbers*, which ascend; neighbours in one call.

    Raises:
        OSError: the host refuses.
    """
    index = 0
    while index < len(zone_numbers):
        first = zone_numbers[index]
        end = first
        while index < len(zone_numbers) and zone_numbers[index] == end:
            index += 1
            end += 1
        start = geometry.zone_start(first)
        length = min(geometry.zone_start(end), geometry.size) - start
        backing.punch(to_bytes(start), to_bytes(length))


def punch_leftovers(
    backing: Backing, geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray
) -> None:
    """Free the space that a crash left in zones of these states where it would do harm or stay for ever.

    These are EMPTY zones, whose reset was answered before the crash, and the bytes behind zone random write areas,
    which the area would show as its content when it moves there.

    Raises:
        OSError: the host refuses.
    """
    with_data = dict.fromkeys(zone_no for zone_no, _, _ in zone_extents(backing, geometry))
    punch_zones(backing, geometry, [zone_no for zone_no in with_data if conds[zone_no] == Condition.EMPTY])
    if geometry.zrwa_size:  # there may be millions of zones
        with_area = [zone_no for zone_no, bits in enumerate(attributes) if bits & Attribute.ZRWA]
        punch_unwritten(backing, geometry, with_area, ZoneStates(conds, wps, attributes))


def punch_unwritten(backing: Backing, geometry: Geometry, zone_numbers: Iterable[int], states: ZoneStates) -> None:
    """Free the space of *zone_numbers* beyond the data that zones of these states have.

    Raises:
        OSError: the host refuses.
    """
    for zone_no in zone_numbers:
        covered = geometry.covered(zone_no, states.wps[zone_no], states.attributes[zone_no])
        if covered < geometry.zone_len(zone_no):
            start = to_bytes(geometry.zone_start(zone_no) + covered)
            backing.punch(start, to_bytes(geometry.zone_len(zone_no) - covered))
