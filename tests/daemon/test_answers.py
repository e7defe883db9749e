import errno
from pathlib import Path

import pytest

from zonefs_emu.daemon.answers import answers, sentence
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition


def refusal(rule: Rule, status: Status, operation: Operation | None) -> Refusal:
    return Refusal(
        seq=1, time_ns=0, front_end="x", operation=operation, status=status, rule=rule, zone_no=1,
        cond=Condition.EMPTY, wp=0, sector=0, nr_sectors=8, nr_open=0, nr_active=0,
    )  # fmt: skip


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("operation", list(Operation))
def test_every_rule_has_an_answer_to_every_operation(rule: Rule, operation: Operation) -> None:
    for status in set(Status) - {Status.OK}:
        found = answers(refusal(rule, status, operation))
        assert found
        assert found.keys() <= {"zonefs", "virtio-blk", "scsi", "ublk", "vduse"}
        assert "S_OK" not in found.values()
        for front_end in found.keys() & {"zonefs", "ublk", "vduse"}:
            assert getattr(errno, found[front_end])


def test_a_rule_of_one_front_end_is_met_there_only() -> None:
    assert answers(refusal(Rule.FS_TOO_BIG, Status.ZONE_BOUNDARY, Operation.WRITE)) == {"zonefs": "EFBIG"}
    assert answers(refusal(Rule.SCSI_GAP, Status.ZONE_BOUNDARY, Operation.WRITE)) == {"scsi": "ILLEGAL_REQUEST 21h/09h"}
    boundary = answers(refusal(Rule.SCSI_READ_TYPES, Status.READ_BOUNDARY, Operation.READ))
    assert boundary == {"scsi": "ILLEGAL_REQUEST 21h/07h"}


def test_the_operation_decides_where_a_standard_says_so() -> None:
    wrong_range = refusal(Rule.OUT_OF_RANGE, Status.OUT_OF_RANGE, Operation.RESET)
    assert answers(wrong_range)["virtio-blk"] == "S_ZONE_INVALID_CMD"
    wrong_range = refusal(Rule.OUT_OF_RANGE, Status.OUT_OF_RANGE, Operation.READ)
    assert answers(wrong_range)["virtio-blk"] == "S_IOERR"
    assert answers(refusal(Rule.IO_ERROR, Status.IO_ERROR, Operation.WRITE))["scsi"] == "MEDIUM_ERROR 0Ch/00h"
    assert answers(refusal(Rule.IO_ERROR, Status.IO_ERROR, Operation.APPEND))["scsi"] == "MEDIUM_ERROR 0Ch/00h"
    assert answers(refusal(Rule.IO_ERROR, Status.IO_ERROR, Operation.READ))["scsi"] == "MEDIUM_ERROR 11h/00h"


def test_users_of_a_block_device_see_an_errno() -> None:
    for status, ublk, vduse in (
        (Status.UNALIGNED_WP, "EIO", "EIO"),
        (Status.OPEN_RESOURCE, "ETOOMANYREFS", "ETOOMANYREFS"),
        (Status.ACTIVE_RESOURCE, "EOVERFLOW", "EOVERFLOW"),
        (Status.NO_SPACE, "ENOSPC", "EIO"),  # virtio has no word for it
        (Status.UNSUPPORTED, "ENOTSUP", "ENOTSUP"),  # the same number as EOPNOTSUPP
    ):
        found = answers(refusal(Rule.IO_ERROR, status, Operation.WRITE))
        assert (found["ublk"], found["vduse"]) == (ublk, vduse)


def test_front_ends_that_answer_the_same_are_named_together() -> None:
    assert sentence({"a": "EIO", "b": "X", "c": "EIO"}) == "answered as EIO (a, c), X (b)"


def test_a_real_refusal(image: Path) -> None:
    device = ZonedDevice.open(image)
    port = device.port("test", VIRTIO)
    for zone_no in (1, 2, 3):
        assert port.manage(Operation.OPEN, port.geometry.zone_start(zone_no)) == 0
    assert port.write(port.geometry.zone_start(4), 8, (bytes(4096),)) is Status.OPEN_RESOURCE
    assert port.last_refusal is not None
    assert sentence(answers(port.last_refusal)) == (
        "answered as ETOOMANYREFS (zonefs, ublk, vduse), S_ZONE_OPEN_RESOURCE (virtio-blk), DATA_PROTECT 55h/0Eh (scsi)"
    )
    device.close()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule.BLK_TYPE, {"virtio-blk": "S_UNSUPP", "vduse": "ENOTSUP"}),
        (Rule.BLK_REPORT_ROOM, {"virtio-blk": "S_ZONE_INVALID_CMD", "vduse": "EIO"}),
        (Rule.SCSI_OPERATION_CODE, {"scsi": "ILLEGAL_REQUEST 20h/00h"}),
        (Rule.SCSI_MISCOMPARE, {"scsi": "MISCOMPARE 1Dh/00h"}),
        (Rule.VSCSI_OVERRUN, {"scsi": "S_OVERRUN"}),
        (Rule.VSCSI_TASK, {"scsi": "S_FUNCTION_REJECTED"}),
        (Rule.UBLK_OPERATION, {"ublk": "ENOTSUP"}),
        (Rule.FS_CREATE, {"zonefs": "ENOENT"}),
    ],
)
def test_requests_that_are_no_operation(rule: Rule, expected: dict[str, str]) -> None:
    assert answers(refusal(rule, Status.UNSUPPORTED, None)) == expected


def test_every_rule_of_a_front_ends_own_is_met_there_only() -> None:
    for rule in Rule:
        front_ends = answers(refusal(rule, Status.UNSUPPORTED, None)).keys()
        if rule >= 100 and rule is not Rule.CONTESTED:
            prefix, _, _ = rule.name.partition("_")
            expected = {
                "FS": {"zonefs"}, "BLK": {"virtio-blk", "vduse"}, "SCSI": {"scsi"}, "VSCSI": {"scsi"}, "UBLK": {"ublk"},
            }[prefix]  # fmt: skip
            assert front_ends == expected, rule.name
        else:
            assert front_ends == {"zonefs", "virtio-blk", "scsi", "ublk", "vduse"}, rule.name
