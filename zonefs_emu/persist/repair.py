"""Repairing a damaged image so that it opens, with the data of salvage.py, after a backup of the bytes that change.

Invariants:

* The device's data is never written to. Bytes beyond the end of the image are cut off.
* All decisions are made, and the backup is durable, before anything is written.
* A repair that is interrupted anywhere can be run again and has the same result. Of the zone states, the live table is
  written first, then a state block that says CLEAN and names a checkpoint that is not there yet, and the checkpoint
  last. Until then the live table replaces the checkpoint.

docs/image-format.md says what is saved from which source, and how the backup is restored.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from zonefs_emu.errors import ImageBusyError, UnsupportedVersionError
from zonefs_emu.persist.backing import Backing, FileBacking, current_boot_id
from zonefs_emu.persist.check import Finding, check_backing
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.faults import decode_faults
from zonefs_emu.persist.codec.header import Header, SectionKind, encode_header
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import encode_live, pack_words
from zonefs_emu.persist.metadata import NO_BOOT, holder, read_copies, require_little_endian
from zonefs_emu.persist.salvage import salvage_header, salvage_zones
from zonefs_emu.units import human_bytes

#: (byte of the file, what to write there).
Write: TypeAlias = tuple[int, bytes]
_ROW_BYTES: Final = 16
_CHUNK_BYTES: Final = 1 << 20
_COPY_NAMES: Final = ("first", "second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The changes to be made.

    The file, *former_length* bytes long, gets the length *length*. Then the *steps* follow, each durable before the
    next. *done* and *lost* say in words what changes, and what cannot be saved.
    """

    former_length: int
    length: int
    steps: tuple[Write, ...]
    done: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The parts of a :class:`Plan` for one part of the metadata; empty if that is sound."""

    steps: tuple[Write, ...] = ()
    done: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A repair: the findings *before* and *after* it, and its *plan*. *backup* is None if nothing was changed."""

    before: tuple[Finding, ...]
    plan: Plan
    backup: Path | None
    after: tuple[Finding, ...]


def repair_image(path: Path) -> Repair:
    """Repair the image *path*, which no other process may use. A new file beside it keeps the former bytes.

    Raises:
        ImageBusyError: another process uses it. ImageError: as :meth:`Image.open`.
        BadMagicError: no header can be read or rebuilt. UnsupportedVersionError: the image was made by a later version.
        OSError: the host refuses. If it has no room for the backup, nothing is changed. After any other error, the
            repair can be run again.
    """
    require_little_endian()
    try:
        backing = FileBacking.open(path)
    except ImageBusyError:
        raise ImageBusyError(str(path), f"{holder(path)}, and is repaired only when nothing uses it") from None
    try:
        boot_id = current_boot_id()
        before = check_backing(backing, backing.length, boot_id)
        plan = plan_repair(backing, backing.length, boot_id)
        if not plan.done:
            return Repair(before=tuple(before), plan=plan, backup=None, after=tuple(before))
        backup = _keep(path, backup_lines(backing, plan))
        backing.sync_name()
        execute(backing, plan)
        after = check_backing(backing, backing.length, boot_id)
        return Repair(before=tuple(before), plan=plan, backup=backup, after=tuple(after))
    finally:
        backing.close()


# -- deciding ---------------------------------------------------------------------------------------------------------


def plan_repair(backing: Backing, length: int, boot_id: bytes) -> Plan:
    """Return the plan for the image on *backing*, *length* bytes long; an empty one if it is sound.

    Raises:
        BadMagicError, UnsupportedVersionError: as :func:`repair_image`.
    """
    header = salvage_header(backing, length)
    if header.read_only_compatible:
        message = (
            f"the image has features {header.read_only_compatible:#x} that this program does not know: "
            "it can only be read, not repaired"
        )
        raise UnsupportedVersionError(message)
    parts = (
        _plan_length(header, length),
        _plan_header(backing, header),
        _plan_faults(backing, header),
        _plan_zones(backing, header, boot_id),
    )
    return Plan(
        former_length=length,
        length=header.file_bytes,
        steps=tuple(step for part in parts for step in part.steps),
        done=tuple(text for part in parts for text in part.done),
        lost=tuple(text for part in parts for text in part.lost),
    )


def _plan_length(header: Header, length: int) -> _Part:
    if length > header.file_bytes:
        extra = human_bytes(length - header.file_bytes)
        return _Part(done=(f"what was beyond the end of the image was cut off: {extra}",))
    if length == header.file_bytes:
        return _Part()
    done = (f"the file was made longer again, from {length} to {header.file_bytes} bytes",)
    logs = header.section(SectionKind.COUNTERS)
    if length < logs.offset + logs.length:
        return _Part(done=done, lost=("refusals and counters, as far as they were cut off with the end of the file",))
    return _Part(done=done)


