#!/usr/bin/env python3
"""Print docs/commands.md: what every verb says of itself, so that the manual cannot differ from the program.

    PYTHONPATH=. .venv/bin/python tools/manual.py >docs/commands.md

tests/test_tidy.py compares the two.
"""

import sys
from collections.abc import Iterator
from typing import Final

import click

from zonefs_emu.cli.main import cli
from zonefs_emu.cli.verb_table import Verb

PROGRAM: Final = "zonefs-emu"
_WIDTH: Final = 100
_INTRODUCTION: Final = f"""# Commands

What `{PROGRAM} VERB --help` prints, for every verb; made by `tools/manual.py`.
"""


def verbs(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield (what one types, command) for every command of *group* and of the groups in it, by name."""
    for name, listed in sorted(group.commands.items()):
        command = listed.load() if isinstance(listed, Verb) else listed
        if isinstance(command, click.Group):
            yield from verbs(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def help_text(name: str, command: click.Command) -> str:
    """Return what ``zonefs-emu NAME --help`` prints, at a width that does not depend on a terminal."""
    context = click.Context(command, info_name=f"{PROGRAM} {name}".strip(), terminal_width=_WIDTH)
    context.help_option_names = ["-h", "--help"]
    return command.get_help(context)


def manual() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION, f"```\n{help_text('', cli)}\n```\n"]
    parts += [f"## {name}\n\n```\n{help_text(name, command)}\n```\n" for name, command in verbs(cli)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(manual())
