"""Devices in many shapes, formatted, and volumes on them: real images in a temporary directory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.fs import mkfs
from zonefs_emu.fs.errnos import FileError
from zonefs_emu.fs.files import Handle, ZoneFile
from zonefs_emu.fs.options import parse_options
from zonefs_emu.fs.volume import Volume
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition

UUID_1: Final = UUID("01234567-89ab-cdef-0123-456789abcdef")
BLOCK: Final = 4096
ZONE_SECTORS: Final = 128
CAPACITY: Final = ZONE_SECTORS * 512

RW_DIRECT: Final = os.O_RDWR | os.O_DIRECT
APPEND_DIRECT: Final = os.O_WRONLY | os.O_APPEND | os.O_DIRECT


def geometry(**changes: object) -> Geometry:
    """Eight zones of 64 KiB, the first two conventional, 4096-byte blocks; *changes* to that."""
    parts: dict[str, object] = {
        "size": 8 * ZONE_SECTORS,
        "zone_size": ZONE_SECTORS,
        "zone_capacity": ZONE_SECTORS,
        "conventional": ((0, 2),),
        "block_size_bytes": BLOCK,
    }
    return Geometry(**(parts | changes))  # type: ignore[arg-type]  # a table of parts


#: Shapes of devices on which everything must work.
SHAPES: Final = {
    "plain": geometry(),
    "no-conventional": geometry(conventional=()),
    "conventional-ranges": geometry(conventional=((0, 1), (3, 2))),
    "capacity": geometry(zone_capacity=96),
    "capacity-no-conventional": geometry(zone_capacity=96, conventional=()),
    "runt": geometry(size=7 * ZONE_SECTORS + 64),
    "runt-capacity": geometry(size=7 * ZONE_SECTORS + 64, zone_capacity=96),
    "block-512": geometry(block_size_bytes=512),
    "granularity": geometry(write_granularity=16),
    "limits": geometry(max_open_zones=2, max_active_zones=3),
    "limit-1": geometry(max_open_zones=1, max_active_zones=1),
    "open-limit": geometry(max_open_zones=2),
    "active-limit": geometry(max_active_zones=2),
    "two-zones": geometry(size=2 * ZONE_SECTORS, conventional=()),
}


class Bench:
    """A formatted device and what tests do to it. What another front-end's port *raw* does, zonefs is not told."""

    def __init__(self, path: Path, shape: Geometry, features: str = "") -> None:
        ZonedDevice.create(path, shape, uuid=UUID_1)
        self.path = path
        self.device = ZonedDevice.open(path)
        self.raw: Port = self.device.port("raw", VIRTIO)
        mkfs.examine(self.raw)
        mkfs.format_device(self.raw, mkfs.parse_features(features, uuid=UUID_1))

    def mount(self, options: str = "", **more: object) -> Volume:
        port = self.device.port("zonefs", VIRTIO)
        return Volume(port, parse_options(options), **more)  # type: ignore[arg-type]  # a table of arguments

    def set_cond(self, zone_no: int, cond: Condition) -> None:
        assert not self.raw.set_cond(zone_no, cond)

    def cond(self, zone_no: int) -> Condition:
        return self.raw.zone(zone_no).cond

    def write_raw(self, zone_no: int, nr_bytes: int, byte: bytes = b"r") -> None:
        """Write behind zonefs' back, at wp."""
        zone = self.raw.zone(zone_no)
        assert not self.raw.write(zone.wp, nr_bytes // 512, (byte * nr_bytes,))


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(shape: str | Geometry = "plain", features: str = "") -> Bench:
        found = SHAPES[shape] if isinstance(shape, str) else shape
        bench = Bench(tmp_path / f"{len(benches)}.img", found, features)
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.device.close()
        # What was left must be an image that opens again, in the state it was left in.
        before = bytes(bench.device.machine.conds), bench.device.machine.wps.tobytes()
        again = ZonedDevice.open(bench.path, readonly=True)
        assert (bytes(again.machine.conds), again.machine.wps.tobytes()) == before
        again.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@contextmanager
def refused(errno_no: int) -> Iterator[None]:
    """Expect FileError with that errno."""
    with pytest.raises(FileError) as caught:
        yield
    assert caught.value.errno == errno_no


def seq(volume: Volume, file_no: int = 0) -> ZoneFile:
    return volume.file(volume.tree.seq.zones(file_no)[0])


def cnv(volume: Volume, file_no: int = 0) -> ZoneFile:
    return volume.file(volume.tree.cnv.zones(file_no)[0])


def blocks(count: int, byte: bytes = b"x") -> bytes:
    return byte * (BLOCK * count)


def read(volume: Volume, handle: Handle, offset: int, count: int) -> bytes:
    return bytes(volume.read(handle, offset, count))
