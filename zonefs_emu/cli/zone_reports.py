"""Zone reports that other tools have printed, read back: the counterpart of :mod:`zonefs_emu.cli.formats`.

Pure: text in, zones out. A report may be in the middle of other text, a bug report for example. Between its first and
its last zone every line must be a zone, and a number of zones in the text must be right. So a report that was cut is
refused with the line where it ends, and never becomes a smaller drive.

Sources: util-linux sys-utils/blkzone.c; libzbd tools/cli/zbd.c; QEMU qemu-io-cmds.c, zone_report_f; libzbc
tools/report_zones/zbc_report_zones.c; nvme-cli nvme-print-stdout.c and nvme-print-json.c.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from zonefs_emu.cli.conditions import parse_cond
from zonefs_emu.errors import UsageError, printable
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_BYTES

_SHOWN_CHARACTERS: Final = 60
#: Zone types of ZBC-2 and, for gap zones, of no other standard.
_TYPES: Final = MappingProxyType({"1": 1, "2": 2, "3": 3, "5": 5, "cnv": 1, "swr": 2, "swp": 3, "SEQWRITE_REQ": 2})
_NO_LIMIT_MAR: Final = 0xFFFFFFFF
_FORMATS_IN_4_BITS: Final = 16
#: The end of a line of a zone that looks whole even if digits of it were cut.
_OPEN_END: Final = re.compile(r".*(cap|wp) \d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedZone:
    """A zone in a report, in the units of the report; *where* names its line.

    *length* and *capacity* are None if the format has none. *wp* is absolute, and None if it has no meaning.
    """

    where: str
    start: int
    length: int | None
    capacity: int | None
    wp: int | None
    cond: Condition
    type: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report. *tool* is the format, and *unit_bytes* the size of its unit, None if the report does not have it.

    The limits are None if unknown, and 0 if there is none.
    """

    tool: str
    unit_bytes: int | None
    zones: Sequence[ReportedZone]
    block_size_bytes: int | None = None
    size_bytes: int | None = None
    max_open_zones: int | None = None
    max_active_zones: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """The line of a tool for one zone.

    *likeness* matches the beginning of such a line, which may be cut, and *line* the whole line. *relative*: wp counts
    from the zone's start. *claim* matches a line with the number of zones.
    """

    likeness: "re.Pattern[str]"
    line: "re.Pattern[str]"
    unit_bytes: int | None
    relative: bool = False
    claim: "re.Pattern[str] | None" = field(default=None)


_FORMATS: Final = MappingProxyType(
    {
        # Before util-linux 2.37 without cap, from 2.42 on with N/A.
        "blkzone": _Format(
            likeness=re.compile(r"\s*start: 0x"),
            line=re.compile(
                r"\s*start: (?P<start>0x[0-9a-f]+), len (?P<length>0x[0-9a-f]+)(, cap (?P<capacity>0x[0-9a-f]+))?, "
                r"wptr (?P<wp>0x[0-9a-f]+|N/A) reset:\d non-seq:\d, zcond: ?(?P<cond>\d+)\(\w+\) "
                r"\[type: (?P<type>\d)\(\w+\)\]\s*"
            ),
            unit_bytes=SECTOR_BYTES,
            relative=True,
            claim=re.compile(r"Found (\d+) zones from 0x0\s*"),
        ),
        # QEMU's, which has blkzone's words and absolute write pointers.
        "zrp": _Format(
            likeness=re.compile(r"\s*start: 0x"),
            line=re.compile(
                r"\s*start: (?P<start>0x[0-9a-f]+), len (?P<length>0x[0-9a-f]+), cap (?P<capacity>0x[0-9a-f]+), "
                r"wptr (?P<wp>0x[0-9a-f]+), zcond: ?(?P<cond>\d+), \[type: (?P<type>\d)\]\s*"
            ),
            unit_bytes=SECTOR_BYTES,
        ),
        "zbd": _Format(
            likeness=re.compile(r"\s*Zone \d+: [a-z]{3},"),
            line=re.compile(
                r"\s*Zone \d+: (?P<type>cnv|swr|swp), ofst (?P<start>\d+), len (?P<length>\d+), "
                r"cap (?P<capacity>\d+)(, wp (?P<wp>\d+), (?P<cond>[a-z]{2}), non_seq \d, reset \d)?\s*"
            ),
            unit_bytes=1,
            claim=re.compile(r"\s*Zones: +(\d+) zones of .*"),
        ),
        "zbd-csv": _Format(
            likeness=re.compile(r"\s*\d{5,}, \d, \d"),
            line=re.compile(
                r"\s*\d+, (?P<type>\d), (?P<start>\d+), (?P<length>\d+), (?P<capacity>\d+), (?P<wp>\d+), "
                r"(?P<cond>0x[0-9a-f]+), \d, \d\s*"
            ),
            unit_bytes=1,
            claim=re.compile(r"\s*Zones: +(\d+) zones of .*"),
        ),
        "nvme": _Format(
            likeness=re.compile(r"\s*SLBA: "),
            line=re.compile(
                r"\s*SLBA: (?P<start>0x[0-9a-f]+)\s+WP: (?P<wp>0x[0-9a-f]+)\s+Cap: (?P<capacity>0x[0-9a-f]+)\s+"
                r"State: (?P<cond>\w+)\s+Type: (?P<type>\w+)\s+Attrs: \w.*"
            ),
            unit_bytes=None,
            claim=re.compile(r"nr_zones: (\d+)\s*"),
        ),
        # Conventional zones have no write pointer, and the condition of gap zones has no meaning since ZBC-2.
        "libzbc": _Format(
            likeness=re.compile(r"\s*Zone \d+: type 0x"),
            line=re.compile(
                r"\s*Zone \d+: type 0x(?P<type>\d) \([\w -]+\), cond (?P<cond>0x[0-9a-f]+) \([\w -]+\)"
                r"(, reset recommended \d, non_seq \d)?, sector (?P<start>\d+), (?P<length>\d+) sectors"
                r"(, wp (?P<wp>\d+))?\s*"
            ),
            unit_bytes=SECTOR_BYTES,
            claim=re.compile(r"\s*(\d+) zones? from 0, reporting option 0x00.*"),
        ),
    }
)


