"""The header: geometry, identity and the places of the other sections, all fixed at creation."""

import struct
import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final
from uuid import UUID

from zonefs_emu.errors import BadMagicError, CorruptImageError, UnsupportedVersionError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist.codec.block import BLOCK_BYTES, check_crc, seal
from zonefs_emu.persist.codec.extension import extension_record_bytes
from zonefs_emu.persist.codec.faults import FAULTS_BYTES
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK
from zonefs_emu.units import round_up, to_bytes, to_sectors

VERSION: Final = 1
#: Like that of PNG: a transfer as text would change the byte with the high bit, or the line ends.
HEADER_MAGIC: Final = b"\x89ZBD\r\n\x1a\n"
LABEL_BYTES: Final = 64
REFUSALS_BYTES: Final = 64 * 1024
NR_COUNTERS: Final = 16
COUNTER_ROW_BYTES: Final = 8 * NR_COUNTERS
NR_CONV_RUNS_MAX: Final = 384

_HEADER: Final = struct.Struct("<8sIIQQQ16s64sQQQQQQIIIIII")
#: Behind it, each 0 in an image without the feature: the bytes of a descriptor extension; the size and granularity of a
#: zone random write area in bytes, and how many zones may have one; 1 if the drive finishes zones by itself.
_ZNS: Final = struct.Struct("<IIIII")
_ZNS_AT: Final = 192
#: An incompatible feature: zones have descriptor extensions, so words have attributes, and there is one more section.
FEATURE_EXTENSIONS: Final = 1 << 0
#: An incompatible feature: zones have random write areas, so words have attributes, and data lie beyond wp.
FEATURE_ZRWA: Final = 1 << 1
#: An incompatible feature: the drive finishes zones by itself, so words have attributes.
FEATURE_EXCURSIONS: Final = 1 << 2
_FEATURES: Final = FEATURE_EXTENSIONS | FEATURE_ZRWA | FEATURE_EXCURSIONS
_SECTION: Final = struct.Struct("<IIQQ")
_SECTIONS_OFFSET: Final = 256
_NR_SECTIONS_MAX: Final = 32
_RUNS_OFFSET: Final = _SECTIONS_OFFSET + _NR_SECTIONS_MAX * _SECTION.size
_RUN: Final = struct.Struct("<II")
_OWN_OFFSET: Final = struct.Struct("<QQ")
_OWN_OFFSET_AT: Final = 120
#: The bytes of a header on features that few images have: random write areas, and zones that the drive finishes.
RARE_BYTES: Final = slice(196, 212)
#: The parts of a header that determine all others: features to label, geometry, number of runs, runs.
TELLING_BYTES: Final = (*range(24, 120), *range(136, 184), *range(188, 212), *range(_RUNS_OFFSET, BLOCK_BYTES))


class SectionKind(IntEnum):
    """The kinds of sections in the metadata."""

    HEADER = 1
    STATE = 2
    TABLE = 3
    JOURNAL = 4
    LIVE = 5
    REFUSALS = 6
    FAULTS = 7
    COUNTERS = 8
    EXTENSIONS = 9


