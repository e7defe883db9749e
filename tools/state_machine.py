#!/usr/bin/env python3
"""Print docs/state-machine.md, generated from the transition tables; a test asserts that the page is up to date.

python tools/state_machine.py > docs/state-machine.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import (
    DIALECTS,
    MANAGEMENT,
    ZONE_OPERATIONS,
    Dialect,
    Operation,
    after_power_cycle,
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

Every sequential zone is in one of seven conditions; conventional zones are NOT_WP for as long as they work. What a
command does to a zone is decided by one table, and each standard that a front-end speaks (its *dialect*) has its own.
The words are those of the [glossary](glossary.md), the refusals those of the [errors](errors.md).

## The way of a zone

As all dialects have it; the other cells are in the tables.
"""

NOTES = """\
## What holds in every dialect

* A write or append that reaches the capacity makes the zone FULL, whatever the cell says. One of no sectors is checked
  like any other, but opens nothing.
* A cell that newly makes a zone open or active needs a free resource. `max_active_zones` is looked at first, so where
  both limits are hit the answer is ACTIVE_RESOURCE. If only `max_open_zones` is hit, the implicitly open zone that was
  written least recently is closed to make room; if there is none, the answer is OPEN_RESOURCE. Explicitly open zones
  are never closed for another one.
* A command on a range of zones changes all of them or, if one of them refuses, none. The zone with the lowest number
  that refuses gives the reason.
* Reading changes nothing. Beyond the write pointer, and between capacity and size, a zone reads as zeros; so does a
  FULL zone beyond what was written before it was finished.
* READONLY and OFFLINE zones get there, and back, only as a failing and a repaired medium would (`set-cond`).
  Conventional zones can be READONLY and OFFLINE too.

## The order of checks

One request can break several rules; the first of these that applies is the answer.

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
        return f"CLOSED, or {dialect.closed_at_start.name} without data"
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
    conds = list(Condition)
    yield from rows(
        ["", *(f"`{op.name}`" for op in ZONE_OPERATIONS)],
        [[cond.name, *(cell(dialect, op, cond) for op in ZONE_OPERATIONS)] for cond in conds],
    )
    yield "The ALL forms pass over what is not named here; OPEN ALL needs the resources for all of them, or opens none:"
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
        yield "* Closing an explicitly open zone without data gives CLOSED: it keeps its active resource."
    if dialect.finish_needs_open:
        yield (
            "* Finishing an EMPTY or CLOSED zone passes through open: it needs an open resource for a moment, and may "
            "close an implicitly open zone for it or end in OPEN_RESOURCE. `FINISH ALL` does not."
        )
    yield ""


def after_power() -> Iterator[str]:
    """Yield the section on power cuts."""
    yield "## Power"
    yield ""
    yield "What a zone is after power was cut and restored:"
    yield ""
    changed = [cond for cond in Condition if cond in ACTIVE_CONDITIONS]
    yield from rows(
        ["", "with data", "without data"],
        [[cond.name, after_power_cycle(cond, 1).name, after_power_cycle(cond, 0).name] for cond in changed],
    )
    yield "All other conditions last."


def page() -> Iterator[str]:
    """Yield the page in pieces; a newline belongs between them."""
    yield HEAD
    yield from drawing()
    yield NOTES
    for dialect in DIALECTS:
        yield from of_dialect(dialect)
    yield from after_power()


if __name__ == "__main__":
    print("\n".join(page()))