def _limit(text: str) -> int:
    return 0 if text == "no limit" else int(text)


#: The lines of zbd -i and libzbc on the device, before its zones: the field of Report, and how it is read.
_FACTS: Final[Sequence[tuple[str, "re.Pattern[str]", Callable[[str], int]]]] = (
    ("max_open_zones", re.compile(r"\s*Maximum number of open zones: *(\d+|no limit)\s*"), _limit),
    ("max_active_zones", re.compile(r"\s*Maximum number of active zones: *(\d+|no limit)\s*"), _limit),
    ("block_size_bytes", re.compile(r"\s*Logical blocks: *\d+ blocks of (\d+) B\s*"), int),
    ("size_bytes", re.compile(r"\s*Capacity: .*\((\d+) 512-bytes sectors\)\s*"), lambda t: int(t) * SECTOR_BYTES),
)


def parse_report(text: str, name: str) -> Report:
    """Return the report in *text*, the content of *name*: the output of any of the tools above.

    Raises:
        UsageError: there is none, it was cut, or it is of two kinds; names the line.
    """
    if text.lstrip().startswith(("{", "[")):
        return _parse_json(text, name)
    lines = text.splitlines()
    tool, first = _recognize(lines, name)
    layout = _FORMATS[tool]
    last = max(index for index, line in enumerate(lines) if layout.likeness.match(line))
    zones = [
        _zone(layout, tool, line, f"line {first + i + 1} of {name}") for i, line in enumerate(lines[first : last + 1])
    ]
    if last + 2 == len(lines) and not text.endswith("\n"):
        message = f"line {last + 2} of {name}, the last one, is incomplete: the report was cut"
        raise UsageError(message)
    if last + 1 == len(lines) and not text.endswith("\n") and _OPEN_END.fullmatch(lines[last]):
        message = (
            f"line {last + 1} of {name}, the last one, may be incomplete, as it has no newline: was the report cut?"
        )
        raise UsageError(message)
    facts: dict[str, int] = {}
    for index, line in enumerate(lines):
        if not first <= index <= last:
            _require_same_tool(tool, line, f"line {index + 1} of {name}")
            facts |= {fact: read(found[1]) for fact, pattern, read in _FACTS if (found := pattern.fullmatch(line))}
            claimed = layout.claim and layout.claim.fullmatch(line)
            if claimed and int(claimed[1]) != len(zones):
                message = (
                    f"{name} was cut: line {index + 1} says {claimed[1]} zones, but there are {len(zones)}, up to line "
                    f"{last + 1}"
                )
                raise UsageError(message)
    return Report(tool=tool, unit_bytes=layout.unit_bytes, zones=zones, **facts)


