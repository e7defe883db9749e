import struct

import pytest
from hypothesis import given, strategies as st

from tests.scsi.disks import (
    GAP_IN_RUNT,
    GAPS,
    MIXED,
    MIXED_4K,
    RUNT,
    ZONE,
    from_hex,
    new_initiator,
)
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.scsi import commands
from zonefs_emu.scsi.cdb import parse
from zonefs_emu.scsi.commands import COMMANDS, ENQUIRIES
from zonefs_emu.scsi.result import GOOD, ScsiStatus
from zonefs_emu.scsi.target import REPORT_LUNS_WLUN

INVALID_OPCODE = (0x5, 0x20, 0x00)
INVALID_FIELD = (0x5, 0x24, 0x00)
INVALID_PARAMETER = (0x5, 0x26, 0x00)

READ_16 = """
    88                        #  0 READ(16)
    00                        #  1 no protection, DPO 0, FUA 0
    00 00 00 00 00 00 00 01   #  2 LBA 1
    00 00 00 02               # 10 2 blocks
    00                        # 14 group number
    00                        # 15 control
"""
WRITE_16 = """
    8a                        #  0 WRITE(16)
    00                        #  1 flags
    00 00 00 00 00 00 00 01   #  2 LBA
    00 00 00 02               # 10 blocks
    00                        # 14 group number
    00                        # 15 control
"""

# -- everything else ----------------------------------------------------------------------------------------------


def test_commands_of_a_linux_boot() -> None:
    """The CDBs that Linux 6.12 sends to bind the disk, in its order; None means done, else what it is refused with."""
    trace: list[tuple[str, int, tuple[int, int, int] | None]] = [
        ("a0 00 00 000000 00001000 00 00", 4096, None),  # REPORT LUNS
        ("12 00 00 0024 00", 36, None),  # INQUIRY
        ("12 01 00 00ff 00", 255, None),  # supported VPD pages
        ("12 01 80 0004 00", 4, None),  # serial number: length first, then all
        ("12 01 80 00ff 00", 255, None),
        ("12 01 83 00ff 00", 255, None),
        ("12 01 b0 00ff 00", 255, None),
        ("12 01 b1 00ff 00", 255, None),
        ("12 01 b2 00ff 00", 255, None),
        ("a3 0c 01 88 0000 00000200 00 00", 512, None),  # command duration limits?
        ("a3 0c 01 8a 0000 00000200 00 00", 512, None),
        ("a3 0c 02 7f 0009 00000200 00 00", 512, None),
        ("a3 0c 02 7f 000b 00000200 00 00", 512, None),
        ("00 00 0000 00 00", 0, None),  # TEST UNIT READY
        ("9e 10 0000000000000000 00000020 00 00", 32, None),  # READ CAPACITY(16)
        ("12 01 b6 0040 00", 64, None),
        ("95 00 0000000000000000 00000200 00 00", 512, None),  # REPORT ZONES
        ("1a 00 3f 00 04 00", 4, None),  # MODE SENSE(6)
        ("1a 00 08 00 04 00", 4, None),
        ("1a 00 08 00 18 00", 24, None),
        ("5a 00 0a 05 000000 0040 00", 64, INVALID_FIELD),  # MODE SENSE(10), a subpage we do not have
        ("a3 0c 01 12 0000 00000014 00 00", 20, None),
        ("a3 0c 01 93 0000 00000014 00 00", 20, None),  # WRITE SAME?
        ("a3 0c 01 41 0000 00000014 00 00", 20, None),
        ("95 00 0000000000000000 00000400 80 00", 1024, None),  # REPORT ZONES, partial
        ("88 00 0000000000000000 00000008 00 00", 4096, None),
        ("91 00 0000000000000000 00000000 00 00", 0, None),  # SYNCHRONIZE CACHE(16)
        ("94 04 0000000000000000 0000 0000 01 00", 0, None),  # RESET ALL
    ]
    with new_initiator(MIXED) as disk:
        for cdb, room, code in trace:
            assert disk.send(bytes.fromhex(cdb), room=room).code == code, cdb


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - {command.opcode for command in COMMANDS}))
def test_operation_codes_that_are_not_there(opcode: int) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes((opcode,)).ljust(32, b"\0")).code == INVALID_OPCODE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_short_cdbs_and_naca_are_refused(command: commands.TableRow) -> None:
    cdb = bytearray(len(command.usage))
    cdb[0], cdb[1] = command.opcode, command.service_action or 0
    with new_initiator(MIXED) as disk:
        for length in range(len(cdb)):
            assert disk.send(bytes(cdb[:length])).code == INVALID_FIELD
        cdb[-1] = commands.NACA
        reply = disk.send(bytes(cdb))
        assert reply.code == INVALID_FIELD
        assert reply.result.sense[15:18] == bytes((0xC0, 0, len(cdb) - 1))


