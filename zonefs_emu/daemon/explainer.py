"""Refusals in words: which rule was broken, and what each front-end answers to that.

Each front-end provides a :class:`FrontEndAnswers`, which is made from the tables by which the front-end answers, so
that ``why`` and the front-end cannot disagree.
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
        """Return the name of the rule of *refusal*; a rule of a later version has its number for a name."""
        rule = self.rules.get(refusal.rule)
        return f"RULE_{refusal.rule}" if rule is None else rule.name

    def answers(self, refusal: Refusal) -> dict[str, str]:
        """Return front-end -> answer for each front-end that can meet *refusal*: errno, virtio-blk status, sense.

        A rule of one front-end has an answer of that front-end only. A rule of a later version has none, because it is
        unknown which front-ends can meet it.
        """
        rule = self.rules.get(refusal.rule)
        if rule is None:
            return {}
        if isinstance(rule, DeviceRule):
            return {each.name: each.of_status(refusal.status, refusal.operation) for each in self._front_ends}
        return {each.name: each.of_rule[rule] for each in self._front_ends if rule in each.of_rule}

    def explain(self, refusal: Refusal, geometry: Geometry) -> str:
        """Return one sentence with the request, the rule that it broke, and the clause that states the rule."""
        return explain(refusal, geometry, self.rules)

    def explain_all(self, refusal: Refusal, geometry: Geometry) -> str:
        """Return the sentence of :meth:`explain`, and the answers of the front-ends after it."""
        sentence = self.explain(refusal, geometry)
        codes = self.answers(refusal)
        return f"{sentence}; {_sentence(codes)}" if codes else sentence


def _sentence(answers: Mapping[str, str]) -> str:
    """Return the end of a sentence on a refusal: the answers, each with the front-ends that give it."""
    front_ends: dict[str, list[str]] = {}
    for front_end, answer in answers.items():
        front_ends.setdefault(answer, []).append(front_end)
    return "answered as " + ", ".join(f"{answer} ({', '.join(names)})" for answer, names in front_ends.items())
