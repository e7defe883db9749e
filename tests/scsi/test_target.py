import pytest
from hypothesis import given, strategies as st

from tests.scsi.disks import MIXED, ZONE, new_device, new_initiator
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import ZBC
from zonefs_emu.model.zone import Condition
from zonefs_emu.scsi import sense
from zonefs_emu.scsi.cdb import parse
from zonefs_emu.scsi.commands import ENQUIRIES
from zonefs_emu.scsi.result import GOOD, ScsiStatus
from zonefs_emu.scsi.target import (
    NO_LUN,
    REPORT_LUNS_WLUN,
    Target,
    TaskFunction,
    TaskResponse,
    decode_lun,
)

INQUIRY = bytes.fromhex("12 00 00 0060 00")
REPORT_LUNS = bytes.fromhex("a0 00 02 000000 00000100 00 00")
REQUEST_SENSE = bytes.fromhex("03 00 0000 12 00")
TEST_UNIT_READY = bytes.fromhex("00 00 0000 00 00")
POWER_ON = (0x6, 0x29, 0x00)
LUN_NOT_SUPPORTED = (0x5, 0x25, 0x00)
ABSENT = [1, 7, 16383, NO_LUN]


@pytest.mark.parametrize(
    ("structure", "lun"),
    [
        ("0000 000000000000", 0),  # peripheral device addressing
        ("0007 000000000000", 7),
        ("4000 000000000000", 0),  # flat space addressing, as Linux' virtio_scsi sends it
        ("4123 000000000000", 0x123),
        ("c101 000000000000", REPORT_LUNS_WLUN),
        ("c102 000000000000", NO_LUN),  # access controls
        ("0100 000000000000", NO_LUN),  # another bus
        ("8000 000000000000", NO_LUN),  # logical unit addressing
        ("4000 000000000001", NO_LUN),  # a second level
        ("4000", NO_LUN),
    ],
)
def test_decode_lun(structure: str, lun: int) -> None:
    assert decode_lun(bytes.fromhex(structure)) == lun


def test_power_on_is_met_once_and_not_by_inquiries() -> None:
    with new_initiator(MIXED, power_on=True) as disk:
        assert disk.send(INQUIRY, room=96).code is None
        assert disk.send(REPORT_LUNS, room=256).code is None
        assert disk.send(INQUIRY, room=96, lun=3).code is None
        assert disk.read(0, 1).code == POWER_ON
        assert disk.read(0, 1).code is None


def test_request_sense_takes_the_unit_attention() -> None:
    with new_initiator(MIXED, power_on=True) as disk:
        assert disk.send(b"").code == (0x5, 0x24, 0x00)
        assert disk.send(REQUEST_SENSE[:3]).code == (0x5, 0x24, 0x00)
        reply = disk.send(REQUEST_SENSE, room=18)
        assert reply.result is not None
        assert reply.data == bytes.fromhex("70 00 06 00000000 0a 00000000 29 00 00 000000")
        assert disk.send(REQUEST_SENSE, room=18).data[2] == 0x00
        assert disk.send(TEST_UNIT_READY).result is GOOD


def test_a_daemon_that_takes_over_announces_no_power_on() -> None:
    with new_device(MIXED) as device:
        target = Target(device.port("scsi", ZBC), serial="x", power_on=False)
        assert target.execute(0, TEST_UNIT_READY, [], []) is GOOD


@pytest.mark.parametrize("earlier", [sense.POWER_ON, sense.BUS_DEVICE_RESET])
@pytest.mark.parametrize("later", [sense.BUS_DEVICE_RESET, sense.I_T_NEXUS_LOSS])
def test_a_weaker_unit_attention_does_not_replace_a_stronger_one(earlier: sense.Sense, later: sense.Sense) -> None:
    with new_initiator(MIXED) as disk:
        disk.target.attend(earlier)
        disk.target.attend(later)
        assert [disk.send(TEST_UNIT_READY).code for _ in range(2)] == [tuple(earlier), None]
        disk.target.attend(later)
        disk.target.attend(earlier)
        assert [disk.send(TEST_UNIT_READY).code for _ in range(2)] == [tuple(earlier), None]


