"""Zone reports in the formats of other tools, to the byte.

Pure functions: an iterable of Zone in, lines out, one zone at a time, so that a report of a million zones streams.
Each foreign format follows the source of its tool. A tool that prints the kernel's report gets that of Linux for a
host-managed disk: wp is the zone's end for conventional and FULL zones, and all ones for READONLY and OFFLINE ones.

The formats have different units: blkzone counts in 512-byte sectors, zbd in bytes, nvme in logical blocks, and the JSON
of this program in sectors. blkzone gives wp from the start of the zone, the others from the start of the device.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from zonefs_emu.cli.conditions import COND_CODES, TYPE_CODES
from zonefs_emu.model.zone import Attribute, Condition, Zone, ZoneType
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT, human_bytes, to_bytes

_U64: Final = (1 << 64) - 1
_C = Condition
#: Conditions whose write pointer has no meaning.
WITHOUT_WP: Final = frozenset({_C.NOT_WP, _C.READONLY, _C.FULL, _C.OFFLINE})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """The parts of a report besides its zones. *nr_zones*: how many zones the report has."""

    nr_zones: int
    block_size_bytes: int


Formatter: TypeAlias = Callable[[Iterable[Zone], ReportContext], Iterator[str]]


def linux_wp(zone: Zone, context: ReportContext) -> int:
    """Return the absolute write pointer, in sectors, that Linux gives in its zone report.

    Source: drivers/block/virtio_blk.c and drivers/scsi/sd_zbc.c: FULL is start + length; null_blk: conventional too.
    Drives answer all ones for READONLY and OFFLINE, and logical_to_sectors() shifts that by the block size.
    """
    if zone.cond in (_C.READONLY, _C.OFFLINE):
        return _U64 + 1 - context.block_size_bytes // SECTOR_BYTES
    if zone.cond in WITHOUT_WP:
        return zone.start + zone.size
    return zone.wp


def table(zones: Iterable[Zone], _context: ReportContext) -> Iterator[str]:
    """Yield a table for people: sizes with units, how much of each zone is written."""
    yield "   ZONE  TYPE  COND   START SECTOR       SIZE   CAPACITY    WRITTEN   FILL\n"
    for zone in zones:
        written, fill = "-", "-"
        if zone.type != ZoneType.CONVENTIONAL and zone.cond != _C.OFFLINE:
            nr_written = zone.wp - zone.start
            written, fill = human_bytes(to_bytes(nr_written)), f"{nr_written / zone.capacity:.0%}"
        yield (
            f"{zone.zone_no:7}  {TYPE_CODES[zone.type]}   {COND_CODES[zone.cond]}   {zone.start:14}"
            f" {human_bytes(to_bytes(zone.size)):>10} {human_bytes(to_bytes(zone.capacity)):>10}"
            f" {written:>10} {fill:>6}{_marks(zone)}\n"
        )


def _marks(zone: Zone) -> str:
    """Return what the table says of the attributes of *zone*, which few zones have."""
    if not zone.attributes:
        return ""
    area = "  zrwa" if zone.attributes & Attribute.ZRWA else ""
    return area + ("  finished by the drive" if zone.attributes & Attribute.FINISHED_BY_CONTROLLER else "")


# blkzone's names; a reserved condition cannot occur here.
_BLKZONE_COND: Final = MappingProxyType({**COND_CODES, _C.OFFLINE: "of"})
_BLKZONE_TYPE: Final = MappingProxyType(
    {
        ZoneType.CONVENTIONAL: "CONVENTIONAL",
        ZoneType.SWR: "SEQ_WRITE_REQUIRED",
        ZoneType.SWP: "SEQ_WRITE_PREFERRED",
    }
)


def _blkzone_line(zone: Zone, wptr: str) -> str:
    return (
        f"  start: 0x{zone.start:09x}, len 0x{zone.size:06x}, cap 0x{zone.capacity:06x}, wptr {wptr}"
        f" reset:{zone.reset_recommended:d} non-seq:0,"
        f" zcond:{zone.cond:2}({_BLKZONE_COND[zone.cond]}) [type: {zone.type:d}({_BLKZONE_TYPE[zone.type]})]\n"
    )


def blkzone(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the output of ``blkzone report`` of util-linux 2.37 to 2.41."""
    for zone in zones:
        # "(type == 0x1) ? 0 : wp - start", in unsigned arithmetic.
        wptr = 0 if zone.type == ZoneType.CONVENTIONAL else (linux_wp(zone, context) - zone.start) & _U64
        yield _blkzone_line(zone, f"0x{wptr:06x}")


def blkzone_2_42(zones: Iterable[Zone], _context: ReportContext) -> Iterator[str]:
    """Yield the output of ``blkzone report`` since util-linux 2.42, which has no wp where it has no meaning."""
    for zone in zones:
        yield _blkzone_line(zone, "N/A" if zone.cond in WITHOUT_WP else f"0x{zone.wp - zone.start:06x}")


