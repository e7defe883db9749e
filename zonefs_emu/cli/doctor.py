"""``doctor``: which ways in work on this machine, and what repairs the others."""

from pathlib import Path

import click

from zonefs_emu.cli.common import FILE, json_option, say, say_json
from zonefs_emu.cli.versions import versions
from zonefs_emu.front_ends.ways_in import WAYS, examine


@click.command()
@click.argument("names", metavar="[WAY]...", nargs=-1)
@click.option("--directory", type=FILE, metavar="DIR", default=".", help="Directory for images. [default: here]")
@json_option
def doctor(*, names: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Show which ways in work on this machine, and for each of the others the reason and the command that repairs it.

    \b
    Examples:
      zonefs-emu doctor
      zonefs-emu doctor mount ublk && zonefs-emu attach small.img

    The ways are images, mount, allow_other, fstab, vhost-user-scsi, vhost-user-blk, vfio-user, nvme-tcp, ublk and
    vduse; without names, all are tried. Nothing is changed. Exits with 1 if a named way does not work; without names,
    if DIR cannot hold images, which every way needs.
    """
    findings = examine(names or tuple(WAYS), directory)
    if as_json:
        say_json(
            {
                "versions": {**versions()},
                "ways": [
                    {"name": each.name, "works": each.works, "reason": each.reason, "remedy": each.remedy or None}
                    for each in findings
                ],
            }
        )
    else:
        say(", ".join(f"{name} {version}" for name, version in versions().items()))
        for each in findings:
            remedy = f"; try: {each.remedy}" if each.remedy else ""
            say(f"{each.name:<16} {'yes' if each.works else 'no':<4} {each.reason}{remedy}")
    if not all(each.works for each in findings if names or each.name == "images"):
        click.get_current_context().exit(1)
