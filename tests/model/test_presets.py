import re

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.presets import PRESETS, build_geometry, default_zone_size, warnings

MIB = 2048  # sectors


def geometry(*, size: int = 64 * MIB, zone_size: int = 4 * MIB, zone_capacity: int = 4 * MIB,
             conventional: tuple[tuple[int, int], ...] = (), max_active_zones: int = 0) -> Geometry:  # fmt: skip
    return Geometry(
        size=size,
        zone_size=zone_size,
        zone_capacity=zone_capacity,
        conventional=conventional,
        max_active_zones=max_active_zones,
    )


def test_presets_are_the_drives_that_they_say() -> None:
    zn540 = build_geometry(preset=PRESETS["zn540"])
    assert (zn540.nr_zones, zn540.zone_capacity // MIB, zn540.max_open_zones, zn540.max_active_zones) == (
        904,
        1077,
        14,
        14,
    )
    smr = build_geometry(preset=PRESETS["smr-hm"])
    assert (smr.nr_zones, smr.nr_conventional, smr.zone_size // MIB, smr.max_open_zones) == (52156, 524, 256, 128)
    # ext4 ends at 16 TiB.
    assert max(preset.size_bytes for preset in PRESETS.values()) < 16 << 40


def test_presets_in_numbers() -> None:
    """The shapes are written down once more, because users of a preset rely on its shape."""
    mib = 1 << 20
    numbers = {
        name: (p.size_bytes, p.zone_size_bytes, p.zone_capacity_bytes, p.nr_conv, p.block_size_bytes, p.max_open_zones,
               p.max_active_zones, p.max_append_bytes)
        for name, p in PRESETS.items()
    }  # fmt: skip
    assert numbers == {
        "small": (1024 * mib, 16 * mib, 16 * mib, 4, 4096, 8, 12, 512 << 10),
        "small-zns": (1024 * mib, 16 * mib, 12 * mib, 0, 4096, 8, 12, 512 << 10),
        "zn540": (904 * 2048 * mib, 2048 * mib, 1077 * mib, 0, 4096, 14, 14, 128 << 10),
        "smr-hm": (52156 * 256 * mib, 256 * mib, 256 * mib, 524, 4096, 128, 0, 512 << 10),
    }
    plain = build_geometry(size=1 << 30)
    assert (plain.zone_size, plain.zone_capacity, plain.conventional, plain.block_size_bytes) == (
        64 * MIB, 64 * MIB, (), 4096,
    )  # fmt: skip
    assert (plain.max_open_zones, plain.max_active_zones, plain.max_append) == (0, 0, MIB // 2)


def test_the_small_preset_suits_everybody() -> None:
    assert list(warnings(build_geometry(preset=PRESETS["small"]))) == []


@pytest.mark.parametrize(
    ("shape", "who"),
    [
        (geometry(zone_size=3 * MIB, zone_capacity=3 * MIB, size=60 * MIB), "Linux"),
        (geometry(zone_size=1 << 32, zone_capacity=1 << 32, size=1 << 34), "virtio-blk"),
        (geometry(zone_capacity=3 * MIB), r"SCSI \(ZBC\).*Linux before 5.19"),
        (geometry(conventional=((4, 2),)), "btrfs and f2fs"),
        (geometry(conventional=((1, 2),)), "btrfs and f2fs"),
        (geometry(size=4 * MIB), "mkfs"),
        (geometry(size=66 * MIB), "btrfs and QEMU's NVMe"),
    ],
)
def test_a_warning_names_who_refuses(shape: Geometry, who: str) -> None:
    (warning,) = warnings(shape)
    assert re.search(who, warning)


@pytest.mark.parametrize(
    "shape",
    [
        geometry(size=8 * MIB),  # two zones: one for the super block, one for data
        geometry(zone_capacity=3 * MIB, conventional=((0, 16),)),  # a conventional zone is writable in full
        geometry(conventional=((0, 1), (3, 2))),
        geometry(zone_size=1 << 31, zone_capacity=1 << 31, size=1 << 33),
    ],
)
def test_what_nobody_refuses_needs_no_warning(shape: Geometry) -> None:
    assert list(warnings(shape)) == []


def test_gap_zones_and_a_smaller_last_zone_do_not_go_together() -> None:
    found = list(warnings(geometry(size=66 * MIB, zone_capacity=3 * MIB)))
    assert any(re.search(r"Linux.*will refuse this disk, whose last zone is smaller", warning) for warning in found)


def test_a_small_device_gets_small_zones() -> None:
    assert default_zone_size(1 << 40) == default_zone_size(16 * 64 << 20) == 64 << 20
    assert default_zone_size(15 * 64 << 20) == default_zone_size((1 << 30) - 4096) == 32 << 20
    assert default_zone_size(256 << 20) == 16 << 20
    assert default_zone_size(4096) == 64 << 10


def test_build_geometry_without_a_size_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="--size 1G, or --preset"):
        build_geometry()


def test_a_preset_yields_to_what_is_asked_for() -> None:
    shape = build_geometry(preset=PRESETS["small"], zone_size=1 << 20, conventional=((2, 3),), max_open_zones=1)
    assert (shape.zone_size, shape.zone_capacity, shape.conventional) == (MIB, MIB, ((2, 3),))
    assert (shape.size, shape.max_open_zones, shape.max_active_zones) == (1024 * MIB, 1, 12)
    plain = build_geometry(size=64 << 20)
    assert (plain.nr_zones, plain.conventional, plain.max_open_zones) == (16, (), 0)


def test_a_size_is_whole_sectors() -> None:
    with pytest.raises(UsageError, match=r"^zone size: "):
        build_geometry(size=1 << 30, zone_size=1000)
