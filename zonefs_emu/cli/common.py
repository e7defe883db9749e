"""The common part of several verbs: parameter types, options, and reading the zones of an image."""

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from math import isnan
from pathlib import Path
from typing import Final, TypeVar, cast

import click
from click.core import ParameterSource

from zonefs_emu.cli.conditions import parse_cond, parse_conds
from zonefs_emu.cli.sizes import parse_size
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json, unpack_zones
from zonefs_emu.errors import UsageError, printable, trying
from zonefs_emu.model.zone import Condition, Zone

_Function = TypeVar("_Function", bound=Callable[..., object])
#: Output is written in pieces of this many characters, so that a report of a million zones is neither one string nor a
#: million system calls.
_PIECE: Final = 1 << 16
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def refuse_options_beside(allowed: Collection[str], mode: str) -> None:
    """Refuse an option of the command line that *mode* would ignore: one whose parameter is not among *allowed*.

    An option without effect looks as if it had one, so that the user draws wrong conclusions.

    Raises:
        UsageError: there is one; names it.
    """
    for parameter, option in _given_options():
        if parameter not in allowed:
            message = f"{option} has no effect {mode}: leave it away"
            raise UsageError(message)


def refuse_options_without(parameters: Collection[str], others: Collection[str], what: str) -> None:
    """Refuse an option whose parameter is among *parameters*, unless one of *others*, which *what* names, is given.

    Raises:
        UsageError: there is one; names it.
    """
    given = dict(_given_options())
    if given.keys().isdisjoint(others):
        for parameter in given.keys() & set(parameters):
            message = f"{given[parameter]} is for {what}, which is not given"
            raise UsageError(message)


