"""Workloads in files: the TOML of this program, job files of fio, and operation logs.

Pure: text in, jobs out. fio's options that affect a drive are used, and those that affect the host only are ignored.
Any other option is refused, because without it the workload would be another one.
"""

import configparser
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from zonefs_emu.cli.durations import parse_duration
from zonefs_emu.cli.sizes import parse_size
from zonefs_emu.device.oplog import NR_SECTORS_MAX, parse_line, source_geometry
from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.timing.workload import ALL_ZONES, REQUESTS_MAX, TIME_MAX_NS, Arrival, WorkloadJob
from zonefs_emu.model.transitions import Operation
from zonefs_emu.units import to_bytes, to_sectors

OPERATIONS: Final = {
    "read": Operation.READ,
    "write": Operation.WRITE,
    "append": Operation.APPEND,
    "open": Operation.OPEN,
    "close": Operation.CLOSE,
    "finish": Operation.FINISH,
    "reset": Operation.RESET,
}
_OF_ANY_ZONE: Final = frozenset((Operation.READ, Operation.WRITE))
_JOBS_MAX: Final = 1024
#: The most requests under way together, of a job and of all jobs of a group.
DEPTH_MAX: Final = 1 << 16
_NUMBER_MAX: Final = 1 << 62
_NS: Final = 1_000_000_000
_TOML_KEYS: Final = frozenset(
    {
        *("name", "operation", "mix", "size", "sizes", "zones", "depth", "random", "rate", "rate_requests", "count"),
        *("bytes", "time", "start", "think", "group", "jobs", "open_zones", "skip_zones"),
    }
)
#: Options of fio that say how it works on its host, or what it prints, and not what it asks of the drive.
_PASSED_OVER: Final = frozenset(
    {
        *("allow_file_create", "allow_mounted_write", "bwavgtime", "clat_percentiles", "clocksource", "cmd_type"),
        *("cpus_allowed", "description", "disable_clat", "disable_slat", "disk_util", "fallocate"),
        *("file_service_type", "fixedbufs", "fsync_on_close", "group_reporting", "gtod_reduce", "hipri"),
        *("invalidate", "iomem", "lat_percentiles", "log_avg_msec", "mem", "minimal"),
        *("name", "nice", "nonvectored", "norandommap", "nsid", "numa_cpu_nodes"),
        *("overwrite", "per_job_logs", "percentile_list", "prio", "randrepeat", "randseed"),
        *("refill_buffers", "registerfiles", "sqthread_poll", "status_interval", "thread", "unified_rw_reporting"),
        *("write_bw_log", "write_iops_log", "write_lat_log"),
    }
)
#: Options of fio that would make another workload, with the values that do not.
_FIO_HARMLESS: Final = {
    "direct": ("1",),
    "exitall": ("0",),
    "initial_zone_reset": ("0",),
    "iodepth_batch": ("1",),
    "iodepth_batch_complete": ("0", "1"),
    "iodepth_batch_complete_max": ("0", "1"),
    "iodepth_batch_complete_min": ("0", "1"),
    "iodepth_batch_submit": ("1",),
    "iodepth_low": (),
    "read_beyond_wp": ("0",),
    "zonemode": ("zbd",),
}
#: Engines of fio with requests under way together, and those with one after the other, whatever iodepth says.
_FIO_ASYNC_ENGINES: Final = frozenset(("io_uring", "io_uring_cmd", "libaio", "posixaio", "sg"))
_FIO_SYNC_ENGINES: Final = frozenset(("libzbc", "psync", "pvsync", "pvsync2", "sync", "vsync"))
_FIO_MIX: Final = {
    "read": (1.0, 0.0, False),
    "write": (0.0, 1.0, False),
    "randread": (1.0, 0.0, True),
    "randwrite": (0.0, 1.0, True),
    "rw": (0.5, 0.5, False),
    "readwrite": (0.5, 0.5, False),
    "randrw": (0.5, 0.5, True),
}
_FIO_NAMES: Final = {"readwrite": "rw", "blocksize": "bs", "rate_iops": "rate_iops", "wait_for_previous": "stonewall"}
_FIO_KEYS: Final = frozenset(
    {
        *("rw", "bs", "bssplit", "iodepth", "numjobs", "size", "io_size", "offset", "offset_increment", "rwmixread"),
        *("rwmixwrite", "rate", "rate_iops", "runtime", "time_based", "number_ios", "startdelay", "thinktime"),
        *("stonewall", "zone_append", "ioengine", "filename", "zonesize", "zonecapacity", "zoneskip", "max_open_zones"),
        *("job_max_open_zones", "ignore_zone_limits"),
    }
)
_ONE_SIZE: Final = "different sizes of reads and writes are not simulated: write two jobs"
_FIO_TIME: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(us|usec|ms|msec|s|sec|m|min|h|hour)?")
_FIO_UNITS_NS: Final = {
    "us": 1000, "usec": 1000, "ms": 1_000_000, "msec": 1_000_000, "s": _NS, "sec": _NS, "m": 60 * _NS, "min": 60 * _NS,
    "h": 3600 * _NS, "hour": 3600 * _NS,
}  # fmt: skip


