"""The metadata of an image in its file: creating, finding and reading it.

May not know: how an image in use is written (image.py).
"""

import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from zonefs_emu.errors import BadMagicError, CorruptImageError, ImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import fresh_zones
from zonefs_emu.persist.backing import Backing, FileBacking
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import (
    HEADER_MAGIC,
    Header,
    Section,
    SectionKind,
    decode_header,
    encode_header,
    plan_header,
)
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import ZoneStates, check_words, pack_words
from zonefs_emu.persist.recovery import Journal, Table, choose_state, choose_table, read_journal, zone_states

#: No host has this boot id, so a LIVE state with it is never trusted.
NO_BOOT: Final = bytes(16)
#: How far from the end of a damaged file the first header is searched: as far as the metadata of the largest geometry
#: without descriptor extensions. With these, the metadata can be longer, and then the first header is not found.
_SEARCH_BYTES: Final = 3 << 30
_SEARCH_CHUNK_BYTES: Final = 1 << 20


def create_image(
    path: Path, geometry: Geometry, *, uuid: UUID, label: str = "",
    states: "tuple[bytearray, array[int]] | None" = None,
) -> None:  # fmt: skip
    """Create the image *path* and close it.

    *states*: the states of all zones, whose data read as zeros; by default those of a new device.

    Raises:
        CorruptImageError: *states* are impossible in *geometry*.
        FileExistsError: *path* exists, and creating never overwrites.
        UsageError: the label or the conventional zones do not fit into the header.
        OSError: the host has no room; nothing is left behind.
    """
    header = plan_header(geometry, uuid=uuid, label=label)
    if states is not None:
        check_words(geometry, *states, what="the states of zones", offset=0)
    backing = FileBacking.create(path, header.file_bytes, header.reserved)
    try:
        initialize(backing, header, b"" if states is None else pack_words(*states))
        backing.sync_name()
    except BaseException:
        backing.close()
        path.unlink()
        raise
    backing.close()


def initialize(backing: Backing, header: Header, words: bytes = b"") -> None:
    """Write all metadata to *backing*, durably: of a new device, or of one with the zone states *words*.

    Raises:
        OSError: the host refuses or has no room.
    """
    words = words or pack_words(*fresh_zones(header.geometry))
    state = encode_state(State(generation=1, mode=Mode.CLEAN, boot_id=NO_BOOT, epoch=1), header.seed)
    table = encode_table(words, 1, header.seed)
    for copy in (0, 1):
        backing.pwrite(table, header.section(SectionKind.TABLE, copy).offset)
        backing.pwrite(state, header.section(SectionKind.STATE, copy).offset)
    # The headers come last: an image that has one is complete.
    backing.sync()
    for copy in (0, 1):
        backing.pwrite(encode_header(header, copy), header.section(SectionKind.HEADER, copy).offset)
    backing.sync()


def require_little_endian() -> None:
    """Raise ImageError on big-endian hosts: the live table is used in place and is little endian."""
    if sys.byteorder != "little":
        message = "zonefs_emu images are used in place and need a little-endian host"
        raise ImageError(message)


def read_header(backing: Backing, length: int) -> Header:
    """Return the header of the image: from the end of the file, or from the first copy if that one is damaged.

    Raises:
        BadMagicError: it is no image. CorruptImageError: it is damaged or cut; names the place.
        UnsupportedVersionError: a later version has made it. OSError: the host cannot read it.
    """
    last = max(length - BLOCK_BYTES, 0)
    try:
        header = decode_header(backing.pread(BLOCK_BYTES, last), offset=last)
    except (BadMagicError, CorruptImageError) as error:
        found = find_first_header(backing, length)
        if found is None:
            raise error from None
        header = found
    if header.file_bytes != length:
        raise CorruptImageError(
            "the length of the file", offset=length, found=f"{length} bytes", expected=f"{header.file_bytes} bytes"
        )
    return header


def find_first_header(backing: Backing, length: int) -> Header | None:
    """Return the first copy of the header, searched from the end of the file backwards, or None.

    Raises:
        UnsupportedVersionError: a later version has made it. OSError: the host cannot read it.
    """
    for offset, block in header_blocks(backing, length):
        with suppress(BadMagicError, CorruptImageError):
            return decode_header(block, offset=offset)
    return None


def header_blocks(backing: Backing, length: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, content) of the blocks that begin like a header, from the end of the file backwards.

    The last block may be cut short.
    """
    for offset, run in reversed(list(backing.extents(max(length - _SEARCH_BYTES, 0), length))):
        end = offset + run
        while end > offset:
            # A chunk begins at a multiple of _SEARCH_CHUNK_BYTES or with the extent, so it cuts no block in two.
            start = max((end - 1) // _SEARCH_CHUNK_BYTES * _SEARCH_CHUNK_BYTES, offset)
            chunk = backing.pread(end - start, start)
            first = -start % BLOCK_BYTES
            for at in range(first + (len(chunk) - first) // BLOCK_BYTES * BLOCK_BYTES, -1, -BLOCK_BYTES):
                if chunk.startswith(HEADER_MAGIC, at):
                    yield start + at, chunk[at : at + BLOCK_BYTES]
            end = start


def read_section(backing: Backing, section: Section) -> bytes:
    """Return the content of *section*, with zeros beyond the end of a file that was cut."""
    return backing.pread(section.length, section.offset).ljust(section.length, b"\0")


def read_copies(backing: Backing, header: Header, kind: SectionKind) -> list[bytes]:
    """Return both copies of the section of *kind*; see :func:`read_section`."""
    return [read_section(backing, header.section(kind, copy)) for copy in (0, 1)]


def read_state(backing: Backing, header: Header) -> tuple[State, int]:
    """Return (the newest good state block, the copy to overwrite first: not that one).

    Raises:
        CorruptImageError: both copies are damaged.
    """
    copies = read_copies(backing, header, SectionKind.STATE)
    offsets = [header.section(SectionKind.STATE, copy).offset for copy in (0, 1)]
    return choose_state(copies, header.seed, offsets=offsets)


def read_checkpoint(backing: Backing, header: Header) -> tuple[Table, Journal]:
    """Return the zone table, and the journal that belongs to it.

    Raises:
        CorruptImageError: damaged beyond what two copies can repair.
    """
    tables, journals = (read_copies(backing, header, kind) for kind in (SectionKind.TABLE, SectionKind.JOURNAL))
    offsets = [header.section(SectionKind.TABLE, copy).offset for copy in (0, 1)]
    table = choose_table(tables, header.geometry.nr_zones, header.seed, offsets=offsets)
    offsets = [header.section(SectionKind.JOURNAL, copy).offset for copy in (0, 1)]
    return table, read_journal(journals, table.generation, header.seed, offsets=offsets)


def read_zones(backing: Backing, header: Header) -> ZoneStates:
    """Return the zone states in the last checkpoint on *backing*.

    Raises:
        CorruptImageError: damaged beyond what two copies can repair.
    """
    table, journal = read_checkpoint(backing, header)
    return zone_states(header.geometry, table, journal, offset=header.section(SectionKind.JOURNAL).offset)


def holder(path: Path) -> str:
    """Return a text that names the process that holds the image *path*, according to its state block."""
    try:
        backing = FileBacking.peek(path)
    except OSError:
        return "another process"
    try:
        state, _ = read_state(backing, read_header(backing, backing.length))
    except (OSError, ImageError):
        return "another process"
    finally:
        backing.close()
    if state.mode is Mode.CLEAN or not state.owner_pid:
        return "another process"
    return f"{state.owner} (pid {state.owner_pid})"
