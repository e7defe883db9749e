#!/usr/bin/env python3
"""Print docs/state-machine.md, generated from the transition tables; a test asserts that the page is up to date.

python tools/state_machine.py > docs/state-machine.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import (
    APPEND_TO_ZRWA,
    DIALECTS,
    EXCURSION,
    MANAGEMENT,
    SET_COND,
    ZONE_OPERATIONS,
    Dialect,
    Operation,
    after_power_cycle,
    flushed_by_write,
)
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition

TITLES = {
    "virtio": "virtio (virtio-blk, and zonefs on top of it)",
    "zbc": "ZBC (SCSI)",
    "zns": "ZNS (NVMe)",
}

HEAD = """\
# The zone state machine

<!-- Generated from zonefs_emu/model/transitions.py by tools/state_machine.py: edit those, not this page. -->

Every sequential zone is in one of seven conditions. A conventional zone is NOT_WP as long as it works. One table
decides what a command does to a zone. Each standard that a front-end implements (its *dialect*) has a table of its own.
The [glossary](glossary.md) explains the words, and [errors](errors.md) the refusals.

## The transitions that all dialects share

The tables below have the other cells.
"""

NOTES = """\
## What holds in every dialect

* A write or append that reaches the capacity makes the zone FULL, whatever the cell says. A write of no sectors passes
  the same checks and opens nothing.
* A transition that makes a zone open or active needs a free resource. `max_active_zones` is checked first, so the
  answer is ACTIVE_RESOURCE if both limits are reached. If only `max_open_zones` is reached, the implicitly open zone
  that was written least recently is closed to make room. The answer is OPEN_RESOURCE if there is no such zone. An
  explicitly open zone is never closed to make room.
* A command on a range of zones changes all of them, or none if one of them refuses. The reason is that of the refusing
  zone with the lowest number.
* A read changes nothing. A zone reads as zeros beyond the write pointer and between capacity and size. A FULL zone
  reads as zeros beyond what was written before it was finished.
