"""A device that NVMe can express, and its namespace."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme.command import Command
from zonefs_emu.nvme.namespace import Namespace
from zonefs_emu.nvme.subsystem import Subsystem

UUID_1 = UUID("00112233-4455-6677-8899-aabbccddeeff")
BLOCK = 4096
#: Blocks in a zone, of which fewer can be written.
ZONE = 256
CAPACITY = 192
NR_ZONES = 8


def geometry(block_bytes: int = BLOCK, **changes: int) -> Geometry:
    sectors = block_bytes // 512
    shape = {
        "size": NR_ZONES * ZONE * sectors, "zone_size": ZONE * sectors, "zone_capacity": CAPACITY * sectors,
        "block_size_bytes": block_bytes, "max_open_zones": 2, "max_active_zones": 3, "max_append": 32 * sectors,
    }  # fmt: skip
    return Geometry(**(shape | changes))  # type: ignore[arg-type]  # a table of arguments


@pytest.fixture(params=[4096, 512])
def block_bytes(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


class Server(Protocol):
    """What serves a device until it is stopped."""

    def run(self) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def on_a_thread(server: Server) -> Iterator[None]:
    """Run *server* until the end of the context."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def new_device(directory: Path, block_bytes: int = BLOCK) -> Iterator[ZonedDevice]:
    ZonedDevice.create(directory / "image", geometry(block_bytes), uuid=UUID_1)
    device = ZonedDevice.open(directory / "image")
    yield device
    device.close()


@pytest.fixture
def device(tmp_path: Path, block_bytes: int) -> Iterator[ZonedDevice]:
    with new_device(tmp_path, block_bytes) as device:
        yield device


@pytest.fixture
def subsystem(device: ZonedDevice) -> Subsystem:
    return Subsystem([device])


@pytest.fixture
def namespace(device: ZonedDevice) -> Namespace:
    return Namespace(device, 1)


def command(opcode: int, *, nsid: int = 1, cid: int = 7, cdws: tuple[int, ...] = ()) -> Command:
    fields = [*cdws, 0, 0, 0, 0, 0, 0][:6]
    return Command(opcode, 0, cid, nsid, 0, 0, 0, *fields)