@pytest.mark.parametrize(
    "cdb",
    [
        "12 02 00 0024 00",  # CMDDT
        "12 00 80 0024 00",  # a page without EVPD
        "12 01 89 0024 00",  # a page we do not have
        "9e 12 0000000000000000 00000020 00 00",  # GET LBA STATUS
        "a0 00 10 000000 00001000 00 00",
        "a3 0a 00 00 0000 00001000 00 00",  # REPORT TARGET PORT GROUPS
        "a3 0c 04 88 0000 00001000 00 00",
        "a3 0c 01 94 0000 00001000 00 00",  # has service actions
        "1b 00 00 00 02 00",  # eject
        "1b 00 00 00 30 00",  # standby
        "1d 24 00 0000 00",  # background self-test
        "1d 00 00 0001 00",  # diagnostic page
        "8f 04 0000000000000000 00000001 00 00",  # BYTCHK 10b
        "15 00 00 00 04 00",  # MODE SELECT without PF
        "15 11 00 00 04 00",  # ... with SP
    ],
)  # fmt: skip
def test_fields_that_are_refused(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), out=bytes(4), room=4096).code == INVALID_FIELD


@pytest.mark.parametrize("cdb", ["1a 00 c8 00 ff 00", "5a 00 c8 00 000000 00ff 00"])
def test_saved_mode_pages_are_not_there(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), room=255).code == (0x5, 0x39, 0x00)


@pytest.mark.parametrize(
    "cdb", ["1b 00 00 00 01 00", "1b 00 00 00 04 00", "1d 04 00 0000 00", "1d 00 00 0000 00", "15 10 00 00 00 00"]
)
def test_commands_that_do_nothing(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb)).result is GOOD


@pytest.mark.parametrize(
    "cdb", ["35 00 00000000 00 0000 00", "91 02 0000000000000000 00000008 00 00", "1b 00 00 00 00 00"]
)
def test_commands_that_flush(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        before = disk.device.statistics()["flushes"]
        assert disk.send(bytes.fromhex(cdb)).result is GOOD
        assert disk.device.statistics()["flushes"] == before + 1


def test_request_sense_has_nothing_to_say() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("03 00 0000 ff 00"), room=255)
        assert reply.data == bytes.fromhex("70 00 00 00000000 0a 00000000 00 00 00 000000")
        assert disk.send(bytes.fromhex("03 01 0000 ff 00"), room=255).data == bytes.fromhex("72 00 00 00 000000 00")


def test_descriptor_sense_is_chosen_by_the_control_mode_page() -> None:
    page = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=page).result == GOOD
        reply = disk.write(2 * ZONE + 1, 1)
        assert reply.result.sense == bytes.fromhex("72 05 21 04 000000 00")
        disk.target.disk.reset()
        assert disk.write(2 * ZONE + 1, 1).result.sense[0] == 0x70


def test_without_write_cache_every_write_is_flushed() -> None:
    page = bytes(8) + bytes.fromhex("08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000")
    with new_initiator(MIXED) as disk:
        before = disk.device.statistics()["flushes"]
        assert not disk.target.may_block(0, parse(from_hex(WRITE_16)))
        assert disk.send(bytes.fromhex("55 10 0000000000 001c 00"), out=page).result == GOOD
        assert disk.device.statistics()["flushes"] == before + 1  # what was written before becomes stable too
        assert disk.target.may_block(0, parse(from_hex(WRITE_16)))
        assert disk.write(0, 1).result is GOOD
        assert disk.device.statistics()["flushes"] == before + 2


