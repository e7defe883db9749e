"""``check``: look an image over, and repair it if asked to."""

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import image_argument, json_option, say, say_json
from zonefs_emu.daemon.framing import Json
from zonefs_emu.persist.check import Finding, Severity, check_image, lasting
from zonefs_emu.persist.repair import Repair, repair_image

#: A held image changes during the check, so only findings that are still there a moment later count.
_ROUNDS: Final = 3
_PAUSE_S: Final = 0.05


@click.command()
@image_argument
@click.option("--repair", is_flag=True, help="Save what can be saved, with a backup of all that is changed.")
@json_option
def check(
    *,
    image: Path,
    repair: bool,
    as_json: bool,
) -> None:
    """Check IMG and list what is wrong with it; nothing is changed. Exits with 1 if there is an error.

    \b
    Examples:
      zonefs-emu check small.img
      zonefs-emu check --repair small.img

    --json also names the section of the file, which of its two copies, and the zone, where there is one.

    An error means that the image cannot be opened. A warning means that one of two copies of a structure is
    damaged and the other one is used. An info does not mean damage.

    With --repair, reports what was done and what is lost, and exits with 1 if the image still cannot be opened.
    No process may use the image meanwhile. The bytes that are changed are kept in IMG.backup-1 (or the next free
    number), in the format of xxd -r.
    """
    if repair:
        repaired = repair_image(image)
        if as_json:
            say_json(_record(image, repaired))
        else:
            _say(image, repaired)
        findings = list(repaired.after)
    else:
        findings = _look(image)
        if as_json:
            say_json({"image": str(image), "findings": _records(findings)})
        else:
            for finding in findings:
                say(_line(finding))
            if not findings:
                say(f"{image}: nothing found")
    if any(finding.severity is Severity.ERROR for finding in findings):
        click.get_current_context().exit(1)


def _look(image: Path) -> list[Finding]:
    findings = check_image(image)
    if not findings:
        return []
    rounds = [findings]
    while len(rounds) < _ROUNDS:
        time.sleep(_PAUSE_S)
        rounds.append(check_image(image))
    return lasting(rounds)


def _say(image: Path, repaired: Repair) -> None:
    for finding in repaired.before:
        say(_line(finding))
    if repaired.backup is None:
        say(f"{image}: nothing to repair")
        return
    for done in repaired.plan.done:
        say(f"repaired: {done}")
    for lost in repaired.plan.lost:
        say(f"lost: {lost}")
    say(f"backup: {repaired.backup}; to put it back: {_undo(image, repaired)}")
    for finding in repaired.after:
        say(f"afterwards: {_line(finding)}")


def _undo(image: Path, repaired: Repair) -> str:
    """Return the command that makes the image what it was."""
    command = f"xxd -r {shlex.quote(str(repaired.backup))} {shlex.quote(str(image))}"
    if repaired.plan.length != repaired.plan.former_length:
        command += f" && truncate -s {repaired.plan.former_length} {shlex.quote(str(image))}"
    return command


def _record(image: Path, repaired: Repair) -> dict[str, Json]:
    return {
        "image": str(image),
        "findings": _records(repaired.before),
        "repaired": list(repaired.plan.done),
        "lost": list(repaired.plan.lost),
        "backup": None if repaired.backup is None else str(repaired.backup),
        "undo": None if repaired.backup is None else _undo(image, repaired),
        "afterwards": _records(repaired.after),
    }


def _records(findings: Iterable[Finding]) -> list[Json]:
    return [
        {
            "severity": finding.severity.value,
            "offset": finding.offset,
            "section": None if finding.section is None else finding.section.name.lower(),
            "copy": finding.copy,
            "zone_no": finding.zone_no,
            "message": finding.message,
        }
        for finding in findings
    ]


def _line(finding: Finding) -> str:
    where = "" if finding.offset is None else f" at byte {finding.offset}"
    return f"{finding.severity.value}{where}: {finding.message}"
