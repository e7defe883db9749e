"""What Linux does when the image of an NVMe drive fails, which its driver learns by an event."""

import pytest

from tests.attaching import Place
from tests.guest.test_nvme_tcp import connect, serve
from tests.nvme_drives import SHAPE

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(2700)]


def test_a_failed_namespace_is_read_only(place: Place) -> None:
    """Another program cuts the image's file; the daemon notices it without a command of the host."""
    place.guest.load("nvme_tcp")
    place.sh("ip link set lo up")
    place.create("n.img", SHAPE)
    serve(place)
    connect(place)
    assert place.sh("cat /sys/block/nvme0n1/ro").stdout.strip() == "0"
    place.sh(
        """truncate -s -4096 n.img
        until [ $(cat /sys/block/nvme0n1/ro) = 1 ]; do sleep 0.5; done"""
    )
    assert "1" in place.sh("nvme id-ns /dev/nvme0n1 | grep nsattr").stdout
    place.sh("nvme disconnect-all; pkill -f 'serve n.img' || true", check=False)
