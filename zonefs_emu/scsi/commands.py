"""The table of commands of the target. The lengths of CDBs and REPORT SUPPORTED OPERATION CODES are made from it.

May not know: the effect of commands.
Invariant: one row per (operation code, service action); the length of a row's usage map is the length of its CDB.

Sources: SPC-4, SBC-3, ZBC-2; the usage map is the "CDB usage data" of REPORT SUPPORTED OPERATION CODES.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple


class Opcode(IntEnum):
    """Operation codes."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    SEND_DIAGNOSTIC = 0x1D
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    ZBC_OUT = 0x94
    ZBC_IN = 0x95
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF


REPORT_ZONES: Final = 0x00
CLOSE_ZONE: Final = 0x01
FINISH_ZONE: Final = 0x02
OPEN_ZONE: Final = 0x03
RESET_WRITE_POINTER: Final = 0x04
READ_CAPACITY_16: Final = 0x10
REPORT_SUPPORTED_OPERATION_CODES: Final = 0x0C

#: NACA in the CONTROL byte: the target has no auto contingent allegiance (NORMACA is 0), so it must be zero.
NACA: Final = 0x04

#: Operation codes of commands that query features of a disk. For Linux and its tools, the refusal of such a command
#: means that the disk lacks the feature, so the refusal is not noted for ``why``. The numbers are RECEIVE DIAGNOSTIC
#: RESULTS, LOG SENSE, PERSISTENT RESERVE IN, ATA PASS-THROUGH(16), ATA PASS-THROUGH(12) and SECURITY PROTOCOL IN, which
#: the target does not have.
ENQUIRIES: Final = frozenset({
    Opcode.TEST_UNIT_READY, Opcode.REQUEST_SENSE, Opcode.INQUIRY, Opcode.MODE_SENSE_6, Opcode.MODE_SENSE_10,
    Opcode.READ_CAPACITY_10, Opcode.SERVICE_ACTION_IN_16, Opcode.REPORT_LUNS, Opcode.MAINTENANCE_IN,
    0x1C, 0x4D, 0x5E, 0x85, 0xA1, 0xA2,
})  # fmt: skip


class TableRow(NamedTuple):
    """One command of the target. *service_action* is None if the operation code has no service actions.

    *usage* is as long as the CDB: the operation code and the service action in their places, and ones for the other
    fields that the target supports. A field without an effect (DPO, IMMED) has ones too.
    """

    name: str
    opcode: Opcode
    service_action: int | None
    usage: bytes


def _command(name: str, opcode: Opcode, usage: str, service_action: int | None = None) -> TableRow:
    """Return a row; *usage* is hexadecimal, from byte 1 on, with zeros for the service action (byte 1, bits 4 to 0)."""
    data = bytearray((opcode,)) + bytes.fromhex(usage)
    data[1] |= service_action or 0
    return TableRow(name, opcode, service_action, bytes(data))


COMMANDS: Final = (
    _command("TEST UNIT READY", Opcode.TEST_UNIT_READY, "00 000000 04"),
    _command("REQUEST SENSE", Opcode.REQUEST_SENSE, "01 0000ff 04"),
    _command("READ(6)", Opcode.READ_6, "1fffff ff 04"),
    _command("WRITE(6)", Opcode.WRITE_6, "1fffff ff 04"),
    _command("INQUIRY", Opcode.INQUIRY, "01 ff ffff 04"),
    _command("MODE SELECT(6)", Opcode.MODE_SELECT_6, "11 0000ff 04"),
    _command("MODE SENSE(6)", Opcode.MODE_SENSE_6, "08 ff ff ff 04"),
    _command("START STOP UNIT", Opcode.START_STOP_UNIT, "01 00 0f f7 04"),
    _command("SEND DIAGNOSTIC", Opcode.SEND_DIAGNOSTIC, "04 00 0000 04"),
    _command("READ CAPACITY(10)", Opcode.READ_CAPACITY_10, "00 00000000 0000 00 04"),
    _command("READ(10)", Opcode.READ_10, "f8 ffffffff 00 ffff 04"),
    _command("WRITE(10)", Opcode.WRITE_10, "f8 ffffffff 00 ffff 04"),
    _command("VERIFY(10)", Opcode.VERIFY_10, "f6 ffffffff 00 ffff 04"),
    _command("SYNCHRONIZE CACHE(10)", Opcode.SYNCHRONIZE_CACHE_10, "02 ffffffff 00 ffff 04"),
    _command("MODE SELECT(10)", Opcode.MODE_SELECT_10, "11 0000000000 ffff 04"),
    _command("MODE SENSE(10)", Opcode.MODE_SENSE_10, "18 ff ff 000000 ffff 04"),
    _command("READ(16)", Opcode.READ_16, "f8 ffffffffffffffff ffffffff 00 04"),
    _command("WRITE(16)", Opcode.WRITE_16, "f8 ffffffffffffffff ffffffff 00 04"),
    _command("VERIFY(16)", Opcode.VERIFY_16, "f6 ffffffffffffffff ffffffff 00 04"),
    _command("SYNCHRONIZE CACHE(16)", Opcode.SYNCHRONIZE_CACHE_16, "02 ffffffffffffffff ffffffff 00 04"),
    _command("CLOSE ZONE", Opcode.ZBC_OUT, "00 ffffffffffffffff 0000 ffff 01 04", CLOSE_ZONE),
    _command("FINISH ZONE", Opcode.ZBC_OUT, "00 ffffffffffffffff 0000 ffff 01 04", FINISH_ZONE),
    _command("OPEN ZONE", Opcode.ZBC_OUT, "00 ffffffffffffffff 0000 ffff 01 04", OPEN_ZONE),
    _command("RESET WRITE POINTER", Opcode.ZBC_OUT, "00 ffffffffffffffff 0000 ffff 01 04", RESET_WRITE_POINTER),
    _command("REPORT ZONES", Opcode.ZBC_IN, "00 ffffffffffffffff ffffffff bf 04", REPORT_ZONES),
    _command("READ CAPACITY(16)", Opcode.SERVICE_ACTION_IN_16, "00 0000000000000000 ffffffff 00 04", READ_CAPACITY_16),
    _command("REPORT LUNS", Opcode.REPORT_LUNS, "00 ff 000000 ffffffff 00 04"),
    _command(
        "REPORT SUPPORTED OPERATION CODES",
        Opcode.MAINTENANCE_IN,
        "00 87 ff ffff ffffffff 00 04",
        REPORT_SUPPORTED_OPERATION_CODES,
    ),
    _command("READ(12)", Opcode.READ_12, "f8 ffffffff ffffffff 00 04"),
    _command("WRITE(12)", Opcode.WRITE_12, "f8 ffffffff ffffffff 00 04"),
    _command("VERIFY(12)", Opcode.VERIFY_12, "f6 ffffffff ffffffff 00 04"),
)