# -- TOML --------------------------------------------------------------------------------------------------------------


def read_toml(text: str, geometry: Geometry) -> list[WorkloadJob]:
    """Return the jobs of a workload file, each a table ``[[job]]``; docs/timing.md has its keys.

    Raises:
        UsageError: it is no such file; names the job and the key.
    """
    try:
        tables = tomllib.loads(text).get("job", [])
    except (ValueError, RecursionError) as error:
        message = f"the file is not TOML: {error}"
        raise UsageError(message) from None
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        message = "there is no job: a workload needs at least one table [[job]]"
        raise UsageError(message)
    jobs: list[WorkloadJob] = []
    for number, table in enumerate(tables):
        name = str(table.get("name", f"job{number}"))
        try:
            copies = _whole(table, "jobs", 1)
            if len(jobs) + copies > _JOBS_MAX:
                raise ValueError(f"more than {_JOBS_MAX} jobs")
            jobs += _toml_jobs(name, table, geometry, copies)
        except (ValueError, UsageError) as error:
            message = f"job {name!r}: {error}"
            raise UsageError(message) from None
    return _bounded(jobs)


def _toml_jobs(name: str, table: Mapping[str, Any], geometry: Geometry, copies: int) -> list[WorkloadJob]:
    if unknown := sorted(set(table) - _TOML_KEYS):
        raise ValueError(f"there is no key {unknown[0]!r}; there are {', '.join(sorted(_TOML_KEYS))}")
    mix = table.get("mix", {str(table.get("operation", "write")): 1})
    size = table.get("size", 4096)
    sizes = table.get("sizes", {size if isinstance(size, int) else str(size): 1})
    if not isinstance(mix, dict) or not isinstance(sizes, dict):
        raise ValueError('mix and sizes are tables: { append = 9, read = 1 }, { "4K" = 3, "64K" = 1 }')  # noqa: TRY004
    if unknown := [operation for operation in mix if operation not in OPERATIONS]:
        raise ValueError(f"there is no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
    job = WorkloadJob(
        name=name,
        mix=_weighted((OPERATIONS[operation], weight) for operation, weight in mix.items()),
        sizes=_weighted((_request_sectors(size, geometry), weight) for size, weight in sizes.items()),
        zones=_zones(table.get("zones", f"0-{geometry.nr_zones - 1}"), geometry),
        depth=_whole(table, "depth", 1, maximum=DEPTH_MAX),
        random=table.get("random", False) is True,
        rate_bytes=_bytes(table.get("rate", 0)),
        rate_requests=_whole(table, "rate_requests", 0, minimum=0),
        count=min(_whole(table, "count", REQUESTS_MAX), REQUESTS_MAX),
        nr_bytes=_bytes(table.get("bytes", 0)),
        duration_ns=_duration(table, "time"),
        begin_ns=_duration(table, "start"),
        think_ns=_duration(table, "think"),
        group=_whole(table, "group", 0, minimum=0),
        open_zones=_whole(table, "open_zones", 0, minimum=0),
        skip_zones=_whole(table, "skip_zones", 0, minimum=0),
    )  # fmt: skip
    return _checked([job] * copies, geometry)


def _duration(table: Mapping[str, Any], name: str) -> int:
    return parse_duration(str(table[name]))[1] if name in table else 0


def _whole(table: Mapping[str, Any], name: str, default: int, *, minimum: int = 1, maximum: int = _NUMBER_MAX) -> int:
    value = table.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {minimum} to {maximum}")
    return value


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= _NUMBER_MAX else parse_size(str(value))


def _weighted(pairs: Iterable[tuple[Any, object]]) -> tuple[tuple[Any, float], ...]:
    found = []
    for thing, weight in pairs:
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(f"the weight {weight!r} is not a number from 0 on")
        if weight:
            found.append((thing, float(weight)))
    if not 0 < sum(weight for _, weight in found) < float("inf"):
        raise ValueError("all weights are 0" if not found else "the weights are too large")
    return tuple(found)


def _request_sectors(size: object, geometry: Geometry) -> int:
    nr_bytes = _bytes(size)
    if not nr_bytes or nr_bytes % geometry.block_size_bytes:
        raise ValueError(
            f"a request of {nr_bytes} bytes is not a whole number of blocks of {geometry.block_size_bytes}"
        )
    nr_sectors = to_sectors(nr_bytes)
    if nr_sectors > geometry.zone_capacity:
        raise ValueError(f"a request of {nr_bytes} bytes is larger than a zone's capacity")
    return nr_sectors


def _zones(value: object, geometry: Geometry) -> tuple[int, int]:
    """Return (the first zone, the number of zones) of the range *value*: "3", "0-7", or a number."""
    shape = re.fullmatch(r"(\d+)(?:-(\d+))?", str(value))
    if shape is None:
        raise ValueError(f"zones must be a number or a range, such as 3 or 0-7, not {value!r}")
    first, last = int(shape[1]), int(shape[2] or shape[1])
    if not first <= last < geometry.nr_zones:
        raise ValueError(f"there are no zones {value}: there are zones 0 to {geometry.nr_zones - 1}")
    return first, last - first + 1


def _checked(jobs: list[WorkloadJob], geometry: Geometry) -> list[WorkloadJob]:
    """Make sure that each of *jobs* says when it ends, and asks of conventional zones only what these take.

    A drive is large, and a request is simulated in microseconds: without an end some workloads would take days.
    """
    for job in jobs:
        first, count = job.zones
        if not {operation for operation, _ in job.mix} <= _OF_ANY_ZONE and any(
            run_first < first + count and first < run_first + run for run_first, run in geometry.conventional
        ):
            raise ValueError("some of its zones are conventional, which can only be read and written")
        if job.count >= REQUESTS_MAX and not job.nr_bytes and not job.duration_ns:
            raise ValueError("the job has no end: give count, bytes or time")
    return jobs


def _bounded(jobs: list[WorkloadJob]) -> list[WorkloadJob]:
    """Make sure that *jobs* have no more requests under way together than a simulation has room for.

    Jobs of different groups run one group after the other.
    """
    depths: Counter[int] = Counter()
    for job in jobs:
        depths[job.group] += job.depth
    if any(depth > DEPTH_MAX for depth in depths.values()):
        message = f"more than {DEPTH_MAX} requests would be under way together: use smaller depths or fewer jobs"
        raise UsageError(message)
    return jobs


# -- fio ---------------------------------------------------------------------------------------------------------------


def read_fio(text: str, geometry: Geometry) -> list[WorkloadJob]:
    """Return the jobs of a job file of fio.

    Raises:
        UsageError: it is no job file, or has an option that is not simulated; names the job and the option.
    """
    parser = configparser.RawConfigParser(
        allow_no_value=True, strict=False, delimiters=("=",), comment_prefixes=("#", ";"),
        inline_comment_prefixes=("#", ";"), default_section="global",
    )  # fmt: skip
    # Fio ignores indentation, which configparser takes for the continuation of a value.
    lines = [line.strip() for line in text.split("\n")]
    _require_one_of_each(lines)
    try:
        parser.read_string("\n".join(lines))
    except configparser.Error as error:
        message = f"the file is not a job file of fio: {error.message.splitlines()[0]}"
        raise UsageError(message) from None
    jobs: list[WorkloadJob] = []
    group = 0
    for name in parser.sections():
        try:
            options = _fio_options(parser.items(name))
            if "stonewall" in options and jobs:
                group += 1
            jobs += _fio_jobs(name, options, geometry, group)
            if len(jobs) > _JOBS_MAX:
                raise ValueError(f"more than {_JOBS_MAX} jobs")
        except (ValueError, UsageError) as error:
            message = f"job {name!r}: {error}"
            raise UsageError(message) from None
    if not jobs:
        message = "there is no job: a job file of fio needs at least one section that is not [global]"
        raise UsageError(message)
    return _bounded(jobs)


def _require_one_of_each(lines: Iterable[str]) -> None:
    """Refuse what configparser would join: two jobs of one name, and a second [global], which is for later jobs."""
    seen: set[str] = set()
    for line in lines:
        section = line.partition("]")[0]
        if section.startswith("["):
            if section in seen:
                message = f"two sections are called {section[1:]!r}: give each its own name"
                raise UsageError(message)
            seen.add(section)
    if "[global" in seen and next(line for line in lines if line.startswith("[")).partition("]")[0] != "[global":
        message = "[global] is not the first section, and would apply to later sections only: move it to the beginning"
        raise UsageError(message)


def _fio_options(items: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    options = {}
    for key, value in items:
        name = _FIO_NAMES.get(key, key)
        text = (value or "1").strip()
        if name in _FIO_KEYS:
            options[name] = text
        elif name in _FIO_HARMLESS:
            if text not in _FIO_HARMLESS[name]:
                raise ValueError(f"{key}={text} is not simulated, because it would change the workload")
        elif name not in _PASSED_OVER:
            raise ValueError(f"fio's option {key!r} is not simulated; simulated are {', '.join(sorted(_FIO_KEYS))}")
    for flag in ("stonewall", "time_based", "zone_append", "ignore_zone_limits"):
        if options.get(flag) == "0":
            del options[flag]
    return options


def _fio_jobs(name: str, options: Mapping[str, str], geometry: Geometry, group: int) -> list[WorkloadJob]:
    kind = options.get("rw", "read")
    if kind not in _FIO_MIX:
        raise ValueError(f"rw={kind} is not simulated; there are {', '.join(_FIO_MIX)}")
    reads, writes, is_random = _FIO_MIX[kind]
    if reads and writes:
        reads, writes = _fio_mix(options)
    write = Operation.APPEND if "zone_append" in options else Operation.WRITE
    zone_bytes = to_bytes(geometry.zone_size)
    depth = _fio_depth(options)
    skip_zones = _fio_skip(options, geometry, is_random=is_random)
    together, open_zones = _fio_open_zones(options, geometry)
    offset, step = (parse_size(options.get(key, "0")) for key in ("offset", "offset_increment"))
    size = parse_size(options["size"]) if "size" in options else 0
    nr_zones = -(-size // zone_bytes) if size else geometry.nr_zones - offset // zone_bytes
    # A job ends at the end of its region, of which a zone's capacity can be used.
    limit = (
        parse_size(options["io_size"])
        if "io_size" in options
        else min(size, -(-nr_zones // (1 + skip_zones)) * to_bytes(geometry.zone_capacity))
    )
    jobs = []
    nr_jobs = _fio_number(options, "numjobs", 1)
    if not 1 <= nr_jobs <= _JOBS_MAX:
        raise ValueError(f"numjobs={nr_jobs} is not from 1 to {_JOBS_MAX}")
    for number in range(nr_jobs):
        first = (offset + number * step) // zone_bytes
        if (offset + number * step) % zone_bytes:
            raise ValueError(f"the job begins at byte {offset + number * step}, which is not the start of a zone")
        jobs.append(
            WorkloadJob(
                name=name if nr_jobs == 1 else f"{name}.{number}",
                mix=_weighted(((Operation.READ, reads), (write, writes))),
                sizes=_fio_sizes(options, geometry),
                zones=_zones(f"{first}-{first + nr_zones - 1}", geometry),
                depth=depth,
                random=is_random,
                rate_bytes=parse_size(options.get("rate", "0").split(",")[0]),
                rate_requests=_fio_number(options, "rate_iops", 0),
                count=min(_fio_number(options, "number_ios", 0) or REQUESTS_MAX, REQUESTS_MAX),
                nr_bytes=0 if "time_based" in options else limit,
                duration_ns=_fio_time(options.get("runtime", "0"), "s"),
                begin_ns=_fio_time(options.get("startdelay", "0"), "s"),
                think_ns=_fio_time(options.get("thinktime", "0"), "us"),
                group=group,
                open_zones=open_zones,
                open_zones_together=together,
                skip_zones=skip_zones,
            )
        )
    return _checked(jobs, geometry)


def _fio_mix(options: Mapping[str, str]) -> tuple[float, float]:
    """Return the shares of reads and writes.

    Fio lets the later of two options that contradict each other count; a reader of the file would not expect that.
    """
    reads, writes = (_fio_number(options, name, -1) for name in ("rwmixread", "rwmixwrite"))
    for name, share in (("rwmixread", reads), ("rwmixwrite", writes)):
        if share > 100:
            raise ValueError(f"{name}={share} is not from 0 to 100")
    if reads < 0:
        reads = 50 if writes < 0 else 100 - writes
    if writes >= 0 and reads + writes != 100:
        raise ValueError(f"rwmixread={reads} and rwmixwrite={writes} do not add up to 100: give one of them")
    return reads / 100, 1 - reads / 100


def _fio_depth(options: Mapping[str, str]) -> int:
    """Return how many requests of a job are under way together."""
    engine = options.get("ioengine", "libaio")
    if engine in _FIO_SYNC_ENGINES:
        return 1
    if engine not in _FIO_ASYNC_ENGINES:
        raise ValueError(f"ioengine={engine} is not simulated, because it would change the workload")
    if ":" in options.get("filename", ""):
        raise ValueError("several files in one job are not simulated: write one job for each")
    return min(max(_fio_number(options, "iodepth", 1), 1), DEPTH_MAX)


def _fio_open_zones(options: Mapping[str, str], geometry: Geometry) -> tuple[int, int]:
    """Return (how many zones all jobs may be writing at once, how many this one may); 0 for any number.

    As in fio, the limit of the drive holds if the file has none, and a greater limit is an error.
    """
    limit = 0 if "ignore_zone_limits" in options else geometry.max_open_zones
    together, own = (_fio_number(options, name, 0) for name in ("max_open_zones", "job_max_open_zones"))
    for name, value in (("max_open_zones", together), ("job_max_open_zones", own)):
        if 0 < limit < value:
            raise ValueError(f"{name}={value} is more than the {limit} open zones of the drive")
    return together or limit, own


def _fio_skip(options: Mapping[str, str], geometry: Geometry, *, is_random: bool) -> int:
    """Return how many zones are left out between two, and make sure that the zones are those of the drive."""
    for name, there in (("zonesize", geometry.zone_size), ("zonecapacity", geometry.zone_capacity)):
        if name in options and parse_size(options[name]) not in (0, to_bytes(there)):
            raise ValueError(f"{name}={options[name]} differs from that of the drive, which is {to_bytes(there)}")
    skip = options.get("zoneskip", "0")
    if skip.endswith("z"):
        nr_zones = _fio_number({"zoneskip": skip[:-1]}, "zoneskip", 0)
    else:
        nr_zones, rest = divmod(parse_size(skip), to_bytes(geometry.zone_size))
        if rest:
            raise ValueError(f"zoneskip={skip} is not a whole number of zones")
    return 0 if is_random else nr_zones


def _fio_sizes(options: Mapping[str, str], geometry: Geometry) -> tuple[tuple[int, float], ...]:
    if "bssplit" in options:
        return _fio_split(options["bssplit"], geometry)
    sizes = {size.strip() for size in options.get("bs", "4k").split(",") if size.strip()}
    if len(sizes) != 1:
        raise ValueError(_ONE_SIZE)
    return ((_request_sectors(sizes.pop(), geometry), 1.0),)


def _fio_split(split: str, geometry: Geometry) -> tuple[tuple[int, float], ...]:
    """Return the sizes of bssplit and their shares, which are per cent.

    As in fio, sizes without a share have what the others leave in equal parts, and otherwise the last size has it.
    """
    if "," in split:
        raise ValueError(_ONE_SIZE)
    parts = [part.partition("/") for part in split.split(":")]
    shares = [_fio_number({"bssplit": share}, "bssplit", 0) if share else None for _, _, share in parts]
    rest = 100 - sum(share or 0 for share in shares)
    if rest < 0:
        raise ValueError(f"the shares of bssplit={split} add up to {100 - rest} per cent: at most 100 are possible")
    nr_open = shares.count(None)
    if not nr_open:
        shares[-1] = (shares[-1] or 0) + rest
    return _weighted(
        (_request_sectors(size, geometry), rest / nr_open if share is None else share)
        for (size, _, _), share in zip(parts, shares, strict=True)
    )


def _fio_number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name)
    if text is None:
        return default
    if not text.isdecimal() or (number := int(text)) > _NUMBER_MAX:
        raise ValueError(f"{name}={text} is not a whole number up to {_NUMBER_MAX}")
    return number


def _fio_time(text: str, unit: str) -> int:
    shape = _FIO_TIME.fullmatch(text.strip())
    if shape is None:
        raise ValueError(f"{text!r} is not a time")
    return int(float(shape[1]) * _FIO_UNITS_NS[shape[2] or unit])


# -- operation logs ----------------------------------------------------------------------------------------------------


def read_log(lines: Iterable[str]) -> tuple[Geometry, Iterator[Arrival]]:
    """Return the geometry of the operation log *lines*, and its operations that were carried out, as they arrived.

    Raises:
        UsageError: not an operation log. The iterator raises it for a damaged line.
    """
    numbered = enumerate(lines, 1)
    number, first = next(numbered, (1, "{}"))
    geometry = source_geometry(parse_line(first, number))
    return geometry, _arrivals(numbered, geometry)


def _arrivals(numbered: Iterable[tuple[int, str]], geometry: Geometry) -> Iterator[Arrival]:
    for number, line in numbered:
        entry = parse_line(line, number)
        try:
            if entry["status"] != "OK" or entry["op"] not in OPERATIONS:
                continue
            arrival = _arrival(entry, geometry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            message = f"line {number} of the log is not an operation ({error!r})"
            raise UsageError(message) from None
        yield arrival


def _arrival(entry: Mapping[str, Any], geometry: Geometry) -> Arrival:
    begin_ns, name, operation = int(entry["ns"]), str(entry["port"]), OPERATIONS[entry["op"]]
    if not 0 <= begin_ns < TIME_MAX_NS:
        raise ValueError(begin_ns)
    if entry.get("all"):
        return Arrival(begin_ns, name, operation, 0, 0, 0, ALL_ZONES)
    zone, offset = divmod(int(entry["sector"]), geometry.zone_size)
    if not 0 <= zone < geometry.nr_zones:
        raise ValueError(entry["sector"])
    if operation in (Operation.READ, Operation.WRITE, Operation.APPEND):
        nr_sectors = int(entry["nr_sectors"])
        if not 0 <= nr_sectors <= NR_SECTORS_MAX:
            raise ValueError(nr_sectors)
        return Arrival(begin_ns, name, operation, zone, offset, nr_sectors)
    nr_zones = int(entry["nr_zones"])
    if nr_zones < 0:
        raise ValueError(nr_zones)
    return Arrival(begin_ns, name, operation, zone, 0, 0, nr_zones)