def has_zones(text: str) -> bool:
    """Return whether *text* has the beginning of a tool's line of a zone, or is JSON with a list of zones."""
    return '"zone_list"' in text or any(
        layout.likeness.match(line) for line in text.splitlines() for layout in _FORMATS.values()
    )


def _recognize(lines: Sequence[str], name: str) -> tuple[str, int]:
    """Return the tool that printed the first zone in *lines*, and the index of that line."""
    for index, line in enumerate(lines):
        alike = [tool for tool, layout in _FORMATS.items() if layout.likeness.match(line)]
        if alike:
            # Lines of blkzone and QEMU begin alike. A line that was cut matches both, and is refused as one of blkzone.
            whole = [tool for tool in alike if _FORMATS[tool].line.fullmatch(line)]
            return (whole or alike)[0], index
    message = f"{name} has no zone in a form that {', '.join(_FORMATS)} or nvme -o json print"
    raise UsageError(message)


def _require_same_tool(tool: str, line: str, where: str) -> None:
    for other, layout in _FORMATS.items():
        if other != tool and layout.line.fullmatch(line):
            message = (
                f"{where} is a zone as {other} prints it, but the others are as {tool} prints them: give only "
                "one report"
            )
            raise UsageError(message)


def _zone(layout: _Format, tool: str, line: str, where: str) -> ReportedZone:
    _require_same_tool(tool, line, where)
    found = layout.line.fullmatch(line)
    if found is None:
        shown = printable(line.strip())[:_SHOWN_CHARACTERS]
        message = f"{where} is not a zone as {tool} prints it: '{shown}'; the report was cut, or contains other text"
        raise UsageError(message)
    fields = found.groupdict()
    start = _integer(fields["start"])
    cond = _condition(tool, fields["cond"], where)
    wp = None if cond in _WITHOUT_WP or fields["wp"] in (None, "N/A") else _integer(fields["wp"])
    length, capacity = (None if fields.get(part) is None else _integer(fields[part]) for part in ("length", "capacity"))
    zone_type = _TYPES.get(fields["type"].removeprefix("0x"))
    if zone_type is None:
        message = f"{where} has a zone of an unknown type: {fields['type']}"
        raise UsageError(message)
    return ReportedZone(
        where=where, start=start, length=length, capacity=capacity,
        wp=wp + start if layout.relative and wp is not None else wp, cond=cond, type=zone_type,
    )  # fmt: skip


_WITHOUT_WP: Final = frozenset({Condition.NOT_WP, Condition.READONLY, Condition.FULL, Condition.OFFLINE})


def _integer(text: str) -> int:
    """Return the number *text*: hexadecimal after 0x, otherwise decimal, which may have leading zeros."""
    return int(text, 16) if text.startswith("0x") else int(text)


def _condition(tool: str, text: str | None, where: str) -> Condition:
    if text is None:
        return Condition.NOT_WP
    if tool == "nvme" and text.startswith("0x"):
        # Newer versions print the byte of the descriptor, whose upper half is the state.
        text = hex(int(text, 16) >> 4)
    try:
        return parse_cond(text)
    except UsageError:
        message = f"{where} has an unknown condition: {text}"
        raise UsageError(message) from None


# -- nvme -o json -------------------------------------------------------------------------------------------------


def _parse_json(text: str, name: str) -> Report:
    """Return the report of ``nvme zns report-zones -o json``; objects of ``id-ns`` may stand before or after it.

    Raises:
        UsageError: it is no JSON, or has no zones; names the place.
    """
    objects = list(_objects(text, name))
    reports = [each for each in objects if "zone_list" in each]
    if len(reports) != 1:
        message = f"{name} has {len(reports) or 'no'} lists of zones (zone_list), but exactly one is needed"
        raise UsageError(message)
    facts = _identify_facts(objects, name)
    unit = facts.pop("unit_bytes", None)
    zone_size = facts.pop("zone_size", None)
    listed = reports[0]["zone_list"]
    claimed = reports[0].get("nr_zones")
    if not isinstance(listed, list) or (isinstance(claimed, int) and claimed != len(listed)):
        count = len(listed) if isinstance(listed, list) else 0
        message = f"{name} was cut: it says {claimed} zones (nr_zones), but has {count}"
        raise UsageError(message)
    zones = [_json_zone(each, zone_size, f"zone {index} of {name}") for index, each in enumerate(listed)]
    blocks = facts.pop("nr_blocks", None)
    size = None if blocks is None or unit is None else blocks * unit
    return Report(
        tool="nvme", unit_bytes=unit, zones=zones, block_size_bytes=unit, size_bytes=size, **facts
    )  # fmt: skip