def _plan_header(backing: Backing, header: Header) -> _Part:
    blocks = [encode_header(header, copy) for copy in (0, 1)]
    offsets = [header.section(SectionKind.HEADER, copy).offset for copy in (0, 1)]
    wrong = [copy for copy in (0, 1) if backing.pread(BLOCK_BYTES, offsets[copy]) != blocks[copy]]
    return _Part(
        steps=tuple((offsets[copy], blocks[copy]) for copy in wrong),
        done=tuple(f"the {_COPY_NAMES[copy]} copy of the header was written anew" for copy in wrong),
    )


def _plan_faults(backing: Backing, header: Header) -> _Part:
    copies = read_copies(backing, header, SectionKind.FAULTS)
    good = [copy for copy in (0, 1) if decode_faults(copies[copy], header.seed) is not None]
    if good:
        # A copy of zeros beside a good one was cut off, or its first write was interrupted.
        wrong = [copy for copy in (0, 1) if copy not in good]
        right, is_empty = copies[good[0]], ""
    else:
        # Two copies of zeros are sound: no fault was ever injected.
        wrong = [copy for copy in (0, 1) if copies[copy].strip(b"\0")]
        right, is_empty = bytes(len(copies[0])), ", empty"
    return _Part(
        steps=tuple((header.section(SectionKind.FAULTS, copy).offset, right) for copy in wrong),
        done=tuple(f"the {_COPY_NAMES[copy]} copy of the fault table was written anew{is_empty}" for copy in wrong),
        lost=("the injected faults",) if len(wrong) == len(copies) else (),
    )


def _plan_zones(backing: Backing, header: Header, boot_id: bytes) -> _Part:
    zones = salvage_zones(backing, header, boot_id)
    if zones.is_sound:
        return _Part()
    words = pack_words(*zones.states)
    state = State(generation=zones.generation + 1, mode=Mode.CLEAN, boot_id=NO_BOOT, epoch=zones.epoch + 1)
    state_block = encode_state(state, header.seed)
    table = encode_table(words, state.epoch, header.seed)
    order = (zones.state_first, 1 - zones.state_first)
    return _Part(
        steps=(
            (header.section(SectionKind.LIVE).offset, encode_live(words)),
            *((header.section(SectionKind.STATE, copy).offset, state_block) for copy in order),
            *((header.section(SectionKind.TABLE, copy).offset, table) for copy in (0, 1)),
        ),
        done=(f"the zone states were written anew, from {zones.source}",),
        lost=zones.lost,
    )


# -- doing ------------------------------------------------------------------------------------------------------------


def execute(backing: Backing, plan: Plan) -> None:
    """Carry out *plan*. After an interruption at any point, a new plan has the same result.

    Raises:
        OSError: the host refuses.
    """
    # Blocks of an earlier process, on which the steps rely, may not be durable yet.
    backing.sync()
    if plan.length > plan.former_length:
        backing.resize(plan.length)
        backing.sync()
    for offset, data in plan.steps:
        backing.pwrite(data, offset)
        backing.sync()
    if plan.length < plan.former_length:
        backing.resize(plan.length)
        backing.sync()


# -- backup -----------------------------------------------------------------------------------------------------------


def backup_lines(backing: Backing, plan: Plan) -> Iterator[str]:
    """Yield the present content of the file wherever *plan* changes it, in the format that ``xxd -r`` reads."""
    yield f"# zonefs-emu check --repair; the file was {plan.former_length} bytes long\n"
    for offset, data in plan.steps:
        # The file is read block by block, because few blocks differ and tables can be long.
        for at in range(0, len(data), BLOCK_BYTES):
            new = data[at : at + BLOCK_BYTES]
            yield from _rows(offset + at, backing.pread(len(new), offset + at), new)
    if plan.former_length > plan.length:
        for offset, run in backing.extents(plan.length, plan.former_length):
            for at in range(offset, offset + run, _CHUNK_BYTES):
                yield from _rows(at, backing.pread(min(_CHUNK_BYTES, offset + run - at), at), b"")


def _rows(offset: int, former: bytes, new: bytes) -> Iterator[str]:
    """Yield the rows of *former* that differ from *new*."""
    if former == new[: len(former)]:
        return
    for at in range(0, len(former), _ROW_BYTES):
        row = former[at : at + _ROW_BYTES]
        if row != new[at : at + _ROW_BYTES]:
            yield f"{offset + at:08x}: {row.hex(' ', -2)}\n"


def _keep(path: Path, lines: Iterator[str]) -> Path:
    """Write *lines* into a new, durable file beside *path*, whose name ends in the next free number."""
    numbers = itertools.count(1)
    while (backup := path.with_name(f"{path.name}.backup-{next(numbers)}")).exists():
        pass
    with backup.open("x", encoding="ascii") as file:
        try:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            backup.unlink()
            raise
    return backup
