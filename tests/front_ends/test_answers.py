import errno
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.refused import last_refusal
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import DeviceRule, Rule
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import ANSWERS, EXPLAINER
from zonefs_emu.fs.rules import ZonefsRule
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.scsi.rules import HostRule, ScsiRule
from zonefs_emu.ublk.rules import UblkRule
from zonefs_emu.virtio.rules import BlkRule

ROOT: Final = Path(__file__).resolve().parent.parent.parent
FRONT_ENDS: Final = frozenset(answers.name for answers in ANSWERS)
#: The front-ends that refuse by the rules of a package, by the beginning of the names of these rules.
FRONT_ENDS_OF_PREFIX: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "FS": frozenset({"zonefs"}),
        "BLK": frozenset({"virtio-blk", "vduse"}),
        "SCSI": frozenset({"scsi"}),
        "VSCSI": frozenset({"scsi"}),
        "UBLK": frozenset({"ublk"}),
        "NVME": frozenset({"nvme"}),
    }
)


def refusal(rule: int, status: Status, operation: Operation | None) -> Refusal:
    return Refusal(
        seq=1, time_ns=0, front_end="x", operation=operation, status=status, rule=rule, zone_no=1,
        cond=Condition.EMPTY, wp=0, sector=0, nr_sectors=8, nr_open=0, nr_active=0,
    )  # fmt: skip


@pytest.mark.parametrize("rule", EXPLAINER.rules.values())
@pytest.mark.parametrize("operation", list(Operation))
def test_every_rule_has_an_answer_to_every_operation(rule: Rule, operation: Operation) -> None:
    for status in set(Status) - {Status.OK}:
        found = EXPLAINER.answers(refusal(rule, status, operation))
        assert found
        assert found.keys() <= FRONT_ENDS
        assert "S_OK" not in found.values()
        for front_end in found.keys() & {"zonefs", "ublk", "vduse"}:
            assert getattr(errno, found[front_end])


def test_a_rule_of_one_front_end_is_met_there_only() -> None:
    assert EXPLAINER.answers(refusal(ZonefsRule.FS_TOO_BIG, Status.ZONE_BOUNDARY, Operation.WRITE)) == {
        "zonefs": "EFBIG"
    }
    assert EXPLAINER.answers(refusal(ScsiRule.SCSI_GAP, Status.ZONE_BOUNDARY, Operation.WRITE)) == {
        "scsi": "ILLEGAL_REQUEST 21h/09h"
    }
    boundary = EXPLAINER.answers(refusal(ScsiRule.SCSI_READ_TYPES, Status.READ_BOUNDARY, Operation.READ))
    assert boundary == {"scsi": "ILLEGAL_REQUEST 21h/07h"}


def test_the_operation_decides_where_a_standard_says_so() -> None:
    wrong_range = refusal(DeviceRule.OUT_OF_RANGE, Status.OUT_OF_RANGE, Operation.RESET)
    assert EXPLAINER.answers(wrong_range)["virtio-blk"] == "S_ZONE_INVALID_CMD"
    wrong_range = refusal(DeviceRule.OUT_OF_RANGE, Status.OUT_OF_RANGE, Operation.READ)
    assert EXPLAINER.answers(wrong_range)["virtio-blk"] == "S_IOERR"
    assert (
        EXPLAINER.answers(refusal(DeviceRule.IO_ERROR, Status.IO_ERROR, Operation.WRITE))["scsi"]
        == "MEDIUM_ERROR 0Ch/00h"
    )
    assert (
        EXPLAINER.answers(refusal(DeviceRule.IO_ERROR, Status.IO_ERROR, Operation.APPEND))["scsi"]
        == "MEDIUM_ERROR 0Ch/00h"
    )
    assert (
        EXPLAINER.answers(refusal(DeviceRule.IO_ERROR, Status.IO_ERROR, Operation.READ))["scsi"]
        == "MEDIUM_ERROR 11h/00h"
    )


def test_users_of_a_block_device_see_an_errno() -> None:
    for status, ublk, vduse in (
        (Status.UNALIGNED_WP, "EIO", "EIO"),
        (Status.OPEN_RESOURCE, "ETOOMANYREFS", "ETOOMANYREFS"),
        (Status.ACTIVE_RESOURCE, "EOVERFLOW", "EOVERFLOW"),
        (Status.NO_SPACE, "ENOSPC", "EIO"),  # virtio has no word for it
        (Status.UNSUPPORTED, "ENOTSUP", "ENOTSUP"),  # the same number as EOPNOTSUPP
    ):
        found = EXPLAINER.answers(refusal(DeviceRule.IO_ERROR, status, Operation.WRITE))
        assert (found["ublk"], found["vduse"]) == (ublk, vduse)


