"""The table of verbs. The module of a verb is imported only when that verb is used.

A process runs one verb. Importing everything that other verbs need (an event loop, all transports and front-ends) would
take most of the time of a short one. Help, completion and suggestions list verbs from the table alone.
"""

import importlib
from typing import Final

import click


class Verb(click.Command):
    """A verb in lists: its *name* and its *summary*. *place* is the "MODULE:ATTRIBUTE" of the command."""

    def __init__(self, name: str, place: str, summary: str) -> None:
        super().__init__(name, short_help=summary)
        self._place = place

    def load(self) -> click.Command:
        """Import and return the command itself."""
        module, _, attribute = self._place.partition(":")
        command = getattr(importlib.import_module(f"zonefs_emu.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


VERBS: Final = tuple(
    Verb(*row)
    for row in (
        ("create", "create:create", "Create an image."),
        ("mkfs", "mkfs:mkfs", "Make a zonefs, as mkzonefs does."),
        ("mount", "mount:mount", "Mount the zonefs on an image."),
        ("umount", "umount:umount", "Unmount a zonefs and wait until its image is free."),
        ("serve", "serve:serve", "Offer images to virtual machines and NVMe hosts."),
        ("attach", "attach:attach", "Attach an image as a zoned block device of this host."),
        ("detach", "detach:detach", "Detach a device and wait until its image is free."),
        ("report", "report:report", "List zones, as a table or as blkzone, zbd or nvme print them."),
        ("map", "map:map_", "Draw all zones: condition and fill."),
        ("open", "manage:open_", "Open zones explicitly."),
        ("close", "manage:close", "Close open zones."),
        ("finish", "manage:finish", "Make zones full."),
        ("reset", "manage:reset", "Reset write pointers: forget the data of zones."),
        ("read", "read:read", "Write data of a zone to stdout."),
        ("write", "write:write", "Write stdin into a zone."),
        ("append", "append:append", "Append stdin to a zone and print where it landed."),
        ("set-cond", "set_cond:set_cond", "Put a zone into a condition: readonly, offline, ..."),
        ("info", "info:info", "Show what an image is and which process uses it."),
        ("stats", "stats:stats", "Show counters of the device and its front-ends."),
        ("watch", "watch:watch", "Show the zones, the limits and the rates, live."),
        ("why", "why:why", "Explain the last refused operations."),
        ("inject", "inject:inject", "Make operations fail, now or later; list and remove faults."),
        ("crash", "crash:crash", "Write the images that a power cut could have left."),
        ("replay", "replay:replay", "Execute an operation log of mount or serve --record."),
        ("dump", "dump:dump", "Copy an image, even while it is used, to a file or a pipe."),
        ("restore", "restore:restore", "Make an image from a dump."),
        ("snapshot", "snapshot:snapshot", "Keep the state of an image under a name."),
        ("rewind", "rewind:rewind", "Go back to a snapshot."),
        ("check", "check:check", "Check an image, and repair it."),
        ("doctor", "doctor:doctor", "Show which ways in work on this machine."),
        ("simulate", "simulate:simulate", "Simulate how fast a drive would be."),
        ("fit", "fit:fit", "Make a timing preset from measurements of a drive."),
        ("power-cycle", "power_cycle:power_cycle", "Cut and restore the drive's power."),
    )
)
