"""Make a damaged image one that opens: from what salvage.py reads of it, after a backup of what is changed.

Invariants:

* Nothing is written where the device's data lie: at most what a file has beyond its end is cut off.
* All decisions are made before anything is written, and the backup is durable by then.
* Whatever interrupts a repair, it can be run again and comes to the same end: of the zone states, the live table is
  written first, then a state block that says CLEAN after a checkpoint that is not there yet, for which the live table
  stands in, and the checkpoint last.

docs/image-format.md says what is saved from where, and how the backup is put back.
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
    """What is to be changed.

    The file, *former_length* bytes long, gets *length*; then come *steps*, each of which is durable before the next.
    *done* and *lost* say in words what that changes, and what cannot be saved.
    """

    former_length: int
    length: int
    steps: tuple[Write, ...]
    done: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What a repair found *before*, did, lost, and finds *after*; *backup* is None if nothing had to be done."""

    before: tuple[Finding, ...]
    plan: Plan
    backup: Path | None
    after: tuple[Finding, ...]


def repair_image(path: Path) -> Repair:
    """Repair the image *path*, which nothing else may use; what is changed is kept in a new file beside it.

    Raises:
        ImageBusyError: something else uses it.
        BadMagicError: no header can be had. UnsupportedVersionError: the image was made by a later version.
        OSError: the host refuses, or has no room for the backup: nothing is changed then.
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
    """Return what is to be done about the image on *backing*, *length* bytes long; nothing if it is sound.

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
    steps: list[Write] = []
    done: list[str] = []
    lost: list[str] = []
    if length < header.file_bytes:
        done.append(f"the file was made longer again, from {length} to {header.file_bytes} bytes")
        logs = header.section(SectionKind.COUNTERS)
        if length < logs.offset + logs.length:
            lost.append("refusals and counters, as far as they were cut off with the end of the file")
    elif length > header.file_bytes:
        done.append(f"what was beyond the end of the image was cut off: {human_bytes(length - header.file_bytes)}")
    for plan in (_plan_header, _plan_faults):
        plan(backing, header, steps, done, lost)
    zones = salvage_zones(backing, header, boot_id)
    if not zones.is_sound:
        done.append(f"the zone states were written anew, from {zones.source}")
        lost.extend(zones.lost)
        words = pack_words(zones.conds, zones.wps)
        state = State(generation=zones.generation + 1, mode=Mode.CLEAN, boot_id=NO_BOOT, epoch=zones.epoch + 1)
        state_block = encode_state(state, header.seed)
        table = encode_table(words, state.epoch, header.seed)
        steps.append((header.section(SectionKind.LIVE).offset, encode_live(words)))
        order = (zones.state_first, 1 - zones.state_first)
        steps += [(header.section(SectionKind.STATE, copy).offset, state_block) for copy in order]
        steps += [(header.section(SectionKind.TABLE, copy).offset, table) for copy in (0, 1)]
    return Plan(former_length=length, length=header.file_bytes, steps=tuple(steps), done=tuple(done), lost=tuple(lost))


def _plan_header(backing: Backing, header: Header, steps: list[Write], done: list[str], _lost: list[str]) -> None:
    for copy in (0, 1):
        section = header.section(SectionKind.HEADER, copy)
        block = encode_header(header, copy)
        if backing.pread(BLOCK_BYTES, section.offset) != block:
            steps.append((section.offset, block))
            done.append(f"the {_COPY_NAMES[copy]} copy of the header was written anew")


def _plan_faults(backing: Backing, header: Header, steps: list[Write], done: list[str], lost: list[str]) -> None:
    sections = [header.section(SectionKind.FAULTS, copy) for copy in (0, 1)]
    copies = read_copies(backing, header, SectionKind.FAULTS)
    decoded = [decode_faults(content, header.seed) for content in copies]
    damaged = [copy for copy in (0, 1) if decoded[copy] is None and copies[copy].strip(b"\0")]
    good = [copy for copy in (0, 1) if decoded[copy] is not None]
    if good:
        # A copy of zeros beside a good one was cut off, or its first writing was interrupted.
        damaged = [copy for copy in (0, 1) if copy not in good]
    elif len(damaged) == len(copies):
        lost.append("the injected faults")
    right = copies[good[0]] if good else bytes(sections[0].length)
    for copy in damaged:
        steps.append((sections[copy].offset, right))
        done.append(f"the {_COPY_NAMES[copy]} copy of the fault table was written anew{'' if good else ', empty'}")


# -- doing ------------------------------------------------------------------------------------------------------------


def execute(backing: Backing, plan: Plan) -> None:
    """Do what *plan* says. Interrupted at any point, it leaves an image for which a new plan comes to the same end.

    Raises:
        OSError: the host refuses.
    """
    # What an earlier process wrote may not be durable yet, and what follows relies on it.
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
    """Yield, as ``xxd -r`` reads it, what is in the file now wherever *plan* changes it."""
    yield f"# zonefs-emu check --repair; the file was {plan.former_length} bytes long\n"
    for offset, data in plan.steps:
        # A block at a time: few differ, and tables can be long.
        for at in range(0, len(data), BLOCK_BYTES):
            new = data[at : at + BLOCK_BYTES]
            yield from _rows(offset + at, backing.pread(len(new), offset + at), new)
    if plan.former_length > plan.length:
        for offset, run in backing.extents(plan.length, plan.former_length):
            for at in range(offset, offset + run, _CHUNK_BYTES):
                yield from _rows(at, backing.pread(min(_CHUNK_BYTES, offset + run - at), at), b"")


def _rows(offset: int, former: bytes, new: bytes) -> Iterator[str]:
    """Yield the rows of *former* that are others than in *new*."""
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
