"""The compiled modules of the package, which are optional: whether they were built from the sources that are here.

A module that was built from other sources is not used: it would execute the rules of another version. Each has a CRC of
the sources of all of them, which is compared when it is loaded. ``ZONEFS_EMU_PURE=1`` in the environment switches them
off.

This module imports nothing of the package: ``zonefs-emu --version`` asks it, and so does setup.py, which builds the
modules.
"""

import importlib
import os
import zlib
from pathlib import Path
from typing import Final

#: The variable of the environment that switches the compiled modules off, unless it is empty or 0.
PURE: Final = "ZONEFS_EMU_PURE"
#: The module that serves virtqueues; output for people says of it alone whether it is used.
RING_WALKER: Final = "zonefs_emu.virtqueue.walker"
_PACKAGE: Final = Path(__file__).parent
#: The modules and what each is built from, in the order in which they need one another.
MODULES: Final = {
    "zonefs_emu.model.compiled_plain_rules": "model/plain_rules.py",
    "zonefs_emu.inflight.compiled_slot_stores": "inflight/slot_stores.py",
    "zonefs_emu.device.plain_commands": "device/plain_commands.pyx",
    RING_WALKER: "virtqueue/walker.pyx",
    "zonefs_emu.ublk.tag_walker": "ublk/tag_walker.pyx",
    "zonefs_emu.vfio_user.queue_walker": "vfio_user/queue_walker.pyx",
}
#: All that the modules are built from.
SOURCES: Final = (
    *MODULES.values(),
    "device/plain_commands.pxd",
    "device/raw_memory.pxd",
    "inflight/compiled_slot_stores.pxd",
    "model/compiled_plain_rules.pxd",
    "virtio/guest_areas.pxd",
)


def sources_crc() -> int:
    """Return the CRC of the sources."""
    return zlib.crc32(b"".join((_PACKAGE / name).read_bytes() for name in SOURCES))


def _load(name: str) -> str:
    """Load the module *name*; return why it cannot be used, or nothing."""
    if os.environ.get(PURE, "0") not in ("", "0"):
        return f"as {PURE} asks"
    try:
        module = importlib.import_module(name)
    except ImportError:
        return "the compiled one is not built"
    try:
        is_stale = sources_crc() != module.SOURCES
    except OSError:
        is_stale = True
    return "the compiled one was built from other sources" if is_stale else ""


_loaded: dict[str, str] = {}


def _reason_against(name: str) -> str:
    if name not in _loaded:
        _loaded[name] = _load(name)
    return _loaded[name]


def is_usable(name: str) -> bool:
    """Say whether the compiled module *name* may be used; its import succeeds then."""
    return not _reason_against(name)


def used_walker() -> str:
    """Say in a few words which ring walker is used."""
    reason = _reason_against(RING_WALKER)
    return f"pure Python ({reason})" if reason else "compiled"
