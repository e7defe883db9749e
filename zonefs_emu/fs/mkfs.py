"""Formatting: what mkzonefs does to a device, through a port.

May not know: FUSE, paths, terminals. :func:`examine` reads the device, :func:`format_device` formats it, and
:func:`report_lines` makes the text for people.

Source: zonefs-tools src/mkzonefs.c, whose output this is, line by line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status, UsageError, printable
from zonefs_emu.fs.superblock import (
    DEFAULT_PERM,
    SUPER_BLOCK_BYTES,
    Feature,
    SuperBlock,
    encode,
    has_magic,
)
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_BYTES, SECTOR_SHIFT, round_up, to_bytes

#: Zones in one report.
_REPORT_ZONES: Final = 4096
_LOST: Final = frozenset((Condition.READONLY, Condition.OFFLINE))
#: A number with more digits is no user, group or permissions. Python refuses to convert some thousands of digits.
_DIGITS_MAX: Final = 40
_FEATURE_OF: Final = {"uid": Feature.UID, "gid": Feature.GID, "perm": Feature.PERM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Properties of a device for formatting; sizes in sectors. *runt* is the size of a smaller last zone, or 0."""

    size: int
    nr_zones: int
    zone_size: int
    runt: int
    nr_conventional: int
    nr_readonly: int
    nr_offline: int

    @property
    def nr_sequential(self) -> int:
        """Zones that are not conventional."""
        return self.nr_zones - self.nr_conventional

    @property
    def nr_usable(self) -> int:
        """Zones that can become files: all but zone 0 and offline ones."""
        return self.nr_zones - self.nr_offline - 1


def parse_features(text: str, *, uuid: UUID, label: str = "") -> SuperBlock:
    """Return the super block for ``-o`` *text*: ``aggr_cnv,uid=N,gid=N,perm=OCTAL``, or some of these.

    Raises:
        UsageError: *text* has an unknown feature, no number where one is needed or one that is too large; or *label* is
            too long or cannot be encoded as UTF-8.
    """
    features = Feature(0)
    values = {"uid": 0, "gid": 0, "perm": DEFAULT_PERM}
    for part in filter(None, text.split(",")):
        name, has_value, value = part.partition("=")
        if part == "aggr_cnv":
            features |= Feature.AGGR_CNV
        elif has_value and name in _FEATURE_OF:
            digits = "01234567" if name == "perm" else "0123456789"
            if not value or value.strip(digits) or len(value) > _DIGITS_MAX:
                kind = "an octal" if name == "perm" else "a decimal"
                message = f"the feature {name} needs {kind} number, not {value!r}"
                raise UsageError(message)
            values[name] = int(value, 8 if name == "perm" else 10)
            features |= _FEATURE_OF[name]
        else:
            message = f"unknown feature {part}: there are aggr_cnv, uid=N, gid=N and perm=OCTAL"
            raise UsageError(message)
    try:
        encoded = label.encode()
    except UnicodeEncodeError:
        message = f"a label must be UTF-8 text, and '{printable(label)}' is not"
        raise UsageError(message) from None
    return SuperBlock(uuid=uuid, label=encoded, features=features, **values)


def is_formatted(port: Port) -> bool:
    """Return whether the device appears to contain a zonefs, sound or damaged; False if zone 0 cannot be read."""
    block = bytearray(SUPER_BLOCK_BYTES)
    status = port.read(0, SUPER_BLOCK_BYTES >> SECTOR_SHIFT, (block,))
    return not status and has_magic(bytes(block))