def test_unit_attentions_queue_up_once_each_and_a_reset_replaces_them() -> None:
    with new_initiator(MIXED) as disk:
        mode_changed = sense.Sense(sense.SenseKey.UNIT_ATTENTION, 0x2A, 0x01)
        luns_changed = sense.Sense(sense.SenseKey.UNIT_ATTENTION, 0x3F, 0x0E)
        for condition in (mode_changed, luns_changed, mode_changed):
            disk.target.attend(condition)
        assert [disk.send(TEST_UNIT_READY).code for _ in range(3)] == [tuple(mode_changed), tuple(luns_changed), None]
        disk.target.attend(mode_changed)
        disk.target.attend(sense.POWER_ON)
        assert [disk.send(TEST_UNIT_READY).code for _ in range(2)] == [POWER_ON, None]


@pytest.mark.parametrize("lun", ABSENT)
def test_absent_logical_units(lun: int) -> None:
    with new_initiator(MIXED, power_on=True) as disk:
        assert disk.send(INQUIRY, room=96, lun=lun).data[:1] == b"\x7f"
        assert disk.send(REQUEST_SENSE, room=18, lun=lun).data[12:14] == b"\x25\x00"
        for cdb in (TEST_UNIT_READY, REPORT_LUNS, bytes.fromhex("88").ljust(16, b"\0"), bytes(1) * 6):
            assert disk.send(cdb, lun=lun).code == LUN_NOT_SUPPORTED
        assert disk.send(bytes.fromhex("12 01 80 00ff 00"), room=255, lun=lun).code == (0x5, 0x24, 0x00)
        assert not disk.target.may_block(lun, parse(bytes.fromhex("35 00 00000000 00 0000 00")))
        assert disk.read(0, 1).code == POWER_ON  # the disk's own unit attention is still there


def test_well_known_logical_unit() -> None:
    with new_initiator(MIXED, power_on=True) as disk:
        lun = REPORT_LUNS_WLUN
        assert disk.send(INQUIRY, room=96, lun=lun).data[:1] == b"\x1e"
        assert disk.send(TEST_UNIT_READY, lun=lun).result is GOOD
        assert disk.send(REQUEST_SENSE, room=18, lun=lun).data[2] == 0x00
        assert disk.send(REPORT_LUNS, room=256, lun=lun).data == disk.send(REPORT_LUNS, room=256).data
        assert disk.send(bytes.fromhex("88").ljust(16, b"\0"), lun=lun).code == (0x5, 0x20, 0x00)


@pytest.mark.parametrize("command", [INQUIRY, REQUEST_SENSE, TEST_UNIT_READY, REPORT_LUNS], ids=lambda cdb: cdb.hex())
def test_naca_is_refused_at_every_logical_unit(command: bytes) -> None:
    with new_initiator(MIXED) as disk:
        for lun in (0, REPORT_LUNS_WLUN):
            assert disk.send(command[:-1] + b"\x04", room=256, lun=lun).code == (0x5, 0x24, 0x00)


@given(lun=st.sampled_from([REPORT_LUNS_WLUN, *ABSENT]), cdb=st.binary(max_size=33), room=st.integers(0, 300))
def test_any_cdb_elsewhere_gets_a_result(lun: int, cdb: bytes, room: int) -> None:
    with new_initiator(MIXED) as disk:
        result = disk.send(cdb, room=room, lun=lun).result
        assert (result.status == ScsiStatus.CHECK_CONDITION) == bool(result.sense)
        refused = result.status and (not cdb or cdb[0] not in ENQUIRIES)
        assert (disk.device.refusals.last_seq > 0) == bool(refused)