def zbd(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the output of ``zbd report`` of libzbd."""
    for zone in zones:
        extent = (
            f"Zone {zone.zone_no:05}: {TYPE_CODES[zone.type]}, ofst {to_bytes(zone.start):014},"
            f" len {to_bytes(zone.size):014}, cap {to_bytes(zone.capacity):014}"
        )
        if zone.type == ZoneType.CONVENTIONAL:
            yield f"{extent}\n"
        else:
            cond, reset = COND_CODES[zone.cond], zone.reset_recommended
            yield f"{extent}, wp {_zbd_wp(zone, context):014}, {cond}, non_seq 0, reset {reset:d}\n"


def zbd_csv(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the output of ``zbd report -csv``."""
    yield "zone num, type, ofst, len, cap, wp, cond, non_seq, reset\n"
    for zone in zones:
        wp = _zbd_wp(zone, context)
        yield (
            f"{zone.zone_no:05}, {zone.type:d}, {to_bytes(zone.start):014}, {to_bytes(zone.size):014},"
            f" {to_bytes(zone.capacity):014}, {wp:014}, 0x{zone.cond:x}, 0, {zone.reset_recommended:d}\n"
        )


def _zbd_wp(zone: Zone, context: ReportContext) -> int:
    """Return wp in bytes: libzbd shifts the kernel's sectors in 64 bits."""
    return (linux_wp(zone, context) << SECTOR_SHIFT) & _U64


# NVMe has neither conventional zones nor their condition; nvme-cli has these words for unknown values.
_NVME_STATE: Final = MappingProxyType(
    {
        _C.NOT_WP: "Unknown State",
        _C.EMPTY: "EMPTY",
        _C.IMP_OPEN: "IMP_OPENED",
        _C.EXP_OPEN: "EXP_OPENED",
        _C.CLOSED: "CLOSED",
        _C.READONLY: "READONLY",
        _C.FULL: "FULL",
        _C.OFFLINE: "OFFLINE",
    }
)
_NVME_TYPE: Final = MappingProxyType(
    {
        ZoneType.CONVENTIONAL: "Unknown",
        ZoneType.SWR: "SEQWRITE_REQ",
        ZoneType.SWP: "Unknown",
    }
)


def _nvme_wp(zone: Zone, sectors_per_lba: int) -> int:
    """Return wp in logical blocks; real drives answer all ones where it has no meaning, FULL included."""
    return _U64 if zone.cond in WITHOUT_WP else zone.wp // sectors_per_lba


def _nvme_attrs(zone: Zone) -> int:
    """Return the Zone Attributes (ZNS 1.1, Zone Descriptor).

    Bit 0 Zone Finished by Controller, bit 1 Finish Zone Recommended, bit 2 Reset Zone Recommended, bit 3 random write
    area valid, bit 7 extension valid.
    """
    return (
        (0x1 if zone.attributes & Attribute.FINISHED_BY_CONTROLLER else 0)
        | (0x2 if zone.attributes & Attribute.FINISH_RECOMMENDED else 0)
        | (0x4 if zone.reset_recommended else 0)
        | (0x8 if zone.attributes & Attribute.ZRWA else 0)
        | (0x80 if zone.attributes & Attribute.EXTENSION else 0)
    )


def nvme(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the output of ``nvme zns report-zones`` of nvme-cli 1.x and 2.x."""
    lba = context.block_size_bytes // SECTOR_BYTES
    yield f"nr_zones: {context.nr_zones}\n"
    for zone in zones:
        yield (
            f"SLBA: 0x{zone.start // lba:<8x} WP: 0x{_nvme_wp(zone, lba):<8x} Cap: 0x{zone.capacity // lba:<8x}"
            f" State: {_NVME_STATE[zone.cond]:<12} Type: {_NVME_TYPE[zone.type]:<14} Attrs: 0x{_nvme_attrs(zone):x}\n"
        )


def nvme_json(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the object of ``nvme zns report-zones -o json``, on one line."""
    lba = context.block_size_bytes // SECTOR_BYTES
    yield f'{{"nr_zones":{context.nr_zones},"zone_list":['
    comma = ""
    for zone in zones:
        yield (
            f'{comma}{{"slba":{zone.start // lba},"wp":{_nvme_wp(zone, lba)},"cap":{zone.capacity // lba},'
            f'"state":"{_NVME_STATE[zone.cond]}","type":"{_NVME_TYPE[zone.type]}","attrs":{_nvme_attrs(zone)},"attrs_info":0}}'
        )
        comma = ","
    yield "]}\n"


def own_json(zones: Iterable[Zone], context: ReportContext) -> Iterator[str]:
    """Yield the JSON object of this program, one zone per line; in sectors, wp null where it has no meaning."""
    yield (
        f'{{"sector_bytes":{SECTOR_BYTES},"block_size_bytes":{context.block_size_bytes},'
        f'"nr_zones":{context.nr_zones},"zones":['
    )
    separator = "\n"
    for zone in zones:
        wp = "null" if zone.cond in WITHOUT_WP else zone.wp
        # A conventional zone has data anywhere, also when it is read-only.
        written = "null" if zone.type == ZoneType.CONVENTIONAL else zone.wp - zone.start
        yield (
            f'{separator}{{"zone_no":{zone.zone_no},"start":{zone.start},"size":{zone.size},"capacity":{zone.capacity},'
            f'"wp":{wp},"written":{written},"cond":"{COND_CODES[zone.cond]}","type":"{TYPE_CODES[zone.type]}",'
            f'"reset_recommended":{"true" if zone.reset_recommended else "false"}}}'
        )
        separator = ",\n"
    yield "\n]}\n"


FORMATS: Final = MappingProxyType[str, Formatter](
    {
        "table": table,
        "blkzone": blkzone,
        "blkzone-2.42": blkzone_2_42,
        "zbd": zbd,
        "zbd-csv": zbd_csv,
        "nvme": nvme,
        "nvme-json": nvme_json,
        "json": own_json,
    }
)
