import pytest

from tests.daemon.test_extensions import TOY, ToyRule
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import DeviceRule, FrontEndAnswers, Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

GEOMETRY = Geometry(size=8 * 2048, zone_size=2048, zone_capacity=2048)


def refusal(rule: int, status: Status, operation: Operation | None) -> Refusal:
    return Refusal(
        seq=1, time_ns=0, front_end="toy", operation=operation, status=status, rule=rule, zone_no=-1,
        cond=Condition.EMPTY, wp=0, sector=0, nr_sectors=8, nr_open=0, nr_active=0, request="paint it green",
    )  # fmt: skip


def test_it_answers_to_the_rules_of_the_device_too() -> None:
    explainer = Explainer([TOY])
    assert explainer.answers(refusal(DeviceRule.ZONE_FULL, Status.ZONE_FULL, None)) == {"toy": "TOY_ZONE_FULL"}


def test_a_rule_of_a_later_version_is_shown_as_such() -> None:
    later = refusal(ToyRule.TOY_COLOUR, Status.UNSUPPORTED, None)
    explainer = Explainer()
    assert explainer.name(later) == "RULE_60000"
    assert explainer.answers(later) == {}
    assert explainer.explain_all(later, GEOMETRY) == (
        "toy: paint it green was refused (UNSUPPORTED): by rule 60000, which only a later version knows"
    )


def test_without_front_ends_the_rules_of_the_device_are_known() -> None:
    full = refusal(DeviceRule.ZONE_FULL, Status.ZONE_FULL, Operation.WRITE)
    assert Explainer().name(full) == "ZONE_FULL"
    assert Explainer().answers(full) == {}


def test_two_rules_of_one_number_are_a_bug() -> None:
    class OtherRule(Rule):
        OTHER = 60000, "another", "elsewhere"

    other = FrontEndAnswers(name="other", of_status=TOY.of_status, of_rule={OtherRule.OTHER: "NO"})
    with pytest.raises(AssertionError, match="60000"):
        Explainer([TOY, other])
