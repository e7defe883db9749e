"""Refusals in words: which rule was broken, and what each front-end answers to that.

A front-end's part is a :class:`FrontEndAnswers`, made from the tables by which it answers, so that ``why`` and the
front-end cannot disagree.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from zonefs_emu.device.refusals import Refusal, explain
from zonefs_emu.device.rules import DeviceRule, FrontEndAnswers, Rule
from zonefs_emu.model.geometry import Geometry


class Explainer:
    """Explains refusals by the rules of the device and of some *front_ends*."""

    def __init__(self, front_ends: Iterable[FrontEndAnswers] = ()) -> None:
        self._front_ends = tuple(front_ends)
        rules: dict[int, Rule] = {rule.value: rule for rule in DeviceRule}
        for front_end in self._front_ends:
            for rule in front_end.of_rule:
                other = rules.setdefault(rule.value, rule)
                if other is not rule:
                    raise AssertionError(f"{rule!r} has the number of {other!r}")
        #: All rules, by the number that images keep.
        self.rules: Mapping[int, Rule] = MappingProxyType(rules)

    def name(self, refusal: Refusal) -> str:
        """Return the name of the rule that *refusal* is by; one of a later version is named by its number."""
        rule = self.rules.get(refusal.rule)
        return f"RULE_{refusal.rule}" if rule is None else rule.name

    def answers(self, refusal: Refusal) -> dict[str, str]:
        """Return front-end -> answer for each front-end that can meet *refusal*: errno, virtio-blk status, sense.

        A front-end's own rule is met there only. There is no answer to a rule of a later version: which front-ends can
        meet it is unknown.
        """
        rule = self.rules.get(refusal.rule)
        if rule is None:
            return {}
        if isinstance(rule, DeviceRule):
            return {each.name: each.of_status(refusal.status, refusal.operation) for each in self._front_ends}
        return {each.name: each.of_rule[rule] for each in self._front_ends if rule in each.of_rule}

    def explain(self, refusal: Refusal, geometry: Geometry) -> str:
        """Return one sentence that says what was asked, what stood against it, and where that is written."""
        return explain(refusal, geometry, self.rules)

    def explain_all(self, refusal: Refusal, geometry: Geometry) -> str:
        """Return the same sentence, and what the front-ends answer."""
        sentence = self.explain(refusal, geometry)
        codes = self.answers(refusal)
        return f"{sentence}; {_sentence(codes)}" if codes else sentence


def _sentence(answers: Mapping[str, str]) -> str:
    """Return the end of a sentence on a refusal: the answers, each with the front-ends that give it."""
    front_ends: dict[str, list[str]] = {}
    for front_end, answer in answers.items():
        front_ends.setdefault(answer, []).append(front_end)
    return "answered as " + ", ".join(f"{answer} ({', '.join(names)})" for answer, names in front_ends.items())
