"""The shapes of the disks that suites run on, and the commit that is said of a run."""

import re

from tools.conformance.devices import MOUNT, OURS, PEERS, SHAPES, commit, create_options, place_of


def test_shapes_in_words() -> None:
    small = SHAPES["small"]
    limit = "blocks of 4096 bytes, at most 128 open"
    assert small.words(conventional=True) == f"256 zones of 1 MiB, 16 of them conventional, {limit}"
    assert small.words(conventional=False) == f"256 zones of 1 MiB, {limit}"
    assert SHAPES["medium"].words(conventional=False) == "128 zones of 16 MiB, blocks of 4096 bytes", "without a limit"
    assert SHAPES["large"].mib << 20 == 0x3E70000000 + (256 << 20), "the last zone that QEMU's test reports"
    found = SHAPES["capacity"].words(conventional=False)
    limits = "at most 12 open and 14 active"
    assert found == f"64 zones of 4 MiB with a capacity of 3 MiB, blocks of 512 bytes, {limits}"
    assert place_of("s", "NVMe", "small") == ("s", "NVMe", small.words(conventional=False))
    assert not set(OURS) & set(PEERS)


def test_a_disk_of_each_shape_is_created_as_it_says() -> None:
    assert (
        create_options("NVMe", SHAPES["small"]) == "--size 256M --zone-size 1M --block-size 4096 --max-open-zones 128"
    )
    capacity = create_options("virtio", SHAPES["capacity"])
    assert capacity.endswith("--zone-capacity 3M --max-open-zones 12 --max-active-zones 14")
    assert "active" not in create_options("SCSI", SHAPES["capacity"])
    assert "--nr-conv 8" in create_options(MOUNT, SHAPES["limited"])


def test_the_commit_is_one_of_the_emulator() -> None:
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", commit())