#: CDB length by operation code; 0 where the operation code is not supported.
CDB_LENGTHS: Final = tuple(
    next((len(command.usage) for command in COMMANDS if command.opcode == opcode), 0) for opcode in range(256)
)

#: CDB lengths of commands that the target does not have, by group code (the upper three bits of the operation code).
#: Groups 3, 6 and 7 have no fixed length; transports pass at most 32 bytes. Source: SPC-4, "OPERATION CODE field".
_GROUP_LENGTHS: Final = (6, 10, 10, 32, 16, 12, 32, 32)
_HAS_SERVICE_ACTION: Final = frozenset(command.opcode for command in COMMANDS if command.service_action is not None)
_DESCRIPTOR: Final = struct.Struct(">BBHBBH")
#: "Command timeouts descriptor": length 0Ah and no times. Source: SPC-4.
_NO_TIMEOUTS: Final = b"\x00\x0a" + bytes(10)
_NOT_SUPPORTED: Final = 0x01
_SUPPORTED: Final = 0x03
_CTDP: Final = 0x80


def supported_commands(*, timeouts: bool) -> bytes:
    """Return the "all commands" parameter data of REPORT SUPPORTED OPERATION CODES; *timeouts* is its RCTD bit."""
    parts = []
    for command in COMMANDS:
        flags = (0x02 if timeouts else 0) | (0x01 if command.service_action is not None else 0)
        parts.append(_DESCRIPTOR.pack(command.opcode, 0, command.service_action or 0, 0, flags, len(command.usage)))
        if timeouts:
            parts.append(_NO_TIMEOUTS)
    data = b"".join(parts)
    return len(data).to_bytes(4, "big") + data


def one_command(option: int, opcode: int, service_action: int, *, timeouts: bool) -> bytes | None:
    """Return the "one command" parameter data for *opcode*, or None if reporting *option* (1 to 3) does not suit it.

    Option 1 is for operation codes without service actions, 2 for those with service actions, 3 for both. A command
    that the target does not have gets SUPPORT = 001b.

    Source: SPC-4, "REPORT SUPPORTED OPERATION CODES command".
    """
    has_service_action = opcode in _HAS_SERVICE_ACTION
    if (option == 1 and has_service_action) or (option == 2 and not has_service_action and CDB_LENGTHS[opcode]):
        return None
    wanted = service_action if has_service_action else None
    for command in COMMANDS:
        if command.opcode == opcode and command.service_action == wanted:
            tail = _NO_TIMEOUTS if timeouts else b""
            support = _SUPPORTED | (_CTDP if timeouts else 0)
            return bytes((0, support)) + len(command.usage).to_bytes(2, "big") + command.usage + tail
    return bytes((0, _NOT_SUPPORTED, 0, 0))


def describe(cdb: bytes | bytearray | memoryview, wrong: str = "") -> str:
    """Return a text for people: the name of the command in *cdb*, its bytes, and what is *wrong* with them."""
    if not len(cdb):
        return "a CDB of no bytes"
    opcode = cdb[0]
    action = cdb[1] & 0x1F if opcode in _HAS_SERVICE_ACTION and len(cdb) > 1 else None
    name = next(
        (command.name for command in COMMANDS if (command.opcode, command.service_action) == (opcode, action)),
        f"command {opcode:02X}h",
    )
    data = bytes(cdb[: CDB_LENGTHS[opcode] or _GROUP_LENGTHS[opcode >> 5]]).hex(" ")
    return f"{name} (CDB {data}{', ' if wrong else ''}{wrong})"
