"""What a short command costs: the modules that its process imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zonefs_emu.cli.verb_table import VERBS

#: What a short command does not need, and would spend most of its time on.
HEAVY = {
    "asyncio", "hypothesis", "importlib.metadata", "pyfuse3", "trio",
    "zonefs_emu.daemon.fault_verbs", "zonefs_emu.device.powercut", "zonefs_emu.front_ends.answers",
    "zonefs_emu.front_ends.block_device", "zonefs_emu.front_ends.mkfs", "zonefs_emu.front_ends.vhost_user",
    "zonefs_emu.front_ends.zonefs",
    "zonefs_emu.fs", "zonefs_emu.scsi", "zonefs_emu.ublk", "zonefs_emu.vduse", "zonefs_emu.vhost_user",
    "zonefs_emu.virtio", "zonefs_emu.virtqueue.virtqueue",
}  # fmt: skip
SCRIPT = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from zonefs_emu.cli.main import main
main()
"""


def modules_of(*args: object) -> set[str]:
    """Run the command line in a process of its own and return the modules that it has imported."""
    # Coverage of subprocesses imports much of what is looked for.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, args)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_without_a_verb_nothing_of_the_device_is_imported(arguments: list[str]) -> None:
    modules = modules_of(*arguments)
    assert not modules & HEAVY
    # --version says whether the walkers are compiled, which it finds out by loading them: C, a millisecond each.
    ours = {name for name in modules if name.startswith("zonefs_emu.device.")}
    assert ours <= {"zonefs_emu.device.plain_commands"}


@pytest.mark.parametrize("verb", ["info", "report"])
def test_looking_imports_what_it_uses_only(verb: str, fresh: Path) -> None:
    modules = modules_of(verb, fresh)
    assert "zonefs_emu.device.device" in modules
    assert not modules & HEAVY


def test_every_verb_is_where_the_table_says() -> None:
    assert [verb.load().name for verb in VERBS] == [verb.name for verb in VERBS]
