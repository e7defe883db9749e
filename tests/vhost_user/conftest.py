"""Fixtures of the tests that talk to a back-end on a thread of this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zonefs_emu.device.device import ZonedDevice
    from zonefs_emu.testing.vhost_frontend import Frontend


@pytest.fixture
def path(device: "ZonedDevice", tmp_path: Path) -> Iterator[Path]:
    """A socket at which a block device with four queues is served."""
    # Not at the head: that is run before coverage is told of the collection, and the package's own lines with it.
    from tests.vhost_user.serving import blk_device, serving

    with serving(device, blk_device(device, nr_queues=4), tmp_path / "socket"):
        yield tmp_path / "socket"


@pytest.fixture
def frontend(path: Path) -> Iterator["Frontend"]:
    """A front-end that is connected there."""
    from zonefs_emu.testing.vhost_frontend import Frontend

    with Frontend(path) as frontend:
        yield frontend
