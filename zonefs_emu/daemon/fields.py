"""The fields of a request. Requests come from outside: each field is checked when it is read.

Pure. A wrong field raises UsageError, with a sentence that names the field.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition

Request: TypeAlias = Mapping[str, Json]
#: Yields the replies to a request and its payload; raises ZonedError or OSError if the request is refused.
Verb: TypeAlias = Callable[[Request, bytes], Iterator[Message]]

#: The name of the verbs' ports, which begins their sentences in ``why``.
PORT_NAME: Final = "cli"
NUMBER_MAX: Final = (1 << 63) - 1
#: The most characters of a text: as many as the longest path of Linux has bytes.
TEXT_MAX: Final = 4096


def text(request: Request, name: str) -> str:
    """Return the text in field *name*, empty where there is no such field.

    Raises:
        UsageError: it is something else, or longer than a text may be.
    """
    value = request.get(name, "")
    if not isinstance(value, str):
        message = f"'{name}' must be a text, not {value!r}"
        raise UsageError(message)
    if len(value) > TEXT_MAX:
        message = f"'{name}' must have at most {TEXT_MAX} characters, not {len(value)}"
        raise UsageError(message)
    return value


def path(request: Request, name: str) -> Path:
    """Return the path in field *name*. It must be absolute, because a daemon has another directory than its clients.

    Raises:
        UsageError: it is something else, or no file can have that name.
    """
    value = text(request, name)
    try:
        is_possible = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_possible = False  # a surrogate that stands for no byte (PEP 383)
    if not is_possible or not Path(value).is_absolute():
        message = f"'{name}' must be an absolute path, not {value!r}"
        raise UsageError(message)
    return Path(value)


def number(
    request: Request, name: str, *, minimum: int = 0, maximum: int = NUMBER_MAX, default: int | None = None
) -> int:
    """Return the number in field *name*, from *minimum* to *maximum*; *default* where there is no such field.

    Raises:
        UsageError: it is something else.
    """
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"'{name}' must be a number, not {value!r}"
        raise UsageError(message)
    if not minimum <= value <= maximum:
        message = f"'{name}' must lie between {minimum} and {maximum}, not be {value}"
        raise UsageError(message, exit_code=1)
    return value


def condition(value: Json) -> Condition:
    """Return the condition whose number *value* is.

    Raises:
        UsageError: it is something else.
    """
    try:
        if isinstance(value, int):
            return Condition(value)
    except ValueError:
        pass
    message = f"{value!r} is not the number of a zone condition"
    raise UsageError(message)


def conditions(request: Request) -> frozenset[Condition] | None:
    """Return the conditions whose numbers are in the field ``conds``, None where there is no such field.

    Raises:
        UsageError: it is something else.
    """
    values = request.get("conds")
    if values is None:
        return None
    if not isinstance(values, list):
        message = "'conds' must be a list of condition numbers"
        raise UsageError(message)
    return frozenset(condition(value) for value in values)
