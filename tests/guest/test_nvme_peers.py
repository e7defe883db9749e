"""Our drive beside two others in one guest: QEMU's own ZNS drive, and the kernel's NVMe target over zoned null_blk.

The three have the same shape. docs/nvme.md, "Beside two other drives", explains where they differ.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.attaching import Place, attaching
from tests.requires import requires
from tools.guest.kit import find_kit
from tools.guest.machine import Guest, zns_drive
from tools.guest.nvmet import target_script

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(1800)]

NR_ZONES: Final = 64
ZONE_BLOCKS: Final = 4096
SHAPE: Final = "--size 1G --zone-size 16M --max-open-zones 8 --max-active-zones 8 --block-size 4096"
#: What the kernel's target needs.
MODULES: Final = """
modprobe null_blk gb=1 zoned=1 zone_size=16 bs=4096 memory_backed=1 zone_max_open=8 zone_max_active=8
modprobe nvmet
modprobe nvmet_tcp
"""
#: What the drive is to a host, by the word of nvme-cli: equal in all three.
EQUAL: Final = {
    "id-ctrl": ("cntrltype", "sqes", "cqes", "aerl", "fuses", "npss"),
    "id-ns": ("nsze", "ncap", "nuse", "nmic", "dps", "nsattr", "eui64"),
    "zns id-ns": ("zoc", "mar", "mor", "rrl", "frl", "numzrwa", "zrwasz", "zrwafg", "zrwacap"),
}
#: Where they differ: ours, QEMU's, the kernel's.
DIFFERENT: Final = {
    ("id-ctrl", "mdts"): (7, 7, 0),
    ("id-ctrl", "vwc"): (7, 7, 1),
    ("id-ns", "dlfeat"): (1, 1, 0),
    ("zns id-ctrl", "zasl"): (7, 0, 4),
    ("zns id-ns", "ozcs"): (1, 0, 0),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Path]]:
    """A guest with QEMU's own drive, and the file that this drive is on."""
    requires("qemu")
    kit = find_kit()
    assert kit is not None
    image = tmp_path_factory.mktemp("peers") / "zns"
    with image.open("wb") as file:
        file.truncate(1 << 30)
    with Guest(kit, qemu_arguments=zns_drive(image, zone_size_mib=16, max_open_zones=8)) as guest:
        guest.load("nvme")
        guest.wait_until("test -b /dev/nvme0n1")
        yield guest, image


def test_emulated_zns_drive(machine: tuple[Guest, Path]) -> None:
    guest, image = machine
    assert guest.run("cd /sys/block/nvme0n1/queue; cat zoned max_open_zones").stdout == "host-managed\n8\n"
    guest.run("blkzone reset /dev/nvme0n1")
    fio = "fio --name=zns --filename=/dev/nvme0n1 --zonemode=zbd --direct=1 --size=16M --bs=128k"
    guest.run(f"{fio} --rw=write --verify=crc32c --do_verify=1", timeout=120)
    guest.run("mkfs.btrfs -q -O zoned -m single -d single /dev/nvme0n1 && mount /dev/nvme0n1 /mnt && umount /mnt")
    assert image.stat().st_blocks * 512 >= 16 << 20


def identified(place: Place, node: str) -> dict[str, dict[str, Any]]:
    """Return what nvme-cli reads of the drive *node*, by its words for that."""
    asked = ("id-ctrl", "id-ns", "zns id-ctrl", "zns id-ns", "zns report-zones")
    said = place.sh(
        "; echo ,; ".join(
            f"nvme {words} {node.removesuffix('n1') if 'id-ctrl' in words else node} -o json" for words in asked
        )
    )
    return dict(zip(asked, json.loads(f"[{said.stdout}]"), strict=True))


def test_three_drives_say_the_same_where_it_matters(machine: tuple[Guest, Path]) -> None:
    with attaching(machine[0]) as place:
        place.sh("ip link set lo up")
        place.create("n.img", SHAPE)
        nodes = (
            place.attach("n.img", "nvme-tcp"),
            "/dev/nvme0n1",
            place.sh(MODULES + target_script("/dev/nullb0")).stdout.strip(),
        )
        assert len(set(nodes)) == 3
        for node in nodes:
            place.sh(
                f"""blkzone reset {node}
                dd if=/dev/zero of={node} bs=4k count=3 oflag=direct status=none
                blkzone finish -o {ZONE_BLOCKS * 8} -c 1 {node}
                blkzone open -o {2 * ZONE_BLOCKS * 8} -c 1 {node}
                blkzone report {node} >{node.removeprefix("/dev/")}"""
            )
        # To the kernel, their zones are the same, and so are their limits but for the length of an append.
        ours, qemu, target = (node.removeprefix("/dev/") for node in nodes)
        place.sh(f"diff {ours} {qemu}; diff {ours} {target}")
        limits = [place.limits(node) for node in nodes]
        appends = [int(each.pop("zone_append_max_bytes")) for each in limits]
        assert appends == [512 << 10, 512 << 10, 64 << 10]
        assert limits[0] == limits[1] == limits[2]
        found = [identified(place, node) for node in nodes]
        place.sh("nvme disconnect -n peer >&2")
    for words, names in EQUAL.items():
        for name in names:
            assert found[0][words][name] == found[1][words][name] == found[2][words][name], (words, name)
    for (words, name), values in DIFFERENT.items():
        assert tuple(each[words][name] for each in found) == values, (words, name)
    zones = [each["zns report-zones"]["zone_list"] for each in found]
    assert len(zones[0]) == NR_ZONES
    assert zones[0] == zones[1]
    # The write pointer of a full zone means nothing: two drives say all ones, the kernel's target the end of the zone.
    assert (zones[0][1]["wp"], zones[2][1]["wp"]) == ((1 << 64) - 1, 2 * ZONE_BLOCKS)
    for each in zones:
        each[1]["wp"] = None
    assert zones[0] == zones[2]
