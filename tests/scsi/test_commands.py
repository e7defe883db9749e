import struct

import pytest

from tests.scsi.disks import from_hex
from zonefs_emu.scsi.commands import (
    CDB_LENGTHS,
    COMMANDS,
    Opcode,
    TableRow,
    describe,
    one_command,
    supported_commands,
)

#: CDB length by the group code (bits 7:5 of the operation code). Source: SPC-4, "Fixed length CDB formats".
GROUP_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}


def test_every_operation_code_has_a_row_and_rows_are_unique() -> None:
    assert {command.opcode for command in COMMANDS} == set(Opcode)
    keys = [(command.opcode, command.service_action) for command in COMMANDS]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys, key=lambda key: (key[0], key[1] or 0))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_length_follows_from_the_group_code(command: TableRow) -> None:
    assert len(command.usage) == GROUP_LENGTHS[command.opcode >> 5] == CDB_LENGTHS[command.opcode]
    assert command.usage[0] == command.opcode
    assert command.usage[-1] == 0x04  # NACA is looked at


def test_all_commands() -> None:
    data = supported_commands(timeouts=False)
    assert struct.unpack_from(">I", data) == (len(data) - 4,)
    found = [(opcode, action, length) for opcode, action, _, length in struct.iter_unpack(">BxHxBH", data[4:])]
    assert found == [(c.opcode, c.service_action or 0, len(c.usage)) for c in COMMANDS]
    assert from_hex("94 00 0004 00 01 0010  # ZBC OUT, RESET WRITE POINTER, SERVACTV, 16 bytes") in data


def test_all_commands_with_timeouts() -> None:
    data = supported_commands(timeouts=True)
    assert len(data) == 4 + 20 * len(COMMANDS)
    assert data[4:24] == from_hex("""
        00            # 0 TEST UNIT READY
        00            # 1 reserved
        00 00         # 2 service action
        00            # 4 reserved
        02            # 5 CTDP: a timeouts descriptor follows
        00 06         # 6 CDB length
        00 0a         # 8 descriptor length
        00 00         # 10 reserved, command specific
        00 00 00 00   # 12 nominal time: none
        00 00 00 00   # 16 recommended time-out: none
    """)


def test_one_command() -> None:
    assert one_command(1, 0x88, 0, timeouts=False) == from_hex("""
        00                                                # 0 reserved
        03                                                # 1 SUPPORT: as the standard says
        00 10                                             # 2 CDB length
        88 f8 ff ff ff ff ff ff ff ff ff ff ff ff 00 04   # 4 usage: protection, DPO, FUA, LBA, length, NACA
    """)
    assert one_command(2, 0x94, 0x04, timeouts=True) == from_hex("""
        00                                                # 0 reserved
        83                                                # 1 CTDP, supported
        00 10                                             # 2 CDB length
        94 04 ff ff ff ff ff ff ff ff 00 00 ff ff 01 04   # 4 usage: service action 04h, ZONE ID, ZONE COUNT, ALL, NACA
        00 0a 00 00 00 00 00 00 00 00 00 00               # 20 timeouts descriptor
    """)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.service_action is not None])
def test_usage_data_has_the_service_action_itself(command: TableRow) -> None:
    """And no mask of its field: that is what tells which of the commands of one operation code is meant."""
    assert command.service_action is not None
    data = one_command(2, command.opcode, command.service_action, timeouts=False)
    assert data is not None
    assert data[4:6] == bytes((command.opcode, command.service_action))


@pytest.mark.parametrize(
    ("option", "opcode", "action"),
    [(1, 0x93, 0), (1, 0x41, 0), (3, 0x88, 0), (3, 0x7F, 0x0009), (2, 0x7F, 0x000B), (3, 0x94, 0x10)],
)
def test_what_linux_probes_for(option: int, opcode: int, action: int) -> None:
    """WRITE SAME and command duration limits: a clean "not supported", not an error. READ(16) is there."""
    data = one_command(option, opcode, action, timeouts=False)
    assert data is not None
    assert data[1] == (0x03 if opcode == 0x88 else 0x01)


@pytest.mark.parametrize(("option", "opcode"), [(1, 0x94), (1, 0x9E), (1, 0xA3), (2, 0x88), (2, 0x12)])
def test_option_that_does_not_suit_the_operation_code(option: int, opcode: int) -> None:
    assert one_command(option, opcode, 0, timeouts=False) is None


@pytest.mark.parametrize(
    ("cdb", "wrong", "text"),
    [
        (b"", "", "a CDB of no bytes"),
        (bytes(32), "", "TEST UNIT READY (CDB 00 00 00 00 00 00)"),
        (b"\x94\x04".ljust(32, b"\0"), "byte 1", "RESET WRITE POINTER (CDB 94 04" + " 00" * 14 + ", byte 1)"),
        (b"\x94\x1f".ljust(32, b"\0"), "", "command 94h (CDB 94 1f" + " 00" * 14 + ")"),
        (b"\x94", "", "command 94h (CDB 94)"),
        (b"\x42".ljust(32, b"\0"), "", "command 42h (CDB 42" + " 00" * 9 + ")"),
        (b"\x7f".ljust(32, b"\1"), "", "command 7Fh (CDB 7f" + " 01" * 31 + ")"),
    ],
)
def test_commands_for_people(cdb: bytes, wrong: str, text: str) -> None:
    assert describe(cdb, wrong) == text
    assert describe(memoryview(cdb), wrong) == text