def examine(port: Port) -> Facts:
    """Return the properties of the device.

    Raises:
        UsageError: the device cannot be formatted, because no zone is usable, or zone 0 is too small, read-only or
            offline.
    """
    geometry = port.geometry
    nr_readonly = nr_offline = zone_no = 0
    lost_zones = []
    while zones := port.report(zone_no, _REPORT_ZONES, _LOST):
        nr_offline += sum(zone.cond is Condition.OFFLINE for zone in zones)
        nr_readonly += sum(zone.cond is Condition.READONLY for zone in zones)
        lost_zones.append(zones[0].zone_no)
        zone_no = zones[-1].zone_no + 1
    if nr_offline >= geometry.nr_zones - 1:
        message = "no usable zones: besides zone 0, which holds the super block, at least one must not be offline"
        raise UsageError(message, 1)
    if lost_zones and lost_zones[0] == 0:
        message = "zone 0, which is to hold the super block, is read-only or offline"
        raise UsageError(message, 1)
    if to_bytes(geometry.zone_cap(0)) < _written_bytes(port):
        message = f"zone 0 has a capacity of {to_bytes(geometry.zone_cap(0))} bytes, too small for the super block"
        raise UsageError(message, 1)
    last = geometry.zone_len(geometry.nr_zones - 1)
    return Facts(
        size=geometry.size,
        nr_zones=geometry.nr_zones,
        zone_size=geometry.zone_size,
        runt=last if last != geometry.zone_size else 0,
        nr_conventional=geometry.nr_conventional,
        nr_readonly=nr_readonly,
        nr_offline=nr_offline,
    )


def format_device(port: Port, super_block: SuperBlock) -> None:
    """Reset all sequential zones, write *super_block*, finish zone 0 if it is sequential, and flush. Blocks.

    All data is lost. Zones that are read-only or offline stay as they are. Call :func:`examine` first, which says
    whether the device can be formatted.

    Raises:
        UsageError: the device refused a step; the sentence says which.
    """
    geometry = port.geometry
    _require(port.manage_all(Operation.RESET), "reset of the sequential zones")
    block = encode(super_block).ljust(_written_bytes(port), b"\0")
    _require(port.write(0, len(block) >> SECTOR_SHIFT, (block,)), "write of the super block")
    if not geometry.is_conventional(0):
        _require(port.manage(Operation.FINISH, 0), "finish of zone 0")
    _require(port.flush(), "flush")


def report_lines(facts: Facts, super_block: SuperBlock, device_name: str) -> Iterator[str]:
    """Yield what mkzonefs prints about *device_name* before it acts."""
    gib, mib = to_bytes(facts.size) >> 30, to_bytes(facts.zone_size) >> 20
    yield f"{device_name}: {facts.size} 512-byte sectors ({gib} GiB)"
    yield "  Host-managed device"
    # Whole zones only, as in mkzonefs: a smaller last zone has a line of its own.
    yield f"  {facts.size // facts.zone_size} zones of {facts.zone_size} 512-byte sectors ({mib} MiB)"
    if facts.runt:
        yield f"  1 runt zone of {facts.runt} 512-byte sectors ({to_bytes(facts.runt) >> 20} MiB)"
    yield f"  {facts.nr_conventional} conventional zones, {facts.nr_sequential} sequential zones"
    yield f"  {facts.nr_readonly} read-only zones, {facts.nr_offline} offline zones"
    yield "Format:"
    yield f"  {facts.nr_usable} usable zones"
    yield f"  Aggregate conventional zones: {'enabled' if super_block.aggregates else 'disabled'}"
    yield f"  File UID: {super_block.uid}"
    yield f"  File GID: {super_block.gid}"
    yield f"  File access permissions: {super_block.perm:o}"
    if super_block.label:
        yield f"  FS label: {super_block.label.decode(errors='replace')}"
    yield f"  FS UUID: {super_block.uuid}"
    yield "Resetting sequential zones"
    yield "Writing super block"


def _written_bytes(port: Port) -> int:
    """Return how many bytes the super block takes: a multiple of the write granularity."""
    return round_up(SUPER_BLOCK_BYTES, port.geometry.write_granularity * SECTOR_BYTES)


def _require(status: Status, what: str) -> None:
    if status:
        message = f"the {what} was refused ({status.name})"
        raise UsageError(message, 1)
