"""The shape of a drive and the states of its zones, from a description of it: ``create --like``.

A source is a block device of this host, whose zones the kernel reports; a directory of zloop; or a file with the output
of another tool (:mod:`zonefs_emu.cli.zone_reports`). The options of ``create`` give the parts that no source has.
"""

import codecs
import fcntl
import os
import re
import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from zonefs_emu.cli.lsblk_table import DiskShape, parse_lsblk
from zonefs_emu.cli.zone_reports import Report, ReportedZone, has_zones, parse_report
from zonefs_emu.errors import UsageError, printable
from zonefs_emu.model.geometry import NR_ZONES_MAX, Geometry, merge_runs
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition
from zonefs_emu.units import SECTOR_BYTES, to_bytes

#: Ten million zones as zbd prints them.
_REPORT_BYTES_MAX: Final = 1 << 30
_SIZE_BYTES_MAX: Final = 1 << 63
_CONVENTIONAL: Final = 1
_SWP: Final = 3
#: The zone type of ZBC-2 for the gap between a zone's capacity and the next zone.
_GAP: Final = 5
_BLOCK_BYTES: Final = 4096

# Source: Linux include/uapi/linux/blkzoned.h: struct blk_zone_report, struct blk_zone, BLKREPORTZONE.
_BLKREPORTZONE: Final = 0xC0101282
_REPORT_HEAD: Final = struct.Struct("<QII")
_BLK_ZONE: Final = struct.Struct("<QQQBBBB4xQ24x")
_ZONES_PER_CALL: Final = 4096
#: BLK_ZONE_REP_CAPACITY: the field of the capacity is filled in.
_HAS_CAPACITY: Final = 1
_SYSFS: Final = Path("/sys/dev/block")

