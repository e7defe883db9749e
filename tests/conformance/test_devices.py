"""The shapes of the disks that suites run on."""

from tools.conformance.devices import OURS, PEERS, SHAPES
from tools.conformance.suites import SUITES


def test_shapes_in_words() -> None:
    small = SHAPES["small"]
    assert small.words(conventional=True) == "256 zones of 1 MiB, 16 of them conventional, blocks of 4096 bytes"
    assert small.words(conventional=False) == "256 zones of 1 MiB, blocks of 4096 bytes"
    assert SHAPES["large"].mib << 20 == 0x3E70000000 + (256 << 20), "the last zone that QEMU's test reports"


def test_every_suite_has_a_shape() -> None:
    assert {suite.shape for suite in SUITES.values()} <= set(SHAPES)
    assert not set(OURS) & set(PEERS)