_SPARSE: Final = frozenset((SectionKind.COUNTERS, SectionKind.EXTENSIONS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One run of the metadata: *copy* 0 or 1; *offset* and *length* in bytes of the file."""

    kind: SectionKind
    copy: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The part of an image that never changes after creation."""

    geometry: Geometry
    uuid: UUID
    label: str = ""
    sections: tuple[Section, ...] = field(default=())
    #: Feature bits that this program does not know: with any in *read_only_compatible* the image may only be read.
    compatible: int = 0
    read_only_compatible: int = 0

    def section(self, kind: SectionKind, copy: int = 0) -> Section:
        """Return the section of *kind*. Every header has all of them (checked on decoding), except EXTENSIONS."""
        return next(section for section in self.sections if section.kind is kind and section.copy == copy)

    @property
    def metadata_offset(self) -> int:
        """Return the byte offset where data ends and metadata begins."""
        return self.sections[0].offset

    @property
    def reserved(self) -> list[tuple[int, int]]:
        """Return the (offset, length) runs that are never sparse, in bytes: all metadata but counters and extensions.

        Mapped sections must be reserved. Those that a flush writes are reserved too, so that it needs no space on the
        host.
        """
        return [(s.offset, s.length) for s in self.sections if s.kind not in _SPARSE]

    @property
    def file_bytes(self) -> int:
        """Return the length of the whole file in bytes."""
        last = self.sections[-1]
        return last.offset + last.length

    @property
    def seed(self) -> int:
        """Return the start value of the CRC of every other block."""
        return zlib.crc32(self.uuid.bytes)


def plan_header(geometry: Geometry, *, uuid: UUID, label: str = "") -> Header:
    """Lay out the metadata of a new image: data first, so that a file offset is a device offset.

    Raises:
        UsageError: the label or the list of conventional runs does not fit into the header.
    """
    if len(label.encode()) > LABEL_BYTES or "\0" in label:
        message = f"the label {label!r} must be at most {LABEL_BYTES} bytes of UTF-8 without NUL"
        raise UsageError(message)
    if len(geometry.conventional) > NR_CONV_RUNS_MAX:
        message = (
            f"{len(geometry.conventional)} runs of conventional zones are more than the {NR_CONV_RUNS_MAX} supported"
        )
        raise UsageError(message)
    table = -(-geometry.nr_zones // WORDS_PER_BLOCK) * BLOCK_BYTES
    journal = min(max(64 * 1024, round_up(table // 8, BLOCK_BYTES)), 1024 * 1024)
    live = round_up(8 * geometry.nr_zones, BLOCK_BYTES)
    counters = round_up(COUNTER_ROW_BYTES * (geometry.nr_zones + 1), BLOCK_BYTES)
    extensions = 0
    if geometry.extension_bytes:
        extensions = round_up(extension_record_bytes(geometry.extension_bytes) * geometry.nr_zones, BLOCK_BYTES)
    plan = (
        (SectionKind.HEADER, 0, BLOCK_BYTES),
        (SectionKind.STATE, 0, BLOCK_BYTES),
        (SectionKind.TABLE, 0, table),
        (SectionKind.JOURNAL, 0, journal),
        (SectionKind.LIVE, 0, live),
        (SectionKind.REFUSALS, 0, REFUSALS_BYTES),
        (SectionKind.FAULTS, 0, FAULTS_BYTES),
        (SectionKind.COUNTERS, 0, counters),
        *(((SectionKind.EXTENSIONS, 0, extensions),) if extensions else ()),
        (SectionKind.TABLE, 1, table),
        (SectionKind.JOURNAL, 1, journal),
        (SectionKind.FAULTS, 1, FAULTS_BYTES),
        (SectionKind.STATE, 1, BLOCK_BYTES),
        (SectionKind.HEADER, 1, BLOCK_BYTES),
    )
    offset = round_up(to_bytes(geometry.size), BLOCK_BYTES)
    sections = []
    for kind, copy, length in plan:
        sections.append(Section(kind=kind, copy=copy, offset=offset, length=length))
        offset += length
    return Header(geometry=geometry, uuid=uuid, label=label, sections=tuple(sections))


def encode_header(header: Header, copy: int) -> bytes:
    """Return the block of *copy* (0 or 1) of the header."""
    geometry = header.geometry
    block = bytearray(BLOCK_BYTES)
    _HEADER.pack_into(
        block, 0, HEADER_MAGIC, 0, VERSION, _incompatible(geometry), header.compatible, header.read_only_compatible,
        header.uuid.bytes, header.label.encode(),
        header.section(SectionKind.HEADER, copy).offset, header.file_bytes,
        geometry.size, geometry.zone_size, geometry.zone_capacity, geometry.max_append,
        geometry.max_open_zones, geometry.max_active_zones, geometry.block_size_bytes,
        to_bytes(geometry.write_granularity), len(header.sections), len(geometry.conventional),
    )  # fmt: skip
    _ZNS.pack_into(
        block, _ZNS_AT, geometry.extension_bytes, to_bytes(geometry.zrwa_size), to_bytes(geometry.zrwa_granularity),
        geometry.max_zrwa, geometry.active_excursions,
    )  # fmt: skip
    for index, section in enumerate(header.sections):
        at = _SECTIONS_OFFSET + index * _SECTION.size
        _SECTION.pack_into(block, at, section.kind, section.copy, section.offset, section.length)
    for index, run in enumerate(geometry.conventional):
        _RUN.pack_into(block, _RUNS_OFFSET + index * _RUN.size, *run)
    seal(block, 8, 0)
    return bytes(block)


def _incompatible(geometry: Geometry) -> int:
    """Return the incompatible feature bits of an image of *geometry*."""
    return (
        (FEATURE_EXTENSIONS if geometry.extension_bytes else 0)
        | (FEATURE_ZRWA if geometry.zrwa_size else 0)
        | (FEATURE_EXCURSIONS if geometry.active_excursions else 0)
    )


def decode_header(block: bytes, *, offset: int) -> Header:
    """Return the header in *block*, which is at byte *offset* of the file.

    Raises:
        BadMagicError: not a header at all.
        UnsupportedVersionError: a later format, or incompatible features.
        CorruptImageError: the CRC or a field is wrong.
    """
    if len(block) < BLOCK_BYTES or block[:8] != HEADER_MAGIC:
        message = f"no zonefs_emu header at byte {offset}: found {block[:8]!r}, expected {HEADER_MAGIC!r}"
        raise BadMagicError(message)
    check_crc(block, 8, 0, what="header", offset=offset)
    _, _, version, incompatible, *_, nr_sections, nr_runs = _HEADER.unpack_from(block)
    if version != VERSION or incompatible & ~_FEATURES:
        message = (
            f"image format version {version} with incompatible features {incompatible:#x} is not supported: "
            f"this program knows version {VERSION} with features {_FEATURES:#x}"
        )
        raise UnsupportedVersionError(message)

    def corrupt(what: str, found: object, expected: object) -> CorruptImageError:
        return CorruptImageError(f"header, {what}", offset=offset, found=str(found), expected=str(expected))

    own_offset, file_bytes = _OWN_OFFSET.unpack_from(block, _OWN_OFFSET_AT)
    if own_offset != offset:
        raise corrupt("own offset", own_offset, offset)
    if nr_sections > _NR_SECTIONS_MAX or nr_runs > NR_CONV_RUNS_MAX:
        raise corrupt("counts", f"{nr_sections} sections, {nr_runs} runs", "fewer")
    try:
        header = planned_header(block)
    except (UsageError, ValueError) as error:
        raise corrupt("geometry", error, "a possible one") from None
    found = [_SECTION.unpack_from(block, _SECTIONS_OFFSET + index * _SECTION.size) for index in range(nr_sections)]
    expected = [(section.kind, section.copy, section.offset, section.length) for section in header.sections]
    if incompatible != _incompatible(header.geometry):
        raise corrupt("features", f"{incompatible:#x}", f"{_incompatible(header.geometry):#x}")
    if found != expected or file_bytes != header.file_bytes:
        raise corrupt("sections", found, expected)
    return header


def planned_header(block: bytes) -> Header:
    """Return the header that follows from the fields of *block* that determine all others.

    Raises:
        UsageError, ValueError: the fields are impossible.
    """
    (
        *_, compatible, read_only_compatible, uuid, label, _own_offset, _file_bytes, size, zone_size, zone_capacity,
        max_append, max_open, max_active, block_size, granularity, _nr_sections, nr_runs,
    ) = _HEADER.unpack_from(block)  # fmt: skip
    if nr_runs > NR_CONV_RUNS_MAX:
        message = f"{nr_runs} runs of conventional zones, more than the {NR_CONV_RUNS_MAX} supported"
        raise ValueError(message)
    extension_bytes, zrwa_bytes, zrwa_granularity_bytes, max_zrwa, excursions = _ZNS.unpack_from(block, _ZNS_AT)
    if excursions > 1:
        message = f"zone active excursions {excursions}, which is neither 0 nor 1"
        raise ValueError(message)
    geometry = Geometry(
        size=size, zone_size=zone_size, zone_capacity=zone_capacity, max_append=max_append,
        max_open_zones=max_open, max_active_zones=max_active, block_size_bytes=block_size,
        write_granularity=to_sectors(granularity),
        extension_bytes=extension_bytes, zrwa_size=to_sectors(zrwa_bytes),
        zrwa_granularity=to_sectors(zrwa_granularity_bytes), max_zrwa=max_zrwa, active_excursions=bool(excursions),
        conventional=tuple(_RUN.unpack_from(block, _RUNS_OFFSET + index * _RUN.size) for index in range(nr_runs)),
    )  # fmt: skip
    header = plan_header(geometry, uuid=UUID(bytes=uuid), label=label.rstrip(b"\0").decode())
    return replace(header, compatible=compatible, read_only_compatible=read_only_compatible)
