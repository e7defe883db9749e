"""Fields by their offsets, as Linux and nvme-cli read them."""

import struct
from dataclasses import replace

import pytest

from tests.nvme.conftest import CAPACITY, NR_ZONES, UUID_1, ZONE, geometry
from zonefs_emu.nvme import identify
from zonefs_emu.nvme.identify import CommandSet, ControllerIdentity, Fabrics


def u(data: bytes, offset: int, length: int) -> int:
    return int.from_bytes(data[offset : offset + length], "little")


def identity(*, is_discovery: bool = False, fabrics: Fabrics | None = None) -> ControllerIdentity:
    return ControllerIdentity(
        serial="ABC", firmware="2.0", nqn="nqn.x", cntlid=9, max_nsid=2, is_discovery=is_discovery, fabrics=fabrics
    )


def test_controller_behind_a_network() -> None:
    data = identify.controller(identity(fabrics=Fabrics(capsule_bytes=8192, max_commands=128)))
    assert len(data) == 4096
    assert data[4:24] == b"ABC".ljust(20)
    assert data[24:64].rstrip() == b"zonefs_emu ZNS drive"
    assert data[64:72] == b"2.0".ljust(8)
    assert data[76] == 2, "several controllers"
    assert 4096 << data[77] == 512 << 10
    assert (u(data, 78, 2), u(data, 80, 4), data[111]) == (9, 0x20000, 1)
    assert u(data, 92, 4) == 1 << 8 | 1 << 27
    assert u(data, 256, 2) == 0, "no doorbell buffers"
    assert u(data, 320, 2) > 0, "Linux insists on keep alive"
    assert (data[512], data[513], u(data, 514, 2), u(data, 516, 4)) == (0x66, 0x44, 128, 2)
    assert (u(data, 520, 2), data[525], u(data, 536, 4)) == (0b1_0100_1001, 7, 0x100001)
    assert (u(data, 96, 4), u(data, 340, 2), u(data, 534, 2)) == (0b10001, 1, 1)
    assert data[768:1024].rstrip(b"\0") == b"nqn.x"
    assert (u(data, 1792, 4), u(data, 1796, 4), u(data, 1800, 2), data[1803]) == ((64 + 8192) // 16, 1, 0, 1)


def test_controller_on_a_bus_and_of_the_discovery_service() -> None:
    function = identify.controller(identity())
    assert u(function, 256, 2) == 1 << 8, "doorbell buffers"
    assert (u(function, 536, 4), u(function, 1792, 4)) == (0, 0), "PRPs, no capsules"
    discovery = identify.controller(identity(is_discovery=True))
    assert (discovery[111], u(discovery, 92, 4), discovery[525]) == (2, 0, 0)
    assert (u(discovery, 96, 4), u(discovery, 340, 2)) == (1, 0), "no endurance groups"


def test_endurance_groups() -> None:
    assert [u(identify.endurance_groups(after), 0, 4) for after in (0, 1)] == [1 | 1 << 16, 0]


def test_namespace() -> None:
    data = identify.namespace(geometry(), UUID_1, readonly=False)
    assert (u(data, 74, 2), u(data, 76, 4), data[80], u(data, 102, 2)) == (128, 128, 127, 1)
    usable = NR_ZONES * CAPACITY
    assert struct.unpack_from("<QQQ", data) == (NR_ZONES * ZONE, usable, usable)
    assert (data[25], data[26], data[30], data[99]) == (0, 0, 1, 0)
    assert data[104:120] == UUID_1.bytes
    assert (u(data, 128, 2), 1 << data[130]) == (0, 4096)
    assert identify.namespace(geometry(512), UUID_1, readonly=True)[99] == 1
    assert 1 << identify.namespace(geometry(512), UUID_1, readonly=True)[130] == 512
    assert identify.independent_namespace(readonly=True)[8] == 1
    assert identify.independent_namespace(readonly=False)[14] == 1, "not ready: Linux would ignore it"


def test_descriptors_name_the_command_set() -> None:
    data = identify.descriptors(UUID_1)
    found = {}
    at = 0
    while data[at]:
        found[data[at]] = data[at + 4 : at + 4 + data[at + 1]]
        at += 4 + data[at + 1]
    assert found == {2: UUID_1.bytes, 3: UUID_1.bytes, 4: b"\x02"}


@pytest.mark.parametrize(("limits", "stored"), [((3, 2), (2, 1)), ((0, 0), (0xFFFFFFFF, 0xFFFFFFFF))])
def test_zoned_namespace(limits: tuple[int, int], stored: tuple[int, int]) -> None:
    data = identify.zoned_namespace(geometry(max_active_zones=limits[0], max_open_zones=limits[1]))
    assert (u(data, 0, 2), u(data, 2, 2)) == (0, 1), "Linux refuses a namespace with zone operation characteristics"
    assert (u(data, 4, 4), u(data, 8, 4)) == stored
    assert (u(data, 2816, 8), data[2824]) == (ZONE, 0)


@pytest.mark.parametrize(("append_kib", "shift"), [(4, 0), (8, 1), (128, 5), (192, 5), (512, 7), (1 << 20, 7)])
def test_the_limit_of_appends(append_kib: int, shift: int) -> None:
    """No host is promised a longer append than the image takes, but for one page: 0 stands for MDTS."""
    shape = geometry(max_append=append_kib * 2)
    assert identify.append_shift(shape) == shift
    assert identify.set_controller(CommandSet.ZNS, [geometry(max_append=1024), shape])[0] == min(shift, 7)
    assert identify.set_controller(CommandSet.NVM, [])[1] == identify.MDTS


def test_lists() -> None:
    assert struct.unpack_from("<4I", identify.namespace_list([3, 1, 2], 1)) == (2, 3, 0, 0)
    assert u(identify.command_sets(), 0, 8) == 0b101
    assert len(identify.namespace_list(range(1, 5000), 0)) == 4096


def test_random_write_areas(block_bytes: int) -> None:
    sectors = block_bytes // 512
    shape = geometry(block_bytes, zrwa_size=64 * sectors, zrwa_granularity=16 * sectors, max_zrwa=3)
    data = identify.zoned_namespace(shape)
    assert data[2:4] == bytes.fromhex("0300")  # OZCS: reads across zones, ZRWA
    assert data[44:48] == bytes.fromhex("03000000")  # NUMZRWA
    assert data[48:50] == bytes.fromhex("1000")  # ZRWAFG, in blocks
    assert data[50:52] == bytes.fromhex("4000")  # ZRWASZ, in blocks
    assert data[52] == 1  # ZRWACAP: explicit flushes
    assert u(identify.zoned_namespace(replace(shape, max_zrwa=0)), 44, 4) == shape.nr_zones
    assert identify.zoned_namespace(geometry(block_bytes))[44:53] == bytes(9)


def test_zone_active_excursions(block_bytes: int) -> None:
    data = identify.zoned_namespace(replace(geometry(block_bytes), active_excursions=True))
    assert data[0:2] == bytes.fromhex("0200")  # ZOC: zone active excursions
    assert data[12:44] == bytes(32)  # RRL, FRL and their further ones: no limit is reported


def test_controller_lists() -> None:
    assert identify.controller_list([7, 2, 0x1234], 2)[:8] == bytes.fromhex("0300 0200 0700 3412")
    assert identify.controller_list([7, 2], 3)[:6] == bytes.fromhex("0100 0700 0000")
    data = identify.controller_list(range(1, 5000), 0)
    assert (len(data), data[:2], data[-2:]) == (4096, bytes.fromhex("ff07"), bytes.fromhex("ff07"))
