"""``check``: look an image over without changing it."""

import time
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import image_argument, json_option, say_json
from zonefs_emu.daemon.framing import Json
from zonefs_emu.persist.check import Finding, Severity, check_image, lasting

#: A held image is written to while we look: what is wrong is still wrong a moment later.
_ROUNDS: Final = 3
_PAUSE_S: Final = 0.05


@click.command(short_help="Look an image over without changing it.")
@image_argument
@json_option
def check(
    *,
    image: Path,
    as_json: bool,
) -> None:
    """Look IMG over and list what is wrong with it; nothing is changed. Exits with 1 if there is an error.

    \b
    Example:
      zonefs-emu check small.img

    An error means that the image cannot be opened; a warning that one of two copies of something is damaged and the
    other one serves; with info nothing is wrong.
    """
    findings = check_image(image)
    if findings:
        rounds = [findings]
        while len(rounds) < _ROUNDS:
            time.sleep(_PAUSE_S)
            rounds.append(check_image(image))
        findings = lasting(rounds)
    if as_json:
        records: list[Json] = [
            {"severity": finding.severity.value, "offset": finding.offset, "message": finding.message}
            for finding in findings
        ]
        say_json({"image": str(image), "findings": records})
    else:
        for finding in findings:
            click.echo(_line(finding))
        if not findings:
            click.echo(f"{image}: nothing found")
    if any(finding.severity is Severity.ERROR for finding in findings):
        click.get_current_context().exit(1)


def _line(finding: Finding) -> str:
    where = "" if finding.offset is None else f" at byte {finding.offset}"
    return f"{finding.severity.value}{where}: {finding.message}"
