"""Measurements of a drive as a table: one row for each job of a load generator.

The columns are those of the public measurements of docs/timing.md: ``op`` (append, write, read, randread, or a mix),
``bs`` (bytes), ``zones`` (jobs, each in a zone of its own), ``qd`` (of each job), ``mean``, ``p50``, ``p95`` and
``p99`` (nanoseconds), ``iops``, ``lbaf`` (lbaf0 for 512-byte blocks, else 4096), ``engine`` (spdk, or empty; others
are left out, because they measure the host as well), ``role`` and ``ctx`` (the jobs of a mix). Columns may be missing
or empty.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from zonefs_emu.errors import UsageError

_ENGINES: Final = ("", "spdk")
_PAGES: Final = re.compile(r"pages=(\d+)")
_LIMIT: Final = re.compile(r"limit=(\d+) ")
_ROWS_MAX: Final = 1_000_000
#: Requests of a gigabyte, or more jobs than zones of any drive: not a measurement.
_VALUE_MAX: Final = 1 << 30
_GRID: Final = frozenset({"append", "write", "read", "randread"})
#: Reads that starve behind more appends than the drive takes; docs/timing.md says how far off the model is there.
_BACKLOGGED: Final = "longrate"
#: A reset of an empty zone is faster than this, in nanoseconds: the drive does not erase anything.
_NO_RESET_NS: Final = 10_000
#: Zone management by its names in the table: (operation, whether the zone was finished before).
MANAGEMENT: Final = {
    "sm_finish": ("finish", False),
    "sm_reset": ("reset", False),
    "sm_reset_finished": ("reset", True),
    "sm_empty_open": ("open", False),
    "sm_close": ("close", False),
}


class Measurement(NamedTuple):
    """One job that was measured. Times in nanoseconds, 0 where it was not measured.

    *beside*: the job that ran at the same time, or None. *pages*: for zone management, the pages of 4 KiB that were
    written in the zone before. *finished*: the zone was finished before. *limit_bytes*: the rate limit of the job, per
    second.
    """

    operation: str
    block_bytes: int
    nr_bytes: int
    nr_zones: int
    depth: int
    iops: float
    mean_ns: float
    p50_ns: float
    p95_ns: float
    p99_ns: float
    pages: int = 0
    finished: bool = False
    limit_bytes: int = 0
    beside: "Measurement | None" = None

    @property
    def group(self) -> str:
        """The group of points that is judged together."""
        if self.operation in ("finish", "reset", "open", "close"):
            return "open and close" if self.operation in ("open", "close") else "finish and reset"
        if self.beside is not None:
            is_read = self.operation == "randread"
            if (self.beside if is_read else self).limit_bytes:
                return "reads beside rate-limited writes" if is_read else "rate-limited writes beside reads"
            return "reads of a mix of jobs" if is_read else "writes of a mix of jobs"
        if self.operation == "read":
            return "sequential read"
        if self.operation == "randread":
            return "random read" if self.nr_zones <= 10 else "random read, more jobs than processors"
        return f"write and append, {self.block_bytes}-byte blocks"


def read_measurements(lines: Iterable[str]) -> list[Measurement]:
    """Return the measurements in *lines* of comma-separated values; the first line names the columns.

    Raises:
        UsageError: a column is missing or a value is no number; the sentence says in which line.
    """
    reader = csv.DictReader(lines)
    missing = {"op", "mean"} - set(reader.fieldnames or ())
    if missing:
        raise UsageError(f"line 1: no column {', '.join(sorted(missing))}; docs/timing.md has the columns")
    found: list[Measurement] = []
    mixed: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for number, row in enumerate(reader, 2):
        if number > _ROWS_MAX:
            raise UsageError(f"line {number}: more than {_ROWS_MAX} rows")
        try:
            values = {
                name: (value or "").strip() for name, value in row.items() if name and not isinstance(value, list)
            }
            measurement = _of_row(values)
        except ValueError as error:
            raise UsageError(f"line {number}: {error}") from None
        if measurement is None:
            continue
        role = values.get("role", "")
        if role:
            mixed.setdefault((values["op"], values.get("lbaf", ""), values.get("ctx", "")), {})[role] = measurement
        else:
            found.append(measurement)
    found.extend(_paired(mixed.values()))
    return found


def _of_row(row: dict[str, str]) -> Measurement | None:
    """Return the measurement of a row; None if it is not of a kind that is modelled."""
    operation, role, context = row["op"], row.get("role", ""), row.get("ctx", "")
    if row.get("engine", "") not in _ENGINES or not row["mean"] or operation.startswith(_BACKLOGGED):
        return None
    if operation == "sm_reset" and _number(row, "mean") < _NO_RESET_NS:
        return None
    pages, finished, limit_bytes = 0, False, 0
    if operation in MANAGEMENT:
        operation, finished = MANAGEMENT[operation]
        if shown := _PAGES.search(context):
            pages = int(shown[1])
    elif role:
        is_append = "append" in operation
        operation = "randread" if role == "read" else "append" if is_append else "write"
        if role == "write" and (shown := _LIMIT.match(context)):
            limit_bytes = int(shown[1]) << 20
    elif operation not in _GRID:
        return None
    return Measurement(
        operation=operation,
        block_bytes=512 if row.get("lbaf") == "lbaf0" else 4096,
        nr_bytes=_whole(row, "bs", 4096),
        nr_zones=_whole(row, "zones", 1),
        depth=_whole(row, "qd", 1),
        iops=_number(row, "iops"),
        mean_ns=_number(row, "mean"),
        p50_ns=_number(row, "p50"),
        p95_ns=_number(row, "p95"),
        p99_ns=_number(row, "p99"),
        pages=pages,
        finished=finished,
        limit_bytes=limit_bytes,
    )


def _paired(mixes: Iterable[dict[str, Measurement]]) -> Iterator[Measurement]:
    """Yield the jobs of each mix with the other job beside them; a read without writes stands alone."""
    for jobs in mixes:
        read, write = jobs.get("read"), jobs.get("write")
        if read is not None and write is not None:
            yield read._replace(beside=write)
            yield write._replace(beside=read)
        elif read is not None:
            yield read


def _number(row: dict[str, str], name: str) -> float:
    text = row.get(name, "")
    try:
        value = float(text or 0)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is not a number") from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {text!r}; it must not be negative")
    return value


def _whole(row: dict[str, str], name: str, default: int) -> int:
    value = _number(row, name)
    if value != int(value) or value > _VALUE_MAX:
        raise ValueError(f"{name} is {row[name]!r}; it must be a whole number up to {_VALUE_MAX}")
    return int(value) or default