* Only `set-cond` and injected faults make a zone READONLY or OFFLINE, as a failing medium would, and only `set-cond`
  brings it back ([below](#by-hand)). Conventional zones can be READONLY and OFFLINE too.

## The order of checks

One request can break several rules. The answer is the first of these that applies:

| request | order |
|---|---|
| read | OUT_OF_RANGE, UNALIGNED, then zone by zone ZONE_OFFLINE, READ_BOUNDARY |
| write to a sequential zone | OUT_OF_RANGE, the table, ZONE_BOUNDARY, UNALIGNED_WP, ACTIVE_RESOURCE, OPEN_RESOURCE |
| write to conventional zones | OUT_OF_RANGE, the table, UNALIGNED, then by zone ZONE_BOUNDARY (sequential), the table |
| append | OUT_OF_RANGE, NOT_ZONE_START, the table, APPEND_LIMIT, ZONE_BOUNDARY, then as a write |
| open, close, finish, reset | OUT_OF_RANGE, NOT_ZONE_START, the table zone by zone, ACTIVE_RESOURCE, OPEN_RESOURCE |
"""


def cell(dialect: Dialect, operation: Operation, cond: Condition) -> str:
    """Return one cell in words; refusals in italics."""
    outcome = dialect.table[operation][cond]
    if isinstance(outcome, Status):
        return f"*{outcome.name}*"
    if outcome == cond:
        return "same"
    if outcome is Condition.CLOSED and cond is Condition.EXP_OPEN and dialect.closed_at_start is not Condition.CLOSED:
        return "CLOSED¹"
    return outcome.name


def rows(header: list[str], lines: list[list[str]]) -> Iterator[str]:
    """Yield a table in Markdown."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    yield from ("| " + " | ".join(line) + " |" for line in lines)
    yield ""


def drawing() -> Iterator[str]:
    """Yield a mermaid diagram of the transitions that all dialects share."""
    common: dict[tuple[Condition, Condition], list[str]] = {}
    for operation in ZONE_OPERATIONS:
        for cond in Condition:
            outcomes = {dialect.table[operation][cond] for dialect in DIALECTS}
            if len(outcomes) == 1 and isinstance(outcome := outcomes.pop(), Condition) and outcome != cond:
                common.setdefault((cond, outcome), []).append(operation.name.lower())
    for cond in sorted(OPEN_CONDITIONS):
        common.setdefault((cond, Condition.FULL), []).append("write up to the capacity")
    common.setdefault((Condition.IMP_OPEN, Condition.CLOSED), []).append("make room")
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> EMPTY"
    for (source, target), reasons in sorted(common.items()):
        yield f"    {source.name} --> {target.name}: {', '.join(reasons)}"
    yield "```"
    yield ""


def of_dialect(dialect: Dialect) -> Iterator[str]:
    """Yield the section of *dialect*: its table, its ALL forms, and what else it says differently."""
    yield f"## {TITLES[dialect.name]}"
    yield ""
    conds = [cond for cond in Condition if cond is not Condition.NOT_WP]
    yield from rows(
        ["", *(cond.name for cond in conds)],
        [[f"`{op.name}`", *(cell(dialect, op, cond) for cond in conds)] for op in ZONE_OPERATIONS],
    )
    conventional: dict[str, list[str]] = {}
    for op in dialect.table:
        conventional.setdefault(cell(dialect, op, Condition.NOT_WP), []).append(f"`{op.name}`")
    # Not a column: the rows would be too wide.
    parts = (f"{', '.join(names)} → {outcome}" for outcome, names in conventional.items())
    yield fill(f"NOT_WP: {'; '.join(parts)}.", 120)
    yield ""
    if dialect.closed_at_start is not Condition.CLOSED:
        yield f"¹ {dialect.closed_at_start.name} if the zone holds no data."
        yield ""
    yield "The ALL forms change zones in these conditions and skip all others. OPEN ALL opens all of them or, if the"
    yield "resources do not suffice, none:"
    yield ""
    for operation in MANAGEMENT:
        changes: dict[Condition, list[str]] = {}
        for cond, target in sorted(dialect.all_zones[operation].items()):
            changes.setdefault(target, []).append(cond.name)
        text = "; ".join(f"{', '.join(sources)} → {target.name}" for target, sources in changes.items())
        yield f"* `{operation.name} ALL`: {text}"
    yield ""
    crossing = (
        "may cross the boundaries of sequential zones" if dialect.read_across else "must stay in a sequential zone"
    )
    yield f"* One read {crossing}; it may always cross those between conventional zones."
    if dialect.closed_at_start is Condition.CLOSED:
        yield "* Closing an explicitly open zone without data gives CLOSED. The zone keeps its active resource."
    for operation in dialect.table:
        if operation not in ZONE_OPERATIONS:
            yield own_row(dialect, operation)
    if Operation.SET_EXTENSION in dialect.table:
        yield "* A zone keeps its descriptor extension until a reset, or until it goes OFFLINE. Closing and power cuts"
        yield "  leave it."
    if dialect.finish_needs_open:
        yield (
            "* Finishing an EMPTY or CLOSED zone needs an open resource for a moment. It may close an implicitly open\n"
            "  zone to get one, or be refused with OPEN_RESOURCE. `FINISH ALL` needs none."
        )
    if dialect.has_zrwa:
        yield from of_areas()
    else:
        yield ""


def own_row(dialect: Dialect, operation: Operation) -> str:
    """Return the row of an *operation* that only *dialect* has, in a line: a column for it would be too wide."""
    found: dict[str, list[str]] = {}
    for cond in Condition:
        if cond is not Condition.NOT_WP:
            found.setdefault(cell(dialect, operation, cond), []).append(cond.name)
    parts = (f"{', '.join(conds)} → {outcome}" for outcome, conds in found.items())
    return f"* `{operation.name}`: {'; '.join(parts)}."


def of_areas() -> Iterator[str]:
    """Yield the part on zone random write areas."""
    size, granularity, wp = 16, 4, 100
    bullets = (
        (
            "A zone with a zone random write area (`ALLOCATE_ZRWA`) has it as long as it is active: closing and power "
            "cuts leave it. What finishes or fails the zone flushes the whole area. All other dialects write and read "
            "the zone as if it had no area: at the write pointer, which moves."
        ),
        (
            f"An `APPEND` to such a zone is refused: *{APPEND_TO_ZRWA.name}*. A `WRITE` of sectors [from, to) moves "
            f"the write pointer as these examples show, for an area of {size} sectors, a granularity of {granularity} "
            f"and a write pointer at {wp}. The area is [{wp}, {wp + size}):"
        ),
    )
    yield from (fill(text, 120, initial_indent="* ", subsequent_indent="  ") for text in bullets)
    yield ""
    examples = [(wp, wp + 1), (wp + 8, wp + 16), (wp, wp + 16), (wp + 16, wp + 17), (wp + 15, wp + 21),
                (wp + 31, wp + 32), (wp + 31, wp + 33), (wp - 1, wp + 1)]  # fmt: skip
    lines = []
    for first, end in examples:
        moved = flushed_by_write(first, end, wp=wp, zrwa_size=size, granularity=granularity)
        outcome = f"*{moved.name}*" if isinstance(moved, Status) else f"{wp + moved}"
        lines.append([f"[{first}, {end})", outcome])
    yield from rows(["write", "write pointer"], lines)


def by_hand() -> Iterator[str]:
    """Yield the section on `set-cond`."""
    yield "## By hand"
    yield ""
    yield "`set-cond` stands for a medium that fails or is repaired; it is the same in every dialect:"
    yield ""
    lines = []
    for asked in Condition:
        line = [asked.name]
        for of_type in SET_COND.values():
            (outcome,) = set(of_type[asked].values())
            line.append(f"*{outcome.name}*" if isinstance(outcome, Status) else outcome.name)
        lines.append(line)
    yield from rows(["asked for", *(f"a {zone_type.name} zone" for zone_type in SET_COND)], lines)
    yield "CLOSED needs data and room for more (or BAD_TRANSITION), and an active resource. EMPTY forgets the data."
    yield ""


def by_itself() -> Iterator[str]:
    """Yield the section on zone active excursions."""
    yield "## By the drive itself"
    yield ""
    finished = [cond for cond in Condition if isinstance(EXCURSION[cond], Condition)]
    (target,) = {EXCURSION[cond] for cond in finished}
    sources = f"{', '.join(cond.name for cond in finished[:-1])} or {finished[-1].name}"
    text = (
        f"A drive with [zone active excursions](nvme.md#zones-that-the-drive-finishes) makes a zone {target.name} that "
        f"is {sources}, when an injected fault says so. It is the same in every dialect."
    )
    yield fill(text, 120)
    yield ""


def after_power() -> Iterator[str]:
    """Yield the section on power cuts."""
    yield "## Power"
    yield ""
    yield "The condition of a zone after power was cut and restored:"
    yield ""
    changed = [cond for cond in Condition if cond in ACTIVE_CONDITIONS]
    yield from rows(
        ["", "with data", "without data"],
        [[cond.name, after_power_cycle(cond, 1).name, after_power_cycle(cond, 0).name] for cond in changed],
    )
    yield "A zone with a descriptor extension or a random write area comes back CLOSED in any case. All other"
    yield "conditions stay as they are."


def page() -> Iterator[str]:
    """Yield the page in pieces; a newline belongs between them."""
    yield HEAD
    yield from drawing()
    yield NOTES
    for dialect in DIALECTS:
        yield from of_dialect(dialect)
    yield from by_hand()
    yield from by_itself()
    yield from after_power()


if __name__ == "__main__":
    print("\n".join(page()))
