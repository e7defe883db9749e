"""README's first command, to its end: the demo is the first thing that a newcomer runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent


@pytest.mark.fuse
@pytest.mark.slow
def test_the_demo_tells_its_story_and_cleans_up(tmp_path: Path) -> None:
    bin_directory = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    demo = subprocess.run(
        [ROOT / "tools" / "demo"], env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    story = iter(demo.stdout.splitlines())
    for expected in (
        "$ zonefs-emu create",
        "zonefs-emu mount drive.img mnt",
        "(UNALIGNED_WP)",  # why the write was refused
        "swr   oi",  # the report: a zone that is being written,
        "swr   fu",  # ... a full one,
        "swr   em",  # ... and the one that was reset
        "both files are what was written",
    ):
        assert any(expected in line for line in story), f"{expected!r} is missing, or out of order, in\n{demo.stdout}"
    assert list(tmp_path.glob("zonefs-emu-demo.*")) == []
