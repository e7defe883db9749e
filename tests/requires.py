"""What a test needs of the machine: present, or the test is skipped with the name of what is missing.

On a machine that ought to have everything a skip hides a gap, so ``ZONEFS_EMU_REQUIRE`` lists the needs whose absence
is a failure there: ``ZONEFS_EMU_REQUIRE=fuse,qemu,fio``. ``make test`` sets it.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tools.guest.kit import find_kit
from tools.guest.newer_kernel import find_newer_kernel
from tools.guest.newer_qemu import find_newer_qemu

SBIN_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def which(command: str) -> str | None:
    """Path of *command*, also where only root's PATH leads (blkid and blkzone live in sbin)."""
    return shutil.which(command, path=os.environ.get("PATH", os.defpath) + ":" + SBIN_PATH)


def _missing_way(name: str) -> str | None:
    # Not at the head: conftest.py imports this before coverage is told of the collection.
    from zonefs_emu.front_ends.ways_in import examine

    (finding,) = examine([name], Path())
    return None if finding.works else finding.reason


def _missing_qemu() -> str | None:
    return None if find_kit() else "the test guest has not been downloaded (tools/guest/fetch)"


def _missing_newer_qemu() -> str | None:
    return None if find_newer_qemu(find_kit()) else "no QEMU from 10.1 on has been downloaded (tools/guest/fetch)"


def _missing_newer_kernel() -> str | None:
    found = find_newer_kernel(find_newer_qemu(find_kit()))
    return None if found else "no kernel from 6.15 on has been downloaded (tools/guest/fetch)"


def _missing_browser() -> str | None:
    # Debian's names; chromium-headless-shell is the smaller one.
    return None if which("chromium-headless-shell") or which("chromium") else "chromium is not installed"


def _missing_root() -> str | None:
    return None if os.geteuid() == 0 else "only root may do this"


def _missing_walker() -> str | None:
    from zonefs_emu.compiled_modules import RING_WALKER, is_usable, used_walker  # as above

    return None if is_usable(RING_WALKER) else used_walker()


NEEDS: Final[Mapping[str, Callable[[], str | None]]] = MappingProxyType(
    {
        "fuse": partial(_missing_way, "mount"),
        "ublk": partial(_missing_way, "ublk"),
        "vduse": partial(_missing_way, "vduse"),
        "qemu": _missing_qemu,
        "newer-qemu": _missing_newer_qemu,
        "newer-kernel": _missing_newer_kernel,
        "root": _missing_root,
        "chromium": _missing_browser,
        "walker": _missing_walker,
    }
)


def missing(need: str) -> str | None:
    """Say in a few words why *need* is not met; None if it is.

    *need* is a name of NEEDS, an absolute path that must exist, or a command.
    """
    if need in NEEDS:
        return NEEDS[need]()
    if need.startswith("/"):
        return None if Path(need).exists() else f"{need} does not exist"
    return None if which(need) else f"{need} is not installed"


def requires(*needs: str) -> None:
    """Skip the running test if one of *needs* is not met; fail it if ZONEFS_EMU_REQUIRE names that need."""
    required = {name.strip() for name in os.environ.get("ZONEFS_EMU_REQUIRE", "").split(",")}
    for need in needs:
        reason = missing(need)
        if reason is None:
            continue
        if need in required:
            pytest.fail(f"{reason}, but ZONEFS_EMU_REQUIRE names {need!r}", pytrace=False)
        pytest.skip(reason)
