"""Rules are kept in images by number and shown to people by sentence."""

import pytest

from zonefs_emu.device.rules import RULES, Rule
from zonefs_emu.errors import Status


def test_every_status_of_a_refusal_is_a_rule_of_the_same_number() -> None:
    assert {status.name: status.value for status in Status if status} == {
        rule.name: rule.value for rule in Rule if rule.value < 90
    }


def test_numbers_of_front_ends_never_become_a_status() -> None:
    assert all(rule.value < 1 << 16 for rule in Rule)
    assert max(Status) < 90


@pytest.mark.parametrize("rule", Rule)
def test_every_rule_has_a_sentence_and_a_source(rule: Rule) -> None:
    text = RULES[rule]
    assert text.clause
    assert not text.sentence.endswith(".")
    assert ";" not in text.sentence, "explain() joins its parts with semicolons"


def test_no_rule_is_explained_twice() -> None:
    sentences = [text.sentence for text in RULES.values()]
    assert len(set(sentences)) == len(sentences) == len(Rule)
