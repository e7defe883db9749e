"""Regions that come, go and move, under rings that run."""

import time
from pathlib import Path

import pytest

from tests.vhost_user.serving import blk_device, serving, still_serves
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.messages import (
    MemoryTable,
    Request,
)


def test_memory_comes_and_goes(path: Path) -> None:
    with Frontend(path, style="libblkio", regions=12) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        assert driver.read(0, 512)[0] == 0
        last = frontend.memory_regions()[-1]
        frontend.tell(Request.REM_MEM_REG, last)
        assert driver.read(0, 512)[0] == 0
        frontend.tell(Request.ADD_MEM_REG, last, fds=(frontend.memory_fd,))
        assert driver.read(0, 512)[0] == 0
    still_serves(path)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_memory_that_moves_while_the_rings_rest(
    device: ZonedDevice, tmp_path: Path, *, packed: bool, event_idx: bool
) -> None:
    with (
        serving(device, blk_device(device), tmp_path / "socket") as backend,
        Frontend(tmp_path / "socket", packed=packed, event_idx=event_idx) as frontend,
    ):
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        regions = tuple(frontend.memory_regions())
        for _ in range(3):
            assert driver.read(0, 512)[0] == 0
            while backend._server._active:
                time.sleep(0.001)
            frontend.tell(Request.SET_MEM_TABLE, MemoryTable(regions), fds=[frontend.memory_fd] * len(regions))
