"""``simulate``: how fast a drive would be, in virtual time."""

from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import FILE, SIZE, NumberRange, json_option, refuse_options_beside, say_json, say_lines
from zonefs_emu.cli.progress import progress
from zonefs_emu.cli.simulated_files import simulate_files
from zonefs_emu.cli.workload_files import DEPTH_MAX
from zonefs_emu.errors import UsageError
from zonefs_emu.fitting.predictions import OPERATIONS
from zonefs_emu.model.presets import PRESETS
from zonefs_emu.model.timing.closed_loop import Job, Summary, run, run_management, steady_warm_up, summarize
from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS, find_preset, make_timing
from zonefs_emu.units import SECTOR_BYTES, to_sectors

_MOVES_DATA: Final = ("append", "write", "read", "randread")
#: The default fill of zones that are reset or finished.
_OCCUPANCY: Final = {"reset": 1.0, "finish": 0.5, "open": 0.0, "close": 0.0}
#: Parameters that go with a workload, a job file or a log.
_OF_FILES: Final = ("preset", "workload_file", "fio_file", "log_file", "picture", "lbaf", "seed", "as_json")
_COUNT_MAX: Final = 10_000_000


@click.command()
@click.argument("target", metavar="[IMG|GEOMETRY]", type=FILE, required=False)
@click.option(
    "--preset", type=click.Choice(tuple(TIMING_PRESETS)), help="The drive. [default: that of GEOMETRY, else zn540]"
)
@click.option("--op", "operation", type=click.Choice(tuple(OPERATIONS)), help="Requests: one operation.")
@click.option("--workload", "workload_file", type=FILE, metavar="FILE", help="Requests: jobs, as TOML.")
@click.option("--fio-job", "fio_file", type=FILE, metavar="FILE", help="Requests: a job file of fio.")
@click.option("--record", "log_file", type=FILE, metavar="LOG", help="Requests: a log of mount or serve --record.")
@click.option("--svg", "picture", type=FILE, metavar="FILE", help="Also draw latency over time into FILE.")
@click.option("--bs", "block_size", default="4096", show_default=True, type=SIZE, help="Bytes of a request.")
@click.option(
    "--zones", default=1, show_default=True, type=click.IntRange(min=1), help="Jobs, each in a zone of its own."
)
@click.option(
    "--depth", default=1, show_default=True, type=click.IntRange(1, DEPTH_MAX), help="Requests of a job in flight."
)
@click.option(
    "--count",
    default=20_000,
    show_default=True,
    type=click.IntRange(1, _COUNT_MAX),
    help="Number of requests that are counted.",
)
@click.option("--occupancy", type=NumberRange(0, 1), help="How full a zone is that is reset, finished or read.")
@click.option("--finished", is_flag=True, help="Reset zones that were finished, instead of open ones.")
@click.option(
    "--lbaf", type=click.Choice(("512", "4096")), help="Bytes of a logical block. [default: those of IMG, else 4096]"
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random parts of the model.")
@json_option
def simulate(
    *,
    target: Path | None,
    preset: str | None,
    operation: str | None,
    workload_file: Path | None,
    fio_file: Path | None,
    log_file: Path | None,
    picture: Path | None,
    block_size: int,
    zones: int,
    depth: int,
    count: int,
    occupancy: float | None,
    finished: bool,
    lbaf: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Simulate how fast a drive would be: rates and latencies of a model of it, in virtual time.

    \b
    Examples:
      zonefs-emu simulate --op append --bs 8K --zones 4 --depth 16
      zonefs-emu simulate --op reset --occupancy 0.5 --json
      zonefs-emu simulate small.img --workload log.toml --svg log.svg
      zonefs-emu simulate zn540 --fio-job randread.fio
      zonefs-emu simulate --record bug.log

    With --op, each of --zones jobs keeps --depth requests in flight. The queues are filled before counting begins.
    Zones are managed one after the other. --bs, --zones, --depth, --count, --occupancy and --finished need --op.

    A workload or a job of fio runs on the zones of IMG, which is not changed, or of an empty drive of the shape
    GEOMETRY (small, small-zns, zn540 or smr-hm). The requests of a log arrive at their recorded times. A latency
    is the time from a request to its answer. docs/timing.md describes the files.
    """
    files = [path for path in (workload_file, fio_file, log_file) if path is not None]
    nr_given = (operation is not None) + len(files)
    if nr_given > 1:
        message = "--op, --workload, --fio-job and --record exclude each other: give one of them"
        raise UsageError(message)
    if not nr_given:
        message = "the requests to simulate are missing: give one of --op, --workload, --fio-job and --record"
        raise UsageError(message)
    if operation is not None:
        if target is not None or picture is not None:
            message = "IMG, GEOMETRY and --svg are for --workload, --fio-job and --record, not for --op"
            raise UsageError(message)
        # A row of measurements has all columns, so that each operation takes the options that it does not use.
        _simulate_operation(
            preset or "zn540", operation, block_size=block_size, zones=zones, depth=depth, count=count,
            occupancy=occupancy, seed=seed, finished=finished, block_bytes=int(lbaf or 4096), as_json=as_json,
        )  # fmt: skip
        return
    refuse_options_beside(_OF_FILES, "without --op, because a workload, a job file or a log says what is done")
    simulate_files(
        target, workload_file, fio_file, log_file,
        preset=preset, block_bytes=int(lbaf or 0), seed=seed, picture=picture, as_json=as_json,
    )  # fmt: skip


def _simulate_operation(
    preset: str,
    operation: str,
    *,
    block_size: int,
    zones: int,
    depth: int,
    count: int,
    occupancy: float | None,
    seed: int,
    finished: bool,
    block_bytes: int,
    as_json: bool,
) -> None:
    if not block_size or block_size % block_bytes:
        message = f"--bs {block_size} is not a whole number of blocks of {block_bytes} bytes (--lbaf)"
        raise UsageError(message)
    shape = PRESETS["smr-hm" if preset == "smr-hm" else "zn540"]
    capacity_sectors = to_sectors(shape.zone_capacity_bytes)
    zone_sectors = to_sectors(shape.zone_size_bytes)
    if zones > shape.size_bytes // shape.zone_size_bytes:
        message = f"--zones {zones} is more than the {shape.size_bytes // shape.zone_size_bytes} zones of {preset}"
        raise UsageError(message)
    if zones * depth > DEPTH_MAX:
        message = f"--zones {zones} with --depth {depth} has {zones * depth} requests in flight: at most {DEPTH_MAX}"
        raise UsageError(message)
    if finished and operation != "reset":
        message = "--finished needs --op reset: it describes the zones that are reset"
        raise UsageError(message)
    if occupancy is None:
        occupancy = _OCCUPANCY.get(operation, 1.0)
    blocks = round(occupancy * shape.zone_capacity_bytes / block_bytes)
    written_sectors = blocks * block_bytes // SECTOR_BYTES
    model = make_timing(
        find_preset(preset),
        capacity_sectors=capacity_sectors,
        size_sectors=to_sectors(shape.size_bytes),
        block_bytes=block_bytes,
        seed=seed,
    )
    if operation not in _MOVES_DATA:
        with progress(count, _requests) as at:
            outcome = run_management(
                model,
                OPERATIONS[operation],
                count=count,
                capacity_sectors=capacity_sectors,
                written_sectors=written_sectors,
                finished=finished,
                progress=at,
            )
        _say(outcome.summary(), as_json=as_json)
        return
    usable = written_sectors if operation in ("read", "randread") else capacity_sectors
    if to_sectors(block_size) > usable:
        message = f"--bs {block_size} does not fit into the {usable * SECTOR_BYTES} bytes of a zone that can be used"
        raise UsageError(message)
    jobs = [
        Job(
            operation=OPERATIONS[operation],
            nr_sectors=to_sectors(block_size),
            depth=depth,
            first_zone=zone,
            random=operation == "randread",
        )
        for zone in range(zones)
    ]
    warm_up = steady_warm_up(jobs[0], zones)
    with progress(warm_up + count, _requests) as at:
        outcomes = run(
            model,
            jobs,
            zone_sectors=zone_sectors,
            capacity_sectors=usable,
            count=count,
            warm_up=warm_up,
            seed=seed,
            progress=at,
        )
    latencies_ns = [latency for outcome in outcomes for latency in outcome.latencies_ns]
    _say(summarize(latencies_ns, outcomes[0].end_ns - outcomes[0].begin_ns, block_size), as_json=as_json)


def _requests(number: int) -> str:
    return f"{number} requests"


def _say(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        say_json({name: round(value, 3) for name, value in summary._asdict().items()})
        return
    latencies = ", ".join(
        f"{name} {value / 1e3:.1f}"
        for name, value in (
            ("mean", summary.mean_ns),
            ("50 %", summary.p50_ns),
            ("95 %", summary.p95_ns),
            ("99 %", summary.p99_ns),
        )
    )
    say_lines((f"IOPS {summary.iops:.0f}, {summary.bw / 1e6:.1f} MB/s\n", f"latency in us: {latencies}\n"))