def test_mode_select_that_is_refused() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("15 10 00 00 06 00"), out=bytes(4) + b"\x02\x0e")
        assert reply.code == INVALID_PARAMETER
        assert reply.result.sense[15:18] == bytes.fromhex("80 00 04")
        assert disk.send(bytes.fromhex("15 10 00 00 03 00"), out=bytes(3)).code == (0x5, 0x1A, 0x00)
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=bytes(15)).result.overrun


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (b"", False),
        (b"\x8a", False),
        (from_hex(WRITE_16), False),
        (from_hex(READ_16), False),
        (bytes.fromhex("8a 08 0000000000000000 00000001 00 00"), True),
        (bytes.fromhex("0a 08 0000 01 00"), False),  # in WRITE(6) these bits are the LBA's
        (bytes.fromhex("35 00 00000000 00 0000 00"), True),
        (bytes.fromhex("94 04 0000000000000000 0000 0000 01 00"), True),
        (bytes.fromhex("88 00 0000000000000000 00003fff 00 00"), False),
        (bytes.fromhex("88 00 0000000000000000 00004000 00 00"), True),  # 8 MiB
        (bytes.fromhex("8a 00 0000000000000000 00003fff 00 00"), False),
        (bytes.fromhex("8a 00 0000000000000000 00004000 00 00"), True),
        (bytes.fromhex("8a 00 ffffffffffffffff 00000001 00 00"), False),  # beyond the device: refused at once
        (bytes.fromhex("12 00 00 0024 00"), False),
    ],
)
def test_may_block(cdb: bytes, expected: bool) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.target.may_block(0, parse(cdb)) is expected


def test_a_write_after_a_reset_may_block_until_the_reset_is_durable() -> None:
    with new_initiator(MIXED) as disk:
        write = parse(struct.pack(">BBQIBB", 0x8A, 0, 3 * ZONE, 1, 0, 0))
        assert disk.write(3 * ZONE, 1).result is GOOD
        assert disk.port.flush() is Status.OK
        assert not disk.target.may_block(0, write)
        assert disk.reset(3 * ZONE).code is None
        assert disk.target.may_block(0, write)
        assert not disk.target.may_block(REPORT_LUNS_WLUN, write)
        assert disk.port.flush() is Status.OK
        assert not disk.target.may_block(0, write)


