"""What a device says of itself; an image that only the device finds damaged."""

from pathlib import Path

import pytest

from tests.device.sectors import CLOSE, FINISH, MIXED, OPEN, RESET, UUID_HERE, Maker, read, write
from zonefs_emu.device.counters import Counters
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.errors import CorruptImageError, Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.persist.codec.header import SectionKind


def test_damage_that_only_the_device_meets_is_named_and_lets_the_image_go(make_device: Maker, tmp_path: Path) -> None:
    device = make_device()
    device.inject(Fault(operations=frozenset((Operation.READ,)), effect=Effect.FAIL, status=Status.IO_ERROR))
    sections = [device.image.header.section(SectionKind.FAULTS, copy) for copy in (0, 1)]
    device.close()
    with (tmp_path / "a.img").open("r+b") as file:
        for section in sections:
            file.seek(section.offset + 40)
            file.write(b"\xff" * 8)
    for _ in range(2):
        with pytest.raises(CorruptImageError, match=f"^{tmp_path / 'a.img'}: .*fault"):
            make_device()


def test_what_a_device_says_of_itself(device: ZonedDevice) -> None:
    assert (device.uuid, device.label, device.geometry) == (UUID_HERE, "test", MIXED)
    assert (device.nr_open, device.nr_active) == (0, 0)


def test_a_flush_writes_the_counters_back(device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that was not done for a while; else a power cut would cost the statistics of a long life."""
    monkeypatch.setattr("zonefs_emu.device.counters._SAVE_NS", 0)
    write(port, 128, 4)
    assert not port.flush()
    stored = Counters(device.image.backing, device.image.header, readonly=True)
    assert stored.zone(2)["written_sectors"] == 4


def test_statistics(device: ZonedDevice, port: Port) -> None:
    write(port, 128, 4)
    write(port, 0, 8)
    port.append(128, 3, [bytes(1536)])
    read(port, 128, 5)
    read(port, 128, 8)
    port.manage(OPEN, 192)
    port.manage(CLOSE, 192)
    port.manage(FINISH, 320, 2)
    port.manage(RESET, 320)
    port.manage(RESET, 0)
    port.read(480, 1, [bytearray(512)])
    port.flush()
    assert device.statistics() == {
        "nr_open": 1,
        "nr_active": 1,
        "reads": 2,
        "read_sectors": 13,
        "writes": 2,
        "written_sectors": 15,
        "appends": 1,
        "opens": 1,
        "closes": 1,
        "finishes": 2,
        "resets": 1,
        "implicit_closes": 0,
        "refused": 2,
        "flushes": 1,
        "power_cycles": 0,
        "internal_errors": 0,
    }