def _given_options() -> Iterator[tuple[str, str]]:
    """Yield the name of the parameter and the option for each option that the command line has."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if isinstance(parameter, click.Option) and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            is_off = parameter.secondary_opts and context.params.get(name) is False
            yield name, (parameter.secondary_opts if is_off else parameter.opts)[-1]


class SizeType(click.ParamType[int]):
    """A size such as 64M, in bytes."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return *value* in bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ConditionType(click.ParamType[Condition]):
    """A zone condition by any tool's name."""

    name = "condition"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        """Return the condition called *value*."""
        try:
            return parse_cond(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class ConditionsType(click.ParamType[frozenset[Condition]]):
    """Zone conditions, separated by commas."""

    name = "conditions"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[Condition]:
        """Return the conditions in *value*."""
        try:
            return parse_conds(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class TextType(click.ParamType[str]):
    """A text that is stored as UTF-8, in any locale."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, _ctx: click.Context | None) -> str:
        """Return *value*.

        Raises:
            UsageError: it is no text. It is not click's error, because a verb that replaces another program may give
            wrong usage another exit code, and this error must keep its own.
        """
        try:
            # The bytes as they were typed: in a locale without UTF-8, Python has decoded them as surrogates.
            return os.fsencode(value).decode()
        except UnicodeDecodeError:
            name = param.opts[0] if param is not None else "the text"
            message = f"{name} must be UTF-8 text, and '{printable(value)}' is not"
            raise UsageError(message) from None


class NumberRange(click.FloatRange):
    """A number in a range. Click's own type accepts ``nan`` in every range."""

    def convert(self, value: float | str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))  # type: ignore[arg-type]  # click converts texts
        if isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


TEXT: Final = TextType()
SIZE: Final = SizeType()
#: A path is not checked beforehand: the operation on it reports errors, in the same way for all verbs.
FILE: Final = click.Path(path_type=Path, readable=False)
#: The timing presets of zonefs_emu.model.timing.timing_presets, which is loaded where one is used.
TIMINGS: Final = ("zn540", "smr-hm", "none")
#: The result of FILE_OR_STREAM for a standard stream; compared by identity, because a path may be equal.
STREAM: Final = Path("-")


class FileOrStreamType(click.ParamType[Path]):
    """A file, or "-" for a standard stream. The path of a file of that name is ./-, which pathlib turns into "-"."""

    name = "file"

    def convert(self, value: str | Path, _param: click.Parameter | None, _ctx: click.Context | None) -> Path:
        """Return the path, or STREAM itself."""
        return STREAM if value == "-" else Path(value)


FILE_OR_STREAM: Final = FileOrStreamType()


def image_argument(function: _Function) -> _Function:
    """Add the argument IMG."""
    return click.argument("image", metavar="IMG", type=FILE)(function)


def json_option(function: _Function) -> _Function:
    """Add the option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def record_option(function: _Function) -> _Function:
    """Add the option --record."""
    return click.option(
        "--record", "record_file", metavar="FILE", type=FILE, help="Log every operation in the new FILE, for replay."
    )(function)


def timing_options(function: _Function) -> _Function:
    """Add the options --timing and --time-scale."""

    @functools.wraps(function)
    def checked(**parameters: object) -> object:
        if parameters["timing"] == "none":
            refuse_options_beside(click.get_current_context().params.keys() - {"time_scale"}, "without --timing")
        return function(**parameters)

    with_scale = click.option(
        "--time-scale", type=NumberRange(0.001, 1_000_000), default=1.0, metavar="N",
        help="Make the drive of --timing slower by this factor, for a host that cannot keep up with it.",
    )(cast("_Function", checked))  # fmt: skip
    return click.option(
        "--timing", type=click.Choice(TIMINGS), default="none", show_default=True,
        help="Answer as late as this drive would.",
    )(with_scale)  # fmt: skip


def zone_option(function: _Function) -> _Function:
    """Add the required option --zone."""
    return click.option(
        "--zone", "zone_no", required=True, metavar="N", type=click.IntRange(min=0), help="Number of the zone, from 0."
    )(function)


def say_json(obj: Json) -> None:
    """Print *obj* as JSON that is readable for people."""
    _print(json_text(obj, indent=2))


def json_text(obj: Json, *, indent: int | None = None) -> str:
    """Return *obj* as JSON that any stream can encode.

    A byte of a path that is no text is written as its escaped surrogate (PEP 383): 0xFF as ``\\udcff``. So nothing is
    lost, and ``os.fsencode`` of the string from a JSON reader is the path again.
    """
    text = json.dumps(obj, indent=indent, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _print(text: str, *, nl: bool = True, err: bool = False) -> None:
    # The host's error has no name for a descriptor.
    with trying("write to stderr" if err else "write to stdout"):
        click.echo(text, nl=nl, err=err)


def say(text: object, *, err: bool = False) -> None:
    """Print one line of *text* that may have a path in it."""
    _print(printable(text), err=err)


def say_lines(lines: Iterable[str]) -> None:
    """Print *lines*, which end in newlines, in large pieces."""
    piece: list[str] = []
    length = 0
    for line in lines:
        piece.append(line)
        length += len(line)
        if length >= _PIECE:
            _print("".join(piece), nl=False)
            piece.clear()
            length = 0
    _print("".join(piece), nl=False)


def zones_of(
    target: Target, first: int = 0, count: int | None = None, conds: frozenset[Condition] | None = None
) -> Iterator[Zone]:
    """Yield up to *count* zones from number *first* on, those in *conds* only if given."""
    for payload in packed_zones_of(target, first, count, conds):
        yield from unpack_zones(payload)


def packed_zones_of(
    target: Target, first: int = 0, count: int | None = None, conds: frozenset[Condition] | None = None
) -> Iterator[bytes]:
    """Yield the same as :func:`zones_of`, many zones at a time and an eighth of the size."""
    request: dict[str, Json] = {"verb": "report", "zone_no": first}
    if count is not None:
        request["count"] = count
    if conds is not None:
        request["conds"] = [int(cond) for cond in conds]
    yield from (payload for _, payload in target.stream(request))


def zone_of(target: Target, zone_no: int) -> Zone:
    """Return zone *zone_no*.

    Raises:
        UsageError: there is no such zone.
    """
    nr_zones = number_of(info_of(target), "nr_zones")
    if zone_no >= nr_zones:
        message = f"there is no zone {zone_no}: the device has zones 0 to {nr_zones - 1}"
        raise UsageError(message, exit_code=1)
    (zone,) = zones_of(target, zone_no, 1)
    return zone


def info_of(target: Target) -> dict[str, Json]:
    """Return the reply of the verb ``info``."""
    return call(target, {"verb": "info"})[0]


def number_of(reply: dict[str, Json], name: str) -> int:
    """Return the number *name* of *reply*, which the device made."""
    value = reply[name]
    assert isinstance(value, int)
    return value
