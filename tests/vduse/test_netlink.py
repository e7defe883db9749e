"""Generic netlink by the bytes, and against the running kernel's own families."""

import errno
from pathlib import Path

import pytest

from zonefs_emu.vduse import netlink


def test_attributes_both_ways() -> None:
    data = netlink.text(2, "vduse") + netlink.text(4, "abc")
    assert data[:12] == b"\x0a\x00\x02\x00vduse\0\0\0"
    assert list(netlink.attributes(data)) == [(2, b"vduse\0"), (4, b"abc\0")]
    assert list(netlink.attributes(b"\x00\x00\x02\x00")) == []  # no end otherwise
    assert list(netlink.attributes(b"\x08")) == []


def test_a_kernel_without_the_bus_says_so() -> None:
    if Path("/sys/bus/vdpa").exists():
        pytest.skip("this kernel has the vdpa bus")
    for call in (netlink.add, netlink.remove):
        with pytest.raises(OSError, match="No such file") as caught:
            call("none")
        assert caught.value.errno == errno.ENOENT
