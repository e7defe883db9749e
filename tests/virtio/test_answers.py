"""That every rule has an answer is tested with those of all front-ends, in daemon/test_answers.py."""

import errno

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.virtio import blk_codec
from zonefs_emu.virtio.answers import BLK_ANSWERS, SCSI_ANSWERS, blk_user_answers
from zonefs_emu.virtio.rules import BlkRule


def test_the_block_device_is_shown_by_its_status_bytes() -> None:
    """By their names in the standard, which are those of our constants."""
    numbers = {name: getattr(blk_codec, name) for name in dir(blk_codec) if name.startswith("S_")}
    for status in Status:
        assert numbers[BLK_ANSWERS.of_status(status, Operation.READ)] == blk_codec.DATA_STATUS[status]
        assert numbers[BLK_ANSWERS.of_status(status, Operation.RESET)] == blk_codec.ZONE_STATUS[status]
    for rule in BlkRule:
        assert numbers[BLK_ANSWERS.of_rule[rule]] == blk_codec.STATUS_OF_RULE[rule]


def test_its_user_is_shown_the_error_that_linux_makes_of_them() -> None:
    assert {blk_user_answers("disk").of_rule[rule]: BLK_ANSWERS.of_rule[rule] for rule in BlkRule}.keys() == {
        "EIO",
        "ENOTSUP",
    }
    assert (
        blk_user_answers("disk").of_status(Status.ACTIVE_RESOURCE, Operation.WRITE) == errno.errorcode[errno.EOVERFLOW]
    )


def test_the_disk_is_shown_by_its_sense_and_the_host_by_its_response() -> None:
    assert SCSI_ANSWERS.of_rule.keys() == {*ScsiRule, *HostRule}
    assert SCSI_ANSWERS.of_rule[ScsiRule.SCSI_GAP] == "ILLEGAL_REQUEST 21h/09h"
    assert SCSI_ANSWERS.of_rule[HostRule.VSCSI_OVERSIZED] == "S_FAILURE"