_ZLOOP_FILE: Final = re.compile(r"(cnv|seq)-(\d{6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A drive as a source describes it, in bytes; None for unknown parts.

    *states* are (condition, sectors with data) of each zone; empty if the source has none.
    """

    size: int
    zone_size: int
    zone_capacity: int
    conventional: tuple[tuple[int, int], ...]
    block_size: int
    max_open_zones: int | None
    max_active_zones: int | None
    max_append: int | None
    states: Sequence[tuple[Condition, int]]


def read_template(
    sources: Sequence[Path], *, block_size: int | None = None, zone_size: int | None = None
) -> Template:  # fmt: skip
    """Return the drive that *sources* describe: a node, a directory, or one or more files that belong together.

    *block_size* and *zone_size*, in bytes, are used if the source has none.

    Raises:
        UsageError: it is no source, was cut, or has a drive that cannot be emulated; names the line.
        OSError: it cannot be read.
    """
    kinds = {stat.S_IFMT(source.stat().st_mode) for source in sources}
    if len(sources) == 1 and kinds == {stat.S_IFBLK}:
        return _of_node(sources[0])
    if len(sources) == 1 and kinds == {stat.S_IFDIR}:
        return _of_zloop(sources[0], zone_size, block_size)
    if stat.S_IFBLK in kinds or stat.S_IFDIR in kinds:
        message = "a block device or a directory must be the only --like: give no other one"
        raise UsageError(message)
    name = " and ".join(map(printable, sources))
    text = "\n".join(map(_text, sources))
    try:
        # A bug report may have both. A list of zones has more than their number.
        disk = None if has_zones(text) else parse_lsblk(text, name)
        if disk is not None:
            found = _of_lsblk(disk, name)
        else:
            found = _of_report(parse_report(text, name), name, block_size, zone_size)
    except ValueError as error:  # Python converts no number of more than 4300 digits
        message = f"{name} contains a number that no drive has ({error})"
        raise UsageError(message) from None
    if max(found.size, found.zone_size) > _SIZE_BYTES_MAX:
        message = f"{name} contains a number that no drive has: sizes are below 8 EiB"
        raise UsageError(message)
    return found


def _text(source: Path) -> str:
    with source.open("rb") as file:
        data = file.read(_REPORT_BYTES_MAX + 1)
    if len(data) > _REPORT_BYTES_MAX:
        message = f"{source} is too long for a report of zones"
        raise UsageError(message, exit_code=1)
    # The mark that editors of other systems put before the first line would hide the first zone.
    return data.removeprefix(codecs.BOM_UTF8).decode(errors="replace")


def _of_report(report: Report, name: str, block_size: int | None, zone_size: int | None) -> Template:
    unit = report.unit_bytes or block_size
    if unit is None:
        message = (
            f"{name} counts in logical blocks, but does not contain their size: add --block-size, or a second "
            "--like with the output of 'nvme id-ns -o json'"
        )
        raise UsageError(message)
    zones = list(_in_sectors(report, unit, zone_size))
    own_block = report.block_size_bytes or (None if report.unit_bytes else unit)
    return _template(
        zones, name, block_size=own_block, size=report.size_bytes,
        max_open_zones=report.max_open_zones, max_active_zones=report.max_active_zones,
    )  # fmt: skip


def _of_lsblk(disk: DiskShape, name: str) -> Template:
    if not 0 < disk.nr_zones <= NR_ZONES_MAX or not disk.zone_size:
        message = (
            f"{name} has {disk.nr_zones} zones of {disk.zone_size} bytes, but an image has 1 to {NR_ZONES_MAX} zones"
        )
        raise UsageError(message)
    return Template(
        size=disk.nr_zones * disk.zone_size, zone_size=disk.zone_size, zone_capacity=disk.zone_size, conventional=(),
        block_size=disk.write_granularity or _BLOCK_BYTES, max_open_zones=disk.max_open_zones,
        max_active_zones=disk.max_active_zones, max_append=disk.max_append, states=(),
    )  # fmt: skip


def _in_sectors(report: Report, unit: int, zone_size: int | None) -> Iterator[ReportedZone]:
    def sectors(zone: ReportedZone, value: int) -> int:
        if value * unit % SECTOR_BYTES:
            message = f"{zone.where}: {value * unit} bytes are not whole sectors of {SECTOR_BYTES} bytes"
            raise UsageError(message)
        return value * unit // SECTOR_BYTES

    for index, zone in enumerate(report.zones):
        length = zone.length
        if length is None and zone_size is not None:
            length = zone_size // unit
        if length is None:
            # A zone ends where the next one begins, and the last one is as long as the one before it.
            after, before = (index + 1, index) if index + 1 < len(report.zones) else (index, index - 1)
            if before < 0:
                message = f"{zone.where} is the only zone and has no length: add --zone-size"
                raise UsageError(message)
            length = report.zones[after].start - report.zones[before].start
        yield ReportedZone(
            where=zone.where,
            start=sectors(zone, zone.start),
            length=sectors(zone, length),
            capacity=None if zone.capacity is None else sectors(zone, zone.capacity),
            wp=None if zone.wp is None else sectors(zone, zone.wp),
            cond=zone.cond,
            type=zone.type,
        )


def _template(
    zones: Sequence[ReportedZone], name: str, *, block_size: int | None = None, size: int | None = None,
    max_open_zones: int | None = None, max_active_zones: int | None = None, max_append: int | None = None,
) -> Template:  # fmt: skip
    """Return the drive that has *zones*, in sectors, which are checked here."""
    zones = _without_gaps(zones)
    if not zones or len(zones) > NR_ZONES_MAX:
        message = f"{name} has {len(zones) or 'no'} zones, but an image has 1 to {NR_ZONES_MAX}"
        raise UsageError(message)
    zone_size = zones[0].length or 0
    capacity: int | None = None
    position = 0
    conventional: list[tuple[int, int]] = []
    states: list[tuple[Condition, int]] = []
    for zone_no, zone in enumerate(zones):
        length = zone.length or 0
        _check_place(zone, position, zone_size, last=zone_no + 1 == len(zones))
        position += length
        if zone.type == _CONVENTIONAL:
            conventional.append((zone_no, 1))
        elif length == zone_size:
            capacity = _common_capacity(zone, capacity, length)
        states.append(_state(zone, min(zone.capacity or length, length)))
    if size is not None and size != to_bytes(position):
        message = f"{name} was cut: the device has {size} bytes, but its zones have {to_bytes(position)}"
        raise UsageError(message)
    numbers = [position, zone_size, capacity or zone_size, *(written for _, written in states)]
    if block_size is None:
        fits = all(number % (_BLOCK_BYTES // SECTOR_BYTES) == 0 for number in numbers)
        block_size = _BLOCK_BYTES if fits else SECTOR_BYTES
    return Template(
        size=to_bytes(position), zone_size=to_bytes(zone_size), zone_capacity=to_bytes(capacity or zone_size),
        conventional=merge_runs(conventional), block_size=block_size, max_open_zones=max_open_zones,
        max_active_zones=max_active_zones, max_append=max_append, states=states,
    )  # fmt: skip


def _check_place(zone: ReportedZone, position: int, zone_size: int, *, last: bool) -> None:
    """Make sure that *zone* begins at *position*, has *zone_size* (the last one may be smaller) and a known type."""
    if zone.start != position:
        begins = "at the start of the device" if not position else f"at sector {position}, where the last one ends"
        _refuse(zone, f"begins at sector {zone.start} and not {begins}: zones are missing, or of another device")
    length = zone.length or 0
    if not 0 < length <= zone_size or (length < zone_size and not last):
        _refuse(zone, f"has {length} sectors, and the first one {zone_size}: zones of an image have one size")
    if zone.type == _SWP:
        _refuse(zone, "is sequential-write-preferred, of a host-aware drive, which is not emulated")


def _without_gaps(zones: Sequence[ReportedZone]) -> list[ReportedZone]:
    """Return *zones* with each gap zone joined to the zone before it, as the part beyond the capacity."""
    whole: list[ReportedZone] = []
    for zone in zones:
        if zone.type != _GAP:
            whole.append(zone)
            continue
        if not whole:
            _refuse(zone, "is a gap zone without a zone before it")
        before = whole[-1]
        whole[-1] = ReportedZone(
            where=before.where, start=before.start, length=(before.length or 0) + (zone.length or 0),
            capacity=before.capacity or before.length, wp=before.wp, cond=before.cond, type=before.type,
        )  # fmt: skip
    return whole


def _common_capacity(zone: ReportedZone, capacity: int | None, length: int) -> int:
    own = zone.capacity or length
    # A drive may report no capacity for an offline zone.
    if zone.cond is Condition.OFFLINE and zone.capacity == 0:
        return capacity or length
    if own > length:
        _refuse(zone, f"has a capacity of {own} sectors in {length}")
    if capacity is not None and own != capacity:
        _refuse(zone, f"has a capacity of {own} sectors, and others have {capacity}: an image has one capacity")
    return own


def _state(zone: ReportedZone, capacity: int) -> tuple[Condition, int]:
    """Return the condition of *zone* and its sectors with data."""
    if zone.type == _CONVENTIONAL:
        bad = zone.cond in (Condition.READONLY, Condition.OFFLINE)
        return (zone.cond if bad else Condition.NOT_WP), 0
    if zone.cond is Condition.NOT_WP:
        _refuse(zone, "is sequential and has no condition")
    if zone.cond is Condition.EMPTY:
        return zone.cond, 0
    if zone.wp is None:
        # FULL, READONLY and OFFLINE zones have no write pointer, so the amount of data is unknown.
        return zone.cond, 0
    written = zone.wp - zone.start
    if not 0 <= written < capacity:
        _refuse(zone, f"is {zone.cond.name} with {written} of {capacity} sectors written")
    return zone.cond, written


def _refuse(zone: ReportedZone, what: str) -> NoReturn:
    message = f"{zone.where}: the zone {what}"
    raise UsageError(message)


def zone_states(template: Template, geometry: Geometry) -> "tuple[bytearray, array[int]]":
    """Return the conditions and the sectors with data of all zones, for an image of *geometry*.

    Raises:
        UsageError: options have changed the drive so that the states do not fit; with the reason.
    """
    if not template.states:
        message = "--with-state needs a report of the zones; lsblk does not show single zones"
        raise UsageError(message)
    same = (geometry.nr_zones, geometry.conventional) == (len(template.states), template.conventional)
    if not same or (to_bytes(geometry.zone_size), to_bytes(geometry.zone_capacity)) != (
        template.zone_size,
        template.zone_capacity,
    ):
        message = "--with-state keeps the states of the zones, so their number, sizes and types cannot be changed"
        raise UsageError(message)
    conds = [cond for cond, _ in template.states]
    limits = (
        ("open", OPEN_CONDITIONS, geometry.max_open_zones),
        ("active", ACTIVE_CONDITIONS, geometry.max_active_zones),
    )
    for word, members, limit in limits:
        count = sum(cond in members for cond in conds)
        if limit and count > limit:
            message = f"{count} zones are {word}, but at most {limit} may be: raise --max-{word}-zones"
            raise UsageError(message)
    granule = geometry.write_granularity
    for zone_no, (_, written) in enumerate(template.states):
        if written % granule:
            message = f"zone {zone_no} has {written} sectors written, which are not whole blocks: add --block-size 512"
            raise UsageError(message)
    return bytearray(conds), array("Q", (written for _, written in template.states))


# -- block devices ------------------------------------------------------------------------------------------------


def _of_node(node: Path) -> Template:
    """Return the drive at the block device *node*, as the kernel knows it. Source: Linux, blk-zoned.c, sysfs-block."""
    number = node.stat().st_rdev
    queue = _SYSFS / f"{os.major(number)}:{os.minor(number)}" / "queue"

    def limit(name: str) -> int | None:
        try:
            return int((queue / name).read_text())
        except (OSError, ValueError):
            return None

    if not queue.is_dir():
        message = f"{node} is a partition: name the whole disk"
        raise UsageError(message, exit_code=1)
    zoned = (queue / "zoned").read_text().strip()
    if zoned != "host-managed":
        message = f"{node} is not a host-managed zoned disk: the kernel reports {zoned}"
        raise UsageError(message, exit_code=1)
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        zones = list(_kernel_zones(fd, str(node)))
    finally:
        os.close(fd)
    return _template(
        zones, str(node), block_size=limit("logical_block_size"), max_open_zones=limit("max_open_zones"),
        max_active_zones=limit("max_active_zones"), max_append=limit("zone_append_max_bytes"),
    )  # fmt: skip


def _kernel_zones(fd: int, name: str) -> Iterator[ReportedZone]:
    sector = 0
    while True:
        report = bytearray(_REPORT_HEAD.size + _ZONES_PER_CALL * _BLK_ZONE.size)
        _REPORT_HEAD.pack_into(report, 0, sector, _ZONES_PER_CALL, 0)
        fcntl.ioctl(fd, _BLKREPORTZONE, report)
        _, nr_zones, flags = _REPORT_HEAD.unpack_from(report)
        if not nr_zones:
            return
        records = _BLK_ZONE.iter_unpack(memoryview(report)[_REPORT_HEAD.size :][: nr_zones * _BLK_ZONE.size])
        for start, length, wp, kind, cond, _, _, capacity in records:
            condition = Condition(cond)
            yield ReportedZone(
                where=f"the zone of {name} at sector {start}", start=start, length=length,
                capacity=capacity if flags & _HAS_CAPACITY else None, cond=condition, type=kind,
                wp=wp if condition in ACTIVE_CONDITIONS else None,
            )  # fmt: skip
            sector = start + length


# -- zloop --------------------------------------------------------------------------------------------------------


def _of_zloop(directory: Path, zone_size: int | None, block_size: int | None) -> Template:
    """Return the drive of zloop in *directory*, which has a file for each zone, as long as its written part.

    Source: Linux Documentation/admin-guide/blockdev/zoned_loop.rst. A finished zone is as long as a zone.
    """
    files = {}
    for path in directory.iterdir():
        found = _ZLOOP_FILE.fullmatch(path.name)
        if found:
            if int(found[2]) in files:
                message = (
                    f"{directory} has two files of zone {int(found[2])}: a zone has cnv-{found[2]} or seq-{found[2]}"
                )
                raise UsageError(message, exit_code=1)
            files[int(found[2])] = (found[1], path.stat().st_size)
    if not files:
        message = f"{directory} contains no zone of zloop (cnv-000000, seq-000001, ...)"
        raise UsageError(message, exit_code=1)
    missing = next((number for number in range(len(files)) if number not in files), None)
    if missing is not None:
        message = f"{directory} lacks the file of zone {missing}"
        raise UsageError(message, exit_code=1)
    # A conventional zone's file is as long as the zone.
    zone_size = zone_size or next((size for _, (kind, size) in sorted(files.items()) if kind == "cnv"), None)
    if zone_size is None:
        message = f"{directory} has no conventional zone, whose file would be as long as a zone: add --zone-size"
        raise UsageError(message)
    if not zone_size or zone_size % SECTOR_BYTES:
        message = f"the zones of {directory} have {zone_size} bytes, which are no sectors of {SECTOR_BYTES} bytes"
        raise UsageError(message)
    sectors = zone_size // SECTOR_BYTES
    zones = []
    for number in range(len(files)):
        kind, written = files[number]
        if written > zone_size or written % SECTOR_BYTES or (kind == "cnv" and written != zone_size):
            wanted = "as long as a zone" if kind == "cnv" else "whole sectors, and at most a zone"
            message = f"{directory}/{kind}-{number:06} has {written} bytes: it must be {wanted} ({zone_size} bytes)"
            raise UsageError(message)
        start = number * sectors
        cond = Condition.EMPTY if not written else Condition.FULL if written >= zone_size else Condition.CLOSED
        zones.append(
            ReportedZone(
                where=f"{directory}/{kind}-{number:06}",
                start=start,
                length=sectors,
                capacity=None,
                cond=Condition.NOT_WP if kind == "cnv" else cond,
                type=1 if kind == "cnv" else 2,
                wp=start + written // SECTOR_BYTES if cond is Condition.CLOSED else None,
            )
        )
    return _template(zones, str(directory), block_size=block_size)
