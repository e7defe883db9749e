from pathlib import Path

import pytest

from zonefs_emu.daemon.fields import TEXT_MAX, condition, conditions, number, path, text
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition


def test_texts() -> None:
    assert text({"label": "a"}, "label") == "a"
    assert text({}, "label") == ""
    with pytest.raises(UsageError, match="'label' must be a text, not 3"):
        text({"label": 3}, "label")
    assert text({"label": "a" * TEXT_MAX}, "label") == "a" * TEXT_MAX
    with pytest.raises(UsageError, match="'label' must have at most 4096 characters, not 4097"):
        text({"label": "a" * (TEXT_MAX + 1)}, "label")


def test_paths() -> None:
    assert path({"path": "/a\udcff\nb"}, "path") == Path("/a\udcff\nb")
    for value in ("", "a", "/a\0", "/a\ud800"):
        with pytest.raises(UsageError, match="'path' must be an absolute path, not "):
            path({"path": value}, "path")


def test_numbers() -> None:
    assert number({"count": 3}, "count") == 3
    assert number({}, "count", default=7) == 7
    assert number({"count": (1 << 63) - 1}, "count") == (1 << 63) - 1


@pytest.mark.parametrize(
    ("value", "sentence", "code"),
    [
        (None, "'count' must be a number, not None", 2),
        (True, "'count' must be a number, not True", 2),
        (1.5, "'count' must be a number, not 1.5", 2),
        (0, "'count' must lie between 1 and 9, not be 0", 1),
        (10, "'count' must lie between 1 and 9, not be 10", 1),
    ],
)
def test_what_is_no_such_number(value: Json, sentence: str, code: int) -> None:
    with pytest.raises(UsageError) as caught:
        number({"count": value}, "count", minimum=1, maximum=9)
    assert (str(caught.value), caught.value.exit_code) == (sentence, code)


def test_conditions() -> None:
    assert condition(1) is Condition.EMPTY
    assert conditions({"conds": [1, 14]}) == frozenset((Condition.EMPTY, Condition.FULL))
    assert conditions({}) is None


def test_what_is_no_condition() -> None:
    for value in (7, "em", None):
        with pytest.raises(UsageError, match="is not the number of a zone condition"):
            condition(value)
    with pytest.raises(UsageError, match="'conds' must be a list"):
        conditions({"conds": 1})
