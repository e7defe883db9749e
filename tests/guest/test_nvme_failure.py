"""What Linux does when the image of an NVMe drive fails, which its driver learns by an event."""

import pytest

from tests.attaching import Place
from tests.nvme_drives import SHAPE
from tests.nvme_targets import connect, image_of, serve

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]


def test_a_failed_namespace_is_read_only(place: Place) -> None:
    """Another program cuts the image's file; the daemon notices it without a command of the host."""
    with image_of(place, SHAPE):
        serve(place)
        assert connect(place) == "/dev/nvme0n1"
        assert place.sh("cat /sys/block/nvme0n1/ro").stdout.strip() == "0"
        place.sh(
            """truncate -s -4096 n.img
            until [ $(cat /sys/block/nvme0n1/ro) = 1 ]; do sleep 0.5; done"""
        )
        assert "1" in place.sh("nvme id-ns /dev/nvme0n1 | grep nsattr").stdout
        found = place.sh("nvme smart-log /dev/nvme0 | grep critical_warning").stdout
        assert found.split(":")[1].strip() == "0xc", "it was the only namespace"
