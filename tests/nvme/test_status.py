import re
from pathlib import Path

import pytest

import zonefs_emu
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import Operation
from zonefs_emu.nvme.answer import Answer, RefusedError
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import ANSWERS, STATUS_OF, STATUS_OF_RULE, NvmeStatus, status_of


def test_the_tables_are_total() -> None:
    assert set(STATUS_OF) == set(Status)
    assert set(STATUS_OF_RULE) == set(NvmeRule)
    assert [status for status in Status if STATUS_OF[status] is NvmeStatus.SUCCESS] == [Status.OK]
    assert NvmeStatus.SUCCESS not in {code for code, _ in STATUS_OF_RULE.values()}


def test_no_status_bypasses_the_tables() -> None:
    """An answer that is written by hand is neither explained by `why` nor listed in the error log."""
    of_tables = {*STATUS_OF.values(), *(code for code, _ in STATUS_OF_RULE.values())}
    of_tables.add(status_of(Status.IO_ERROR, Operation.READ))
    assert set(NvmeStatus) - of_tables == {NvmeStatus.INTERNAL_ERROR}
    by_hand = {
        name
        for path in Path(zonefs_emu.__file__).parent.rglob("*.py")
        for name in re.findall(r"Answer\(\s*NvmeStatus\.(\w+)", path.read_text())
    }
    assert by_hand == {"SUCCESS", "INTERNAL_ERROR"}


@pytest.mark.parametrize(
    ("status", "operation", "code"),
    [
        (Status.UNALIGNED_WP, Operation.WRITE, 0x1BC),
        (Status.ZONE_FULL, Operation.APPEND, 0x1B9),
        (Status.ZONE_BOUNDARY, Operation.WRITE, 0x1B8),
        (Status.ZONE_READONLY, Operation.WRITE, 0x1BA),
        (Status.ZONE_OFFLINE, Operation.READ, 0x1BB),
        (Status.ACTIVE_RESOURCE, Operation.WRITE, 0x1BD),
        (Status.OPEN_RESOURCE, Operation.OPEN, 0x1BE),
        (Status.BAD_TRANSITION, Operation.CLOSE, 0x1BF),
        (Status.OUT_OF_RANGE, Operation.READ, 0x080),
        (Status.IO_ERROR, Operation.READ, 0x281),
        (Status.POISONED, Operation.READ, 0x281),
        (Status.IO_ERROR, Operation.WRITE, 0x280),
        (Status.IO_ERROR, Operation.FLUSH, 0x280),
        (Status.IO_ERROR, None, 0x280),
        (Status.NO_SPACE, Operation.WRITE, 0x081),
    ],
)
def test_codes(status: Status, operation: Operation | None, code: int) -> None:
    assert status_of(status, operation) == code


def test_a_refusal_is_not_to_be_retried() -> None:
    assert Answer(NvmeStatus.ZONE_IS_FULL).status_field == 0x41B9
    assert Answer(NvmeStatus.SUCCESS).status_field == 0
    assert RefusedError(NvmeRule.NVME_DIGEST, "").answer.status_field == 0x022, "damaged data may be sent again"
    refused = RefusedError(NvmeRule.NVME_CONNECT_FIELD, "", result=44)
    assert (refused.answer, refused.answer.status_field) == ((0x182, 44, b""), 0x4182)


def test_refusals_are_explained_with_the_name_of_the_status() -> None:
    assert ANSWERS.of_status(Status.UNALIGNED_WP, Operation.WRITE) == "1BCh ZONE_INVALID_WRITE"
    assert set(ANSWERS.of_rule) == set(NvmeRule)
    assert {EXPLAINER.rules[rule.value] for rule in NvmeRule} == set(NvmeRule)
