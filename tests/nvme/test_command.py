import struct

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.nvme import command
from zonefs_emu.nvme.command import Command, IoOpcode


def test_layout_of_an_entry() -> None:
    """Base Specification, "Submission Queue Entry": a write of 5 blocks at block 2^32 + 2 with Force Unit Access."""
    entry = bytes.fromhex(
        "01 40 3412 02000000"  # opcode, flags, command identifier, namespace
        "0000000000000000"  # CDW2, CDW3
        "8877665544332211"  # MPTR
        "0010000000000000 0000010000000001"  # PRP1, PRP2
        "02000000 01000000"  # CDW10, CDW11: starting block
        "04000040"  # CDW12: blocks less one, FUA
        "0d000000 0e000000 0f000000"
    )
    found = command.parse(entry)
    assert (found.opcode, found.flags, found.cid, found.nsid) == (IoOpcode.WRITE, 0x40, 0x1234, 2)
    assert (found.mptr, found.prp1, found.prp2) == (0x1122334455667788, 0x1000, 0x0100000000010000)
    assert (found.slba, found.nr_blocks, found.cdw12 >> 30) == ((1 << 32) + 2, 5, 1)
    assert (found.cdw13, found.cdw14, found.cdw15) == (13, 14, 15)
    assert command.encode(found) == entry
    assert command.parse(b"\xff" + entry, 1) == found


@given(st.binary(min_size=64, max_size=64))
def test_any_entry_can_be_parsed_and_written_again_but_for_reserved_bytes(entry: bytes) -> None:
    found = command.parse(entry)
    assert command.encode(found) == entry[:8] + bytes(8) + entry[16:]
    assert 1 <= found.nr_blocks <= 65536
    assert 0 <= found.slba < 1 << 64


def test_a_short_entry_is_no_command() -> None:
    with pytest.raises(struct.error):
        command.parse(bytes(63))


def test_names() -> None:
    assert command.name_of(0x7D, admin=False) == "zone append"
    assert command.name_of(0x06, admin=True) == "identify"
    assert command.name_of(0xC1, admin=False) == "opcode C1h"
    assert Command._fields[-1] == "cdw15"