@pytest.mark.parametrize(
    ("status", "on_read", "on_write"),
    [
        (Status.IO_ERROR, (0x3, 0x11, 0x00), (0x3, 0x0C, 0x00)),
        (Status.NO_SPACE, (0x7, 0x27, 0x07), (0x7, 0x27, 0x07)),
        (Status.POISONED, (0x4, 0x44, 0x00), (0x4, 0x44, 0x00)),
    ],
)
def test_trouble_of_the_host(
    status: Status, on_read: tuple[int, int, int], on_write: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_initiator(MIXED) as disk:
        monkeypatch.setattr(disk.target.disk._medium, "_port_read", lambda *_: status)
        monkeypatch.setattr(disk.target.disk._medium, "_port_write", lambda *_: status)
        monkeypatch.setattr(disk.port, "flush", lambda: status)
        assert disk.read(0, 1).code == on_read
        assert disk.write(0, 1).code == on_write
        assert disk.send(bytes.fromhex("35 00 00000000 00 0000 00")).code == on_write


def test_a_flush_that_fails_fails_the_command_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    page = bytes(4) + bytes.fromhex("08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000")
    with new_initiator(MIXED) as disk:
        monkeypatch.setattr(disk.port, "flush", lambda: Status.POISONED)
        assert disk.write(0, 1).code is None
        assert disk.write(0, 1, flags=0x08).code == (0x4, 0x44, 0x00)
        assert disk.read(0, 1, flags=0x08).code == (0x4, 0x44, 0x00)
        assert disk.send(bytes.fromhex("15 10 00 00 18 00"), out=page).code == (0x4, 0x44, 0x00)


def test_report_supported_operation_codes() -> None:
    with new_initiator(MIXED) as disk:
        reply = disk.send(bytes.fromhex("a3 0c 80 00 0000 00001000 00 00"), room=4096)
        assert reply.data == commands.supported_commands(timeouts=True)


def test_mode_sense_10() -> None:
    with new_initiator(MIXED_4K) as disk:
        reply = disk.send(bytes.fromhex("5a 00 08 00 000000 00ff 00"), room=255)
        assert reply.data[:18] == from_hex("""
            00 22         #  0 mode data length
            00 10         #  2 medium type; DPO and FUA supported
            00 00 00 08   #  4 block descriptor length
            00 00 08 00   #  8 2048 blocks
            00 00 10 00   # 12 of 4096 bytes
            08 12         # 16 caching page
        """)


MODE_SELECT = bytes.fromhex("15 10 00 00 06 00")


@pytest.mark.parametrize(
    ("cdb", "out", "sentence", "clause"),
    [
        (
            bytes.fromhex("42 00 00000000 00 0018 00"),  # UNMAP
            bytes(24),
            "command 42h (CDB 42 00 00 00 00 00 00 00 18 00, byte 0) was refused (UNSUPPORTED): a command must be one",
            "SPC-4 INVALID COMMAND OPERATION CODE",
        ),
        (
            bytes.fromhex("28 20 00000001 00 0001 00"),
            b"",
            "READ(10) (CDB 28 20 00 00 00 01 00 00 01 00, byte 1) was refused (UNSUPPORTED): a CDB must be whole, and",
            "SPC-4 INVALID FIELD IN CDB",
        ),
        (b"\x8a\0", b"", "WRITE(16) (CDB 8a 00) was refused (UNSUPPORTED): a CDB", "SPC-4 INVALID FIELD IN CDB"),
        (b"", b"", "a CDB of no bytes was refused (UNSUPPORTED): a CDB must", "SPC-4 INVALID FIELD IN CDB"),
        (
            MODE_SELECT,
            bytes(4) + b"\x02\x0e",
            "MODE SELECT(6) (CDB 15 10 00 00 06 00, byte 4 of the parameter list) was refused (UNSUPPORTED): a para",
            "SPC-4 INVALID FIELD IN PARAMETER LIST",
        ),
        (
            bytes.fromhex("15 10 00 00 03 00"),
            bytes(3),
            "MODE SELECT(6) (CDB 15 10 00 00 03 00) was refused (UNSUPPORTED): a parameter list must hold",
            "SPC-4 PARAMETER LIST LENGTH ERROR",
        ),
        (
            MODE_SELECT,
            bytes(5),
            "MODE SELECT(6) (CDB 15 10 00 00 06 00, 5 bytes of buffers) was refused (UNSUPPORTED): the buffers",
            "virtio 1.4 SCSI host, VIRTIO_SCSI_S_OVERRUN",
        ),
        (
            bytes.fromhex("2f 02 00000000 00 0001 00"),
            b"\1" * 512,
            "VERIFY(10) (CDB 2f 02 00 00 00 00 00 00 01 00) was refused (UNSUPPORTED): the bytes to be verified are",
            "SBC-3 VERIFY, BYTCHK; MISCOMPARE DURING VERIFY OPERATION",
        ),
        (
            bytes.fromhex("95 00 00000000ffffffff 00000040 00 00"),
            b"",
            "REPORT ZONES (CDB 95 00 00 00 00 00 ff ff ff ff 00 00 00 40 00 00) was refused (OUT_OF_RANGE): a request",
            "ZBC-2 LOGICAL BLOCK ADDRESS OUT OF RANGE; virtio 1.4 blk, VIRTIO_BLK_S_ZONE_INVALID_CMD",
        ),
    ],
)  # fmt: skip
def test_malformed_commands_are_explained(cdb: bytes, out: bytes, sentence: str, clause: str) -> None:
    with new_initiator(MIXED) as disk:
        disk.send(cdb, out=out)
        (refusal,) = disk.device.refusals.last(10)
        text = EXPLAINER.explain(refusal, disk.device.geometry)
        assert text.startswith(f"scsi: {sentence}")
        assert text.endswith(f" [{clause}]")
        assert (refusal.zone_no, refusal.operation) == (-1, None)


@pytest.mark.parametrize(
    "cdb",
    [
        "12 01 c0 00ff 00",  # INQUIRY, a VPD page that is not there
        "1a 00 19 00 ff 00",  # MODE SENSE(6), a page that is not there
        "1a 00 c8 00 ff 00",  # saved values
        "5a 00 0a 05 000000 00ff 00",  # MODE SENSE(10), a subpage that is not there
        "4d 00 40 000000 00 00ff 00",  # LOG SENSE
        "a3 0d 00 0000000000000000 00 00",  # MAINTENANCE IN, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
        "a3 0c 01 94 0000 00000200 00 00",  # a command with service actions, asked for as one without
        "9e 12 0000000000000000 00000020 00 00",  # GET LBA STATUS
        "85 08 0e 00 00 00 01 00 00 00 00 00 00 40 ec 00",  # ATA PASS-THROUGH(16), IDENTIFY DEVICE
        "a1 08 0e 00 01 00 00 00 00 ec 00 00",  # ATA PASS-THROUGH(12)
    ],
)
def test_asking_what_is_there_is_no_refusal(cdb: str) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex(cdb), room=512).code is not None
        assert disk.device.refusals.last_seq == 0


