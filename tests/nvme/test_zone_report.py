"""Reports with zone descriptor extensions, and how zones get these; plain reports are tested with the namespace."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.memory_budget import memory_budget
from tests.nvme.conftest import BLOCK, CAPACITY, NR_ZONES, UUID_1, ZONE, geometry
from tests.nvme.test_namespace import at, do, send
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme import identify
from zonefs_emu.nvme.answer import Answer
from zonefs_emu.nvme.command import IoOpcode, SendAction
from zonefs_emu.nvme.namespace import Namespace
from zonefs_emu.nvme.zone_report import FILTERS, ZoneReporter

EXTENSION = bytes(range(128))
ENTRY = 64 + len(EXTENSION)
ALL = 1 << 8


@pytest.fixture
def device(tmp_path: Path, block_bytes: int) -> Iterator[ZonedDevice]:
    ZonedDevice.create(tmp_path / "image", geometry(block_bytes, extension_bytes=128), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    yield device
    device.close()


def extend(namespace: Namespace, slba: int, flags: int = 0) -> int:
    return do(namespace, IoOpcode.ZONE_SEND, *at(slba, 0, SendAction.SET_DESCRIPTOR | flags), data=EXTENSION).status


def extended_report(namespace: Namespace, slba: int, nr_bytes: int, flags: int = 1 << 16) -> Answer:
    return do(namespace, IoOpcode.ZONE_RECEIVE, *at(slba, nr_bytes // 4 - 1, 1 | flags))


def test_identify_says_how_long_they_are(namespace: Namespace) -> None:
    assert identify.zoned_namespace(namespace.geometry)[2824] == 2


def test_an_extension_closes_the_zone_and_is_reported(namespace: Namespace) -> None:
    assert extend(namespace, ZONE) == 0
    answer = extended_report(namespace, 0, 64 + 3 * ENTRY)
    assert answer.status == 0
    assert int.from_bytes(answer.data[:8], "little") == 3
    first, second, third = (answer.data[64 + n * ENTRY : 64 + (n + 1) * ENTRY] for n in range(3))
    assert (first[1] >> 4, first[2], first[64:]) == (1, 0, bytes(128))
    assert (second[1] >> 4, second[2], second[64:]) == (4, 0x80, EXTENSION)
    assert int.from_bytes(second[8:16], "little") == CAPACITY
    assert (third[1] >> 4, third[64:]) == (1, bytes(128))
    assert send(namespace, SendAction.RESET, ZONE) == 0
    assert extended_report(namespace, ZONE, 64 + ENTRY).data[64 + 2 :: 1][0] == 0


def test_a_report_without_extensions_names_the_attribute(namespace: Namespace) -> None:
    assert extend(namespace, 0) == 0
    answer = do(namespace, IoOpcode.ZONE_RECEIVE, *at(0, 31, 1 << 16))
    assert answer.data[64 + 2] == 0x80


def test_a_full_count_is_of_zones_and_a_part_of_an_entry_is_left_out(namespace: Namespace) -> None:
    answer = extended_report(namespace, 0, 64 + ENTRY + 100, flags=0)
    assert int.from_bytes(answer.data[:8], "little") == NR_ZONES
    assert answer.data[64 + ENTRY :] == bytes(100)


def test_refusals(namespace: Namespace) -> None:
    assert extend(namespace, 0, ALL) == 0x002
    assert extend(namespace, 1) == 0x002
    assert extend(namespace, NR_ZONES * ZONE) == 0x080
    assert send(namespace, SendAction.OPEN, 0) == 0
    assert extend(namespace, 0) == 0x1BF
    assert extend(namespace, ZONE) == 0
    assert extend(namespace, 2 * ZONE) == 0
    assert extend(namespace, 3 * ZONE) == 0x1BD


def test_a_damaged_extension_fails_the_report(namespace: Namespace, device: ZonedDevice) -> None:
    assert extend(namespace, 0) == 0
    device.image.backing.pwrite(b"?", device.image.extensions.offset(0) + 30)
    assert extended_report(namespace, 0, 64 + ENTRY).status == 0x281
    assert do(namespace, IoOpcode.ZONE_RECEIVE, *at(0, 31, 1 << 16)).status == 0


def test_a_reset_that_a_fault_recommends_is_an_attribute(namespace: Namespace, device: ZonedDevice) -> None:
    device.inject(Fault(effect=Effect.RECOMMEND_RESET, nr_zones=1))
    namespace = Namespace(device, 1)
    assert extend(namespace, 0) == 0
    assert do(namespace, IoOpcode.ZONE_RECEIVE, *at(0, 31, 1 << 16)).data[64 + 2] == 0x84


def test_attributes_that_the_drive_sets(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "image", replace(geometry(), active_excursions=True), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    device.inject(Fault(effect=Effect.RECOMMEND_FINISH))
    namespace = Namespace(device, 1)
    for zone_no in range(2):
        assert not namespace.port.write(device.geometry.zone_start(zone_no), 8, (bytes(BLOCK),))
    assert not namespace.port.finish_by_controller(0)
    report = do(namespace, IoOpcode.ZONE_RECEIVE, *at(0, (64 + 3 * 64) // 4 - 1, 1 << 16)).data
    assert report[64:68] == bytes.fromhex("02 e0 01 00")  # sequential; FULL; Zone Finished by Controller; no limits
    assert report[88:96] == bytes.fromhex("ffffffffffffffff")  # no write pointer
    assert report[128:132] == bytes.fromhex("02 20 02 00")  # IMPLICITLY OPENED; Finish Zone Recommended
    assert report[192:196] == bytes.fromhex("02 10 00 00")  # EMPTY
    device.close()


@pytest.mark.parametrize("conds", [FILTERS[0], FILTERS[1], FILTERS[5]], ids=["all", "empty", "none matches"])
@pytest.mark.parametrize("partial", [True, False])
def test_a_portion_of_a_million_zones_takes_the_memory_of_a_portion(
    large: Namespace, conds: frozenset[Condition], partial: bool
) -> None:
    """The states of all zones have ten megabytes, and one step of a scan copies those of 65,536 zones."""
    with memory_budget(2 << 20):
        _, report = ZoneReporter(large.port).report(999_990, 4096, conds, partial=partial, extended=False)
    nr_found = 0 if conds == FILTERS[5] else 10
    assert struct.unpack_from("<Q", report) == (nr_found,)
    with memory_budget(2 << 20):
        _, report = ZoneReporter(large.port).report(0, 4096, conds, partial=partial, extended=False)
    nr_found = 0 if conds == FILTERS[5] else 63 if partial else 1_000_000
    assert struct.unpack_from("<Q", report) == (nr_found,)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A namespace of a million zones."""
    path = tmp_path_factory.mktemp("large") / "image"
    ZonedDevice.create(path, Geometry(size=8_000_000, zone_size=8, zone_capacity=8, block_size_bytes=4096), uuid=UUID_1)
    device = ZonedDevice.open(path)
    yield Namespace(device, 1)
    device.close()
