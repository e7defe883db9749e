"""The shapes of the disks that suites run on, and the commit that is said of a run."""

import re

from tools.conformance.devices import OURS, PEERS, SHAPES, commit


def test_shapes_in_words() -> None:
    small = SHAPES["small"]
    limit = "blocks of 4096 bytes, at most 128 open"
    assert small.words(conventional=True) == f"256 zones of 1 MiB, 16 of them conventional, {limit}"
    assert small.words(conventional=False) == f"256 zones of 1 MiB, {limit}"
    assert SHAPES["medium"].words(conventional=False) == "128 zones of 16 MiB, blocks of 4096 bytes", "without a limit"
    assert SHAPES["large"].mib << 20 == 0x3E70000000 + (256 << 20), "the last zone that QEMU's test reports"
    assert not set(OURS) & set(PEERS)


def test_the_commit_is_one_of_the_emulator() -> None:
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", commit())
