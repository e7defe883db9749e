"""What mkfs takes for an existing file system: signatures made by hand, where libblkid looks for them."""

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fs.conftest import UUID_1, Bench, geometry
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.port import Port
from zonefs_emu.errors import UsageError
from zonefs_emu.fs import signature
from zonefs_emu.fs.signature import find_signature
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

#: Fields of a squashfs super block that libblkid looks at: magic, version 4.0, 4 KiB in use.
SQUASHFS = struct.pack("<4s24x2H8xQ", b"hsqs", 4, 0, 4096)
#: One partition of 32 sectors from sector 8.
MBR = bytes(446) + struct.pack("<B3xB3xII", 0, 0x83, 8, 32) + bytes(48) + b"\x55\xaa"
#: Linux RAID, version 0.90: lies 64 KiB before the end.
RAID = struct.pack("<5I", 0xA92B4EFC, 0, 90, 0, 0)


@pytest.fixture
def port(tmp_path: Path) -> Any:
    """The first two of 64 zones are conventional, and the last one."""
    path = tmp_path / "image"
    ZonedDevice.create(path, geometry(size=64 * 128, conventional=((0, 2), (63, 1))), uuid=UUID_1)
    device = ZonedDevice.open(path)
    yield device.port("mkfs", VIRTIO)
    device.close()


def put(port: Port, sector: int, data: bytes) -> None:
    assert not port.write(sector, 8, (data.ljust(4096, b"\0"),))


def test_a_new_device_holds_nothing_and_is_not_even_asked(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert find_signature(port) is None


def test_data_without_a_signature_is_nothing(port: Port) -> None:
    put(port, 0, b"data" * 1024)
    put(port, 2 * 128, b"data" * 1024)
    assert find_signature(port) is None


def test_what_mkfs_wrote(bench: Bench) -> None:
    assert find_signature(bench.raw) == "an existing filesystem (zonefs)"


@pytest.mark.parametrize(
    ("sector", "data", "words"),
    [
        (0, SQUASHFS, "an existing filesystem (squashfs)"),
        (0, MBR, "a partition table (dos)"),
        (63 * 128, RAID, "an existing filesystem (linux_raid_member)"),
    ],
)
def test_other_signatures_at_both_ends(port: Port, sector: int, data: bytes, words: str) -> None:
    put(port, sector, data)
    assert find_signature(port) == words


def test_what_was_reset_or_cannot_be_read_is_gone(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(geometry(conventional=(), zone_capacity=96))
    assert find_signature(bench.raw) == "an existing filesystem (zonefs)"
    bench.set_cond(0, Condition.OFFLINE)
    assert find_signature(bench.raw) is None
    bench.set_cond(0, Condition.FULL)
    assert not bench.raw.manage(Operation.RESET, 0)
    assert find_signature(bench.raw) is None


def test_signatures_of_a_large_device_are_found_without_a_look_at_its_middle(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(geometry(size=1 << 31, zone_size=1 << 17, zone_capacity=1 << 17, conventional=((0, 1 << 14),)))
    put(bench.raw, 0, bytes(4096))
    sectors: list[int] = []
    read = FaultyPort.read

    def read_noted(port: FaultyPort, sector: int, nr_sectors: int, buffers: Any) -> Any:
        sectors.append(sector)
        return read(port, sector, nr_sectors, buffers)

    monkeypatch.setattr(FaultyPort, "read", read_noted)
    assert find_signature(bench.raw) is None
    assert sectors
    assert sum(1 << 14 <= sector < (1 << 31) - (1 << 14) for sector in sectors) == 0
    put(bench.raw, (1 << 31) - 128, RAID)
    assert find_signature(bench.raw) == "an existing filesystem (linux_raid_member)"


def test_who_cannot_tell_refuses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "_LIBRARY", "libabsent.so.1")
    with pytest.raises(UsageError, match=r"libabsent\.so\.1 is not installed: use the option '-f'"):
        find_signature(bench.raw)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="libblkid failed"):
        signature._probe(-1)
