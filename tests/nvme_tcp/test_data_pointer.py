"""The rules on values alone; test_queue_connection.py has them on the wire."""

import pytest

from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme.command import Command, IoOpcode
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme_tcp import data_pointer

CAPSULE = memoryview(bytes(range(100)))
NONE = CAPSULE[:0]


def command(kind: int, length: int, *, offset: int = 0, flags: int = 0x40) -> Command:
    return Command(IoOpcode.WRITE, flags, 1, 1, 0, offset, length | kind << 56, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("flags", [0x00, 0x80, 0xC0, 0x41, 0x42, 0x43])
def test_a_command_has_an_sgl_descriptor(flags: int) -> None:
    with pytest.raises(RefusedError) as caught:
        data_pointer.require_sgl(command(0x5A, 0, flags=flags))
    assert caught.value.rule is NvmeRule.NVME_FIELD
    data_pointer.require_sgl(command(0x5A, 0))
    data_pointer.require_sgl(command(0x5A, 0, flags=0x7C))  # reserved bits are not looked at


def test_where_data_are() -> None:
    assert data_pointer.data_in_capsule(command(0x01, 100), CAPSULE, 100) == CAPSULE
    assert data_pointer.data_in_capsule(command(0x01, 60, offset=40), CAPSULE, 60) == CAPSULE[40:]
    assert data_pointer.data_in_capsule(command(0x5A, 100), NONE, 100) is None
    data_pointer.require_transport(command(0x5A, 100), NONE)


@pytest.mark.parametrize(
    ("kind", "length", "offset", "capsule", "rule"),
    [
        # Data block at an address, keyed, segment, other types and subtypes.
        *((kind, 100, 0, CAPSULE, NvmeRule.NVME_SGL_TYPE) for kind in (0x00, 0x02, 0x10, 0x20, 0x31, 0x40, 0x5B, 0xFF)),
        *((kind, 100, 0, NONE, NvmeRule.NVME_SGL_TYPE) for kind in (0x00, 0x50, 0x51, 0x4A)),
        (0x5A, 100, 0, CAPSULE, NvmeRule.NVME_SGL_TYPE),
        (0x01, 100, 100, CAPSULE, NvmeRule.NVME_SGL_OFFSET),
        (0x01, 100, 1 << 63, CAPSULE, NvmeRule.NVME_SGL_OFFSET),
        (0x01, 100, 1, NONE, NvmeRule.NVME_SGL_OFFSET),
        (0x01, 100, 1, CAPSULE, NvmeRule.NVME_DATA_LENGTH),
        (0x01, 100, 0, NONE, NvmeRule.NVME_DATA_LENGTH),
        (0x01, 99, 0, CAPSULE, NvmeRule.NVME_DATA_LENGTH),
        (0x01, 101, 0, CAPSULE, NvmeRule.NVME_DATA_LENGTH),
        (0x5A, 99, 0, NONE, NvmeRule.NVME_DATA_LENGTH),
        (0x5A, 101, 0, NONE, NvmeRule.NVME_DATA_LENGTH),
    ],
)
def test_refusals(kind: int, length: int, offset: int, capsule: memoryview, rule: NvmeRule) -> None:
    with pytest.raises(RefusedError) as caught:
        data_pointer.data_in_capsule(command(kind, length, offset=offset), capsule, 100)
    assert caught.value.rule is rule


@pytest.mark.parametrize(("kind", "capsule"), [(0x01, NONE), (0x00, NONE), (0x5A, CAPSULE)])
def test_returned_data_are_never_in_the_capsule(kind: int, capsule: memoryview) -> None:
    with pytest.raises(RefusedError) as caught:
        data_pointer.require_transport(command(kind, 100), capsule)
    assert caught.value.rule is NvmeRule.NVME_SGL_TYPE


def test_lengths_in_a_refusal() -> None:
    assert data_pointer.length_error(512, 4096).what == "512 bytes are described, 4096 are moved"