def test_commands_to_absent_logical_units_are_explained() -> None:
    read = bytes.fromhex("08 00 0000 01 00")
    with new_initiator(MIXED) as disk:
        for lun in (7, NO_LUN, REPORT_LUNS_WLUN):
            disk.send(read, room=512, lun=lun)
        assert [(EXPLAINER.name(refusal), refusal.request) for refusal in disk.device.refusals.last(10)] == [
            ("SCSI_LUN", "READ(6) (CDB 08 00 00 00 01 00, LUN 7)"),
            ("SCSI_LUN", "READ(6) (CDB 08 00 00 00 01 00, a LUN that addresses nothing)"),
            ("SCSI_OPERATION_CODE", "READ(6) (CDB 08 00 00 00 01 00, to the REPORT LUNS unit)"),
        ]
        assert EXPLAINER.explain(disk.device.refusals.last(10)[0], disk.device.geometry) == (
            "scsi: READ(6) (CDB 08 00 00 00 01 00, LUN 7) was refused (UNSUPPORTED): the target has a disk at LUN 0 "
            "and the REPORT LUNS well-known logical unit, and no other [SPC-4 LOGICAL UNIT NOT SUPPORTED]"
        )


def test_a_unit_attention_is_no_refusal() -> None:
    with new_initiator(MIXED, power_on=True) as disk:
        assert disk.read(0, 1).code == POWER_ON
        assert disk.device.refusals.last_seq == 0


def test_logical_unit_reset_keeps_zones_and_forgets_mode_parameters() -> None:
    control = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")
    with new_initiator(MIXED) as disk:
        assert disk.open(2 * ZONE).code is None
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=control).result == GOOD
        assert disk.target.disk.descriptor_sense
        assert disk.target.manage_task(TaskFunction.LOGICAL_UNIT_RESET, 0) is TaskResponse.COMPLETE
        reply = disk.send(TEST_UNIT_READY)
        assert reply.code == (0x6, 0x29, 0x03)
        assert reply.result.sense[0] == 0x70
        assert disk.cond(2 * ZONE) == Condition.EXP_OPEN


def test_unit_attention_in_descriptor_format() -> None:
    control = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")
    with new_initiator(MIXED) as disk:
        assert disk.send(bytes.fromhex("15 10 00 00 10 00"), out=control).result == GOOD
        assert disk.target.manage_task(TaskFunction.I_T_NEXUS_RESET, 0) is TaskResponse.COMPLETE
        assert disk.send(TEST_UNIT_READY).result.sense == bytes.fromhex("72 06 29 07 000000 00")


@pytest.mark.parametrize(
    ("function", "lun", "response"),
    [
        (TaskFunction.ABORT_TASK, 0, TaskResponse.COMPLETE),
        (TaskFunction.ABORT_TASK_SET, 0, TaskResponse.COMPLETE),
        (TaskFunction.CLEAR_TASK_SET, REPORT_LUNS_WLUN, TaskResponse.COMPLETE),
        (TaskFunction.QUERY_TASK, 0, TaskResponse.COMPLETE),
        (TaskFunction.QUERY_TASK_SET, 0, TaskResponse.COMPLETE),
        (TaskFunction.CLEAR_ACA, 0, TaskResponse.REJECTED),
        (TaskFunction.ABORT_TASK, 5, TaskResponse.INCORRECT_LUN),
        (TaskFunction.LOGICAL_UNIT_RESET, NO_LUN, TaskResponse.INCORRECT_LUN),
        (TaskFunction.LOGICAL_UNIT_RESET, REPORT_LUNS_WLUN, TaskResponse.COMPLETE),
    ],
)
def test_task_management(function: TaskFunction, lun: int, response: TaskResponse) -> None:
    with new_initiator(MIXED) as disk:
        assert disk.target.manage_task(function, lun) is response
        assert disk.send(TEST_UNIT_READY).result is GOOD


def test_serial_number_is_checked() -> None:
    with new_device(MIXED) as device, pytest.raises(ValueError, match="serial number"):
        Target(device.port("scsi", ZBC), serial="")
