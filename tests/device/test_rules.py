"""The device's own rules. Those of all packages together are looked at by daemon/test_answers.py."""

from enum import unique

import pytest

from zonefs_emu.device.rules import RULE_OF_STATUS, DeviceRule, Rule
from zonefs_emu.errors import Status


def test_every_status_of_a_refusal_is_a_rule_of_the_same_number() -> None:
    assert {status.name: status.value for status in Status if status} == {
        rule.name: rule.value for rule in DeviceRule if rule.value < 90
    }
    assert all(rule.value == status.value and rule.name == status.name for status, rule in RULE_OF_STATUS.items())
    assert set(RULE_OF_STATUS) == set(Status) - {Status.OK}


def test_images_keep_the_numbers_of_rules_so_they_never_change() -> None:
    assert {rule.name: rule.value for rule in DeviceRule if rule.value >= 90} == {
        "INJECTED": 90, "INTERNAL": 91, "LOST": 92, "LOST_BUFFER": 93, "FINISHED_BY_CONTROLLER": 94, "CONTESTED": 400,
    }  # fmt: skip


def test_a_rule_is_its_number_and_has_its_texts() -> None:
    class ToyRule(Rule):
        TOY = 7, "what holds", "where that is written"

    assert (ToyRule.TOY, ToyRule.TOY.value, ToyRule.TOY.name) == (7, 7, "TOY")
    assert (ToyRule.TOY.sentence, ToyRule.TOY.clause) == ("what holds", "where that is written")


def test_a_package_cannot_use_a_number_twice() -> None:
    with pytest.raises(ValueError, match="duplicate values"):

        @unique
        class _Rule(Rule):
            ONE = 7, "one", "here"
            OTHER = 7, "other", "there"