def _objects(text: str, name: str) -> Iterator[dict[str, object]]:
    """Yield the JSON objects in *text*, one after the other."""
    decoder = json.JSONDecoder()
    position = 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        try:
            value, position = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its depth"
            message = f"{name} is not JSON from {where} on: it was cut, or contains other text"
            raise UsageError(message) from None
        if not isinstance(value, dict):
            message = f"{name} is a JSON {type(value).__name__}, but nvme -o json prints an object"
            raise UsageError(message)
        yield value


def _identify_facts(records: Sequence[dict[str, object]], name: str) -> dict[str, int]:
    """Return the values in the objects of ``nvme id-ns`` and ``nvme zns id-ns`` among *records*.

    Source: NVM Express NVM Command Set, Identify Namespace; Zoned Namespace Command Set 1.1, Identify Namespace: the
    extensions of LBA formats have the order of the formats, MAR and MOR count from 0, and all ones say that there is no
    limit.
    """
    facts: dict[str, int] = {}
    in_use: int | None = None
    try:
        for record in records:
            if "lbafs" in record:
                in_use = _format_in_use(record)
                facts["unit_bytes"] = _block_bytes(_entry(record["lbafs"], in_use))
                facts["nr_blocks"] = _number(record["nsze"])
        for record in records:
            if "lbafe" in record:
                sizes = _zone_sizes(record["lbafe"])
                if len(set(sizes)) == 1:
                    facts["zone_size"] = sizes[0]
                elif in_use is not None:
                    facts["zone_size"] = sizes[in_use]
                for field_name, fact in (("mor", "max_open_zones"), ("mar", "max_active_zones")):
                    value = _number(record[field_name])
                    facts[fact] = 0 if value >= _NO_LIMIT_MAR else value + 1
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"a field of the output of nvme id-ns in {name} is missing or wrong: {error}"
        raise UsageError(message) from None
    return facts


def _format_in_use(record: dict[str, object]) -> int:
    """Return the index of the LBA format in use. Source: NVM Command Set, FLBAS: bits 6:5 count from 17 formats on."""
    flbas, formats = _number(record["flbas"]), record["lbafs"]
    many = isinstance(formats, list) and len(formats) > _FORMATS_IN_4_BITS
    return flbas & 0xF | (flbas >> 1 & 0x30 if many else 0)


def _block_bytes(lba_format: dict[str, object]) -> int:
    shift = _number(lba_format["ds"])
    if not 9 <= shift < 64:
        message = f"blocks of 2^{shift} bytes"
        raise ValueError(message)
    return 1 << shift


def _zone_sizes(listed: object) -> list[int]:
    """Return the zone size, in blocks, of each LBA format."""
    if not isinstance(listed, list) or not listed:
        raise TypeError(listed)
    return [_number(_entry(listed, index)["zsze"]) for index in range(len(listed))]


def _entry(listed: object, index: int) -> dict[str, object]:
    if not isinstance(listed, list) or not isinstance(listed[index], dict):
        raise TypeError(listed)
    entry: dict[str, object] = listed[index]
    return entry


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(value)
    return int(value, 0) if isinstance(value, str) else value


def _json_zone(record: object, zone_size: int | None, where: str) -> ReportedZone:
    try:
        if not isinstance(record, dict):
            raise TypeError(record)
        # Some versions of nvme-cli print State and Type.
        record = {str(key).lower(): value for key, value in record.items()}
        start, capacity, wp = (_number(record[name]) for name in ("slba", "cap", "wp"))
        state, kind = str(record["state"]), str(record["type"])
    except (KeyError, TypeError, ValueError) as error:
        message = f"a field of {where} is missing or wrong: {error}"
        raise UsageError(message) from None
    cond = _condition("nvme-json", hex(int(state) >> 4) if state.isdecimal() else state, where)
    zone_type = _TYPES.get(kind.removeprefix("0x"))
    if zone_type is None:
        message = f"{where} is of an unknown type: {printable(kind)}"
        raise UsageError(message)
    return ReportedZone(
        where=where, start=start, length=zone_size, capacity=capacity,
        wp=None if cond in _WITHOUT_WP else wp, cond=cond, type=zone_type,
    )  # fmt: skip
