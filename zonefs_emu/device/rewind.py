"""Rewinding a device in use to the state and the data of a snapshot, which is an image of its own.

For front-ends it is one change of all zones: commands that change zones, and flushes, wait for its end. Write pointers
never cover bytes of another time: all sequential zones are made empty first, durably, and get their states back when
their data is durable. An interrupted rewind leaves them empty, and conventional zones changed in part. It can be
repeated, because the snapshot is unchanged.
"""

from pathlib import Path

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.zone_states import load_states
from zonefs_emu.errors import UsageError
from zonefs_emu.model.machine import fresh_zones
from zonefs_emu.model.zone import Attribute
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.header import Header
from zonefs_emu.persist.codec.words import ZoneStates
from zonefs_emu.persist.extensions_section import ExtensionsSection
from zonefs_emu.persist.metadata import read_header, read_zones
from zonefs_emu.persist.space import punch_zones, zone_extents
from zonefs_emu.units import to_bytes


def rewind(device: ZonedDevice, snapshot: Path) -> None:
    """Put *device* into the state in which the image *snapshot* was taken. Injected faults stay.

    It is no generator that yields its progress, because a caller that goes away would leave the device half changed.

    Raises:
        UsageError: *snapshot* is of another device, or a dump or a power-cut lab observes the writes.
        ImageError: *snapshot* is no image, or is damaged. PoisonedError: the image takes no changes, or the host fails.
        NoSpaceError, OSError: the host is full or refuses; the sequential zones may be empty now.
    """
    if device.access.has_write_hooks:
        message = "a dump or a power-cut lab is running on this image: wait for it, or end it with 'crash --no-watch'"
        raise UsageError(message, exit_code=1)
    source = FileBacking.open(snapshot, readonly=True)
    try:
        header = read_header(source, source.length)
        if (header.uuid, header.geometry) != (device.uuid, device.geometry):
            message = f"{snapshot} is a snapshot of another device: {header.uuid} and not {device.uuid}"
            raise UsageError(message, exit_code=1)
        states = read_zones(source, header)
        image = device.image
        with image.between_checkpoints(), device.holding_all():
            conds, wps = fresh_zones(device.geometry)
            load_states(device, ZoneStates(conds, wps, bytearray(len(conds))))
            # This frees the space of later data.
            image.flush_now()
            _copy(device, source, header, states)
            load_states(device, states)
            image.flush_now()
    finally:
        source.close()


def _copy(device: ZonedDevice, source: FileBacking, header: Header, states: ZoneStates) -> None:
    """Copy the data that *states* cover; holes stay holes."""
    backing, geometry = device.image.backing, device.geometry
    assert isinstance(backing, FileBacking)
    for first, count in geometry.conventional:
        punch_zones(backing, geometry, range(first, first + count))
    zone_bytes = to_bytes(geometry.zone_size)
    for zone_no, start, end in zone_extents(source, geometry):
        nr_covered = geometry.covered(zone_no, states.wps[zone_no], states.attributes[zone_no])
        covered = end if geometry.is_conventional(zone_no) else min(end, to_bytes(nr_covered))
        if start < covered:
            backing.copy_from(source, zone_no * zone_bytes + start, covered - start)
    if geometry.extension_bytes:
        section = ExtensionsSection(source, header)
        for zone_no, bits in enumerate(states.attributes):
            if bits & Attribute.EXTENSION:
                backing.pwrite(section.record(zone_no), section.offset(zone_no))
