#!/usr/bin/env python3
r"""Write share/: manual pages and shell completion, so that they cannot differ from the program.

    PYTHONPATH=. .venv/bin/python tools/share.py

A wheel installs the files of share/ (pyproject.toml, data-files), and building it needs no import of the program.
tests/test_share.py compares them with what this makes. Completion is click's own. The manual pages are made here and
not by click-man 0.6, which escapes no backslash and no leading dot, shows click's \b marks, and fills examples like a
paragraph.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from tools.manual import PROGRAM, verbs
from zonefs_emu import __version__
from zonefs_emu.cli.main import cli

ROOT: Final = Path(__file__).resolve().parent.parent
_COMPLETIONS: Final[Mapping[str, type[ShellComplete]]] = {
    f"share/bash-completion/completions/{PROGRAM}": BashComplete,
    f"share/zsh/site-functions/_{PROGRAM}": ZshComplete,
    f"share/fish/vendor_completions.d/{PROGRAM}.fish": FishComplete,
}
_HELPER_PAGE: Final = rf""".TH MOUNT.FUSE.ZONEFS\-EMU 8 "" "{PROGRAM} {__version__}"
.SH NAME
mount.fuse.zonefs\-emu \- mount the zonefs on an emulated drive
.SH SYNOPSIS
.B mount \-t fuse.zonefs\-emu
IMG DIR [\-o OPTIONS]
.SH DESCRIPTION
mount(8) runs this program for the type fuse.zonefs\-emu, from the command line and for a line in fstab:
.PP
.nf
/var/lib/zones.img /mnt/zones fuse.zonefs\-emu nofail,errors=repair 0 0
.fi
.PP
It does what zonefs\-emu mount does and takes the same options.
The program must be found in /sbin, which is where mount(8) looks.
.PP
Options: \-o OPTIONS; \-f (nothing is mounted), \-n, \-s, \-v and \-t TYPE are accepted.
Exit status: 1 for a wrong command line, 32 for a mount that failed.
.SH SEE ALSO
.BR zonefs\-emu\-mount (1),
.BR mount (8)
"""
_VARIABLE: Final = "_ZONEFS_EMU_COMPLETE"


def files() -> Iterator[tuple[str, str]]:
    """Yield (path below the checkout, content) of all files of share/."""
    for path, shell in _COMPLETIONS.items():
        yield path, shell(cli, {}, PROGRAM, _VARIABLE).source().strip() + "\n"
    yield "share/man/man8/mount.fuse.zonefs-emu.8", _HELPER_PAGE
    commands = dict(verbs(cli))
    summaries = {name: str(cli.commands[name].short_help) for name in commands}
    pages = [f".TP\n.BR {PROGRAM}-{_roff(name)} (1)\n{_roff(summary)}" for name, summary in summaries.items()]
    yield _page(PROGRAM, cli, "zoned storage without the hardware", [".SH COMMANDS", *pages])
    for name, command in commands.items():
        summary = summaries[name].rstrip(".")
        see_also = [".SH SEE ALSO", f".BR {PROGRAM} (1)"]
        yield _page(f"{PROGRAM} {name}", command, summary[0].lower() + summary[1:], see_also)


def _page(typed: str, command: click.Command, summary: str, more: list[str]) -> tuple[str, str]:
    """Return (path, content) of the manual page of *command*, which is *typed*; *more* ends it."""
    context = click.Context(command, info_name=typed, help_option_names=["-h", "--help"])
    name = typed.replace(" ", "-")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f'.TH {_roff(name.upper())} 1 "" "{PROGRAM} {__version__}"', ".SH NAME"]
    lines += [
        f"{_roff(name)} \\- {_roff(summary)}",
        ".SH SYNOPSIS",
        f".B {_roff(typed)}",
        _roff(usage),
        ".SH DESCRIPTION",
    ]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        # \b is click's mark of a paragraph whose lines stay as they are.
        kept = paragraph.removeprefix("\b\n")
        lines += [".PP", *([".nf"] if kept != paragraph else []), _roff(kept), *([".fi"] if kept != paragraph else [])]
    lines.append(".SH OPTIONS")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        # An argument is in the synopsis already, and most have nothing more to say.
        if record is not None and record[1]:
            lines += [".TP", f".B {_roff(record[0])}", _roff(record[1])]
    return f"share/man/man1/{name}.1", "\n".join([*lines, *more]) + "\n"


def _roff(text: str) -> str:
    """Return *text* for roff: backslashes and hyphens as such, and no line that would be a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    for path, content in files():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(content)