# -- fuzzing ------------------------------------------------------------------------------------------------------

SMALL = st.sampled_from([0, 1, 2, 7, 8, 63, 64, 511, 512, 1535, 1536, ZONE - 1, ZONE, ZONE + 1, 3 * ZONE, 4 * ZONE])
LBAS = SMALL | st.integers(0, 9 * ZONE) | st.integers(0, (1 << 64) - 1)


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """Half noise, half commands that are nearly right."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    command = draw(st.sampled_from(COMMANDS))
    cdb = bytearray(draw(st.binary(min_size=len(command.usage), max_size=len(command.usage))))
    for index, bits in enumerate(command.usage):
        cdb[index] &= bits
    cdb[0] = command.opcode
    if command.service_action is not None:
        cdb[1] = command.service_action
    elif draw(st.booleans()):
        cdb[1] &= 0x0A
    cdb[-1] = 0
    if len(cdb) == 16:
        cdb[2:10] = draw(LBAS).to_bytes(8, "big")
        if cdb[0] not in (0x94, 0x95):
            cdb[10:14] = draw(SMALL).to_bytes(4, "big")
    return bytes(cdb)


@given(
    geometry=st.sampled_from([MIXED, MIXED_4K, GAPS, GAP_IN_RUNT, RUNT]),
    requests=st.lists(
        st.tuples(cdbs(), st.lists(SMALL, max_size=3), st.lists(SMALL, max_size=3)), min_size=1, max_size=20
    ),
)
def test_any_cdb_gets_a_result_within_bounds(
    geometry: Geometry, requests: list[tuple[bytes, list[int], list[int]]]
) -> None:
    with new_initiator(geometry) as disk:
        guard = b"\xa5" * 16
        for cdb, out_sizes, in_sizes in requests:
            out = [bytes(size) for size in out_sizes]
            memory = [bytearray(guard + bytes(size) + guard) for size in in_sizes]
            data_in = [memoryview(piece)[16 : 16 + size] for piece, size in zip(memory, in_sizes, strict=True)]
            disk.target.may_block(0, parse(cdb))
            before = disk.device.refusals.last_seq
            result = disk.target.execute(0, cdb, out, data_in)
            assert result.status in (ScsiStatus.GOOD, ScsiStatus.CHECK_CONDITION)
            refused = (result.status or result.overrun) and (not cdb or cdb[0] not in ENQUIRIES)
            assert (disk.device.refusals.last_seq > before) == bool(refused)
            assert (result.status == ScsiStatus.CHECK_CONDITION) == bool(result.sense)
            assert len(result.sense) in (0, 8, 16, 18)
            assert 0 <= result.residual <= sum(out_sizes) + sum(in_sizes)
            assert all(piece.startswith(guard) and piece.endswith(guard) for piece in memory)
        # Whatever was sent, the zones still cover the disk and the open limit holds.
        zones = disk.report()
        assert sum(zone.length for zone in zones) == geometry.size // geometry.block_sectors
        nr_open = sum(zone.cond in (2, 3) for zone in zones)
        assert not geometry.max_open_zones or nr_open <= geometry.max_open_zones
