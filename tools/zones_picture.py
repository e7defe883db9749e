#!/usr/bin/env python3
"""Print docs/zones.svg, the picture in the README: what ``zonefs-emu map --svg`` draws of a small drive in use.

    PYTHONPATH=. .venv/bin/python tools/zones_picture.py >docs/zones.svg

tests/test_tidy.py compares the two.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_MIB: Final = 1 << 20
_ZONE: Final = 2 * _MIB
#: Zone and how many bytes are written to it.
_WRITTEN: Final = ((8, _ZONE), (9, _ZONE), (10, _ZONE), (11, _MIB), (12, _ZONE // 8), (20, _MIB // 2), (33, _ZONE))
_COMMANDS: Final = (
    ("finish", "--zone", "13"),
    ("close", "--zone", "20"),
    ("open", "--zone", "21"),
    ("set-cond", "--zone", "40", "readonly"),
    ("set-cond", "--zone", "41", "offline"),
)


def picture() -> str:
    """Return the SVG."""
    with tempfile.TemporaryDirectory() as directory:
        verb(directory, "create", "--size", "128M", "--zone-size", "2M", "--nr-conv", "8", "--max-active-zones", "14")
        for zone_no, length in _WRITTEN:
            verb(directory, "write", "--zone", str(zone_no), data=bytes(length))
        for name, *options in _COMMANDS:
            verb(directory, name, *options)
        return verb(directory, "map", "--svg", "-")


def verb(directory: str, name: str, *options: str, data: bytes = b"") -> str:
    """Run one verb on the image ``drive.img`` in *directory* and return what it prints."""
    command = [sys.executable, "-m", "zonefs_emu", name, str(Path(directory) / "drive.img"), *options]
    return subprocess.run(command, input=data, check=True, stdout=subprocess.PIPE).stdout.decode()


if __name__ == "__main__":
    sys.stdout.write(picture())