def test_a_real_refusal(image: Path) -> None:
    device = ZonedDevice.open(image)
    port = device.port("test", VIRTIO)
    for zone_no in (1, 2, 3):
        assert port.manage(Operation.OPEN, port.geometry.zone_start(zone_no)) == 0
    assert port.write(port.geometry.zone_start(4), 8, (bytes(4096),)) is Status.OPEN_RESOURCE
    names = {"zonefs", "ublk", "vduse", "virtio-blk", "scsi", "nvme"}
    explainer = Explainer([answers for answers in ANSWERS if answers.name in names])
    assert explainer.explain_all(last_refusal(port), device.geometry) == (
        f"{EXPLAINER.explain(last_refusal(port), device.geometry)}; "
        "answered as ETOOMANYREFS (zonefs, ublk, vduse), S_ZONE_OPEN_RESOURCE (virtio-blk), "
        "DATA_PROTECT 55h/0Eh (scsi), 1BEh TOO_MANY_OPEN_ZONES (nvme)"
    )
    device.close()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BlkRule.BLK_TYPE, {"virtio-blk": "S_UNSUPP", "vduse": "ENOTSUP"}),
        (BlkRule.BLK_REPORT_ROOM, {"virtio-blk": "S_ZONE_INVALID_CMD", "vduse": "EIO"}),
        (ScsiRule.SCSI_OPERATION_CODE, {"scsi": "ILLEGAL_REQUEST 20h/00h"}),
        (ScsiRule.SCSI_MISCOMPARE, {"scsi": "MISCOMPARE 1Dh/00h"}),
        (HostRule.VSCSI_OVERRUN, {"scsi": "S_OVERRUN"}),
        (HostRule.VSCSI_TASK, {"scsi": "S_FUNCTION_REJECTED"}),
        (UblkRule.UBLK_OPERATION, {"ublk": "ENOTSUP"}),
        (ZonefsRule.FS_CREATE, {"zonefs": "ENOENT"}),
    ],
)
def test_requests_that_are_no_operation(rule: Rule, expected: dict[str, str]) -> None:
    assert EXPLAINER.answers(refusal(rule, Status.UNSUPPORTED, None)) == expected


def test_every_rule_of_a_front_ends_own_is_met_there_only() -> None:
    for rule in EXPLAINER.rules.values():
        front_ends = EXPLAINER.answers(refusal(rule, Status.UNSUPPORTED, None)).keys()
        if not isinstance(rule, DeviceRule):
            prefix, _, _ = rule.name.partition("_")
            assert front_ends == FRONT_ENDS_OF_PREFIX[prefix], rule.name
        else:
            assert front_ends == FRONT_ENDS, rule.name


# -- all rules together ---------------------------------------------------------------------------------------------


def rules_of_packages() -> dict[str, list[Rule]]:
    """Return package -> the rules that its module rules.py states."""
    found = {}
    for path in sorted((ROOT / "zonefs_emu").glob("*/rules.py")):
        package = path.parent.name
        module = importlib.import_module(f"zonefs_emu.{package}.rules")
        kinds = [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Rule) and kind.__module__ == module.__name__
        ]
        found[package] = [rule for kind in kinds for rule in kind]
    return found


RULES: Final = rules_of_packages()


def documented_ranges() -> Iterator[tuple[str, range]]:
    """Yield package and range of numbers for each row of the table in the docs."""
    text = (ROOT / "docs/errors.md").read_text()
    for first, last, package in re.findall(r"^\| (\d+) to (\d+) \| `(\w+)` \|", text, re.MULTILINE):
        yield package, range(int(first), int(last) + 1)


def test_what_a_package_states_is_joined() -> None:
    """Every refusal can be explained: a rule is a member of an enumeration, and there are no others."""
    assert {rule for rules in RULES.values() for rule in rules} == set(EXPLAINER.rules.values())
    for rule in EXPLAINER.rules.values():
        assert EXPLAINER.name(refusal(rule, Status.IO_ERROR, None)) == rule.name
        assert rule.sentence
        assert rule.clause
        assert not rule.sentence.endswith(".")
        assert ";" not in rule.sentence, "explain() joins its parts with semicolons"


def test_numbers_names_and_sentences_are_unique() -> None:
    rules = [rule for rules in RULES.values() for rule in rules]
    for values in ([rule.value for rule in rules], [rule.name for rule in rules], [rule.sentence for rule in rules]):
        assert len(set(values)) == len(rules)


def test_each_package_keeps_to_its_documented_numbers() -> None:
    ranges = list(documented_ranges())
    numbers = [number for _, range_ in ranges for number in range_]
    assert len(set(numbers)) == len(numbers), "ranges overlap"
    for package, rules in RULES.items():
        own = {number for owner, range_ in ranges if owner == package for number in range_}
        assert {rule.value for rule in rules} <= own, package
    assert max(numbers) < 1 << 16, "an image has 16 bits for them"
