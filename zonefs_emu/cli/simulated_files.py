"""``simulate`` of a workload in a file, on the zones of an image or of a drive of a known shape."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from zonefs_emu.cli.common import info_of, say, say_json, say_lines, zones_of
from zonefs_emu.cli.latency_picture import latency_svg
from zonefs_emu.cli.picture_file import require_picture_file, write_picture
from zonefs_emu.cli.progress import progress
from zonefs_emu.cli.simulated_report import as_json as report_json, as_text
from zonefs_emu.cli.workload_files import read_fio, read_log, read_toml
from zonefs_emu.daemon.framing import geometry_of
from zonefs_emu.device.oplog import read_lines
from zonefs_emu.errors import UsageError, host_sentence, printable
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.presets import PRESETS, build_geometry
from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS, find_preset, make_timing
from zonefs_emu.model.timing.waits import DriveTiming
from zonefs_emu.model.timing.workload import REQUESTS_MAX, JobOutcome, ZoneStates, run_arrivals, run_workload
from zonefs_emu.model.zone import Condition

_WORKLOAD_BYTES_MAX: Final = 1 << 20
_NOT_EMPTY: Final = frozenset(Condition) - {Condition.EMPTY, Condition.NOT_WP}


def simulate_files(
    target: Path | None,
    workload_file: Path | None,
    fio_file: Path | None,
    log_file: Path | None,
    *,
    preset: str | None,
    block_bytes: int,
    seed: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Simulate the one of the three files that is not None, and print the results.

    *block_bytes*: of a logical block, 0 for that of the geometry.

    Raises:
        UsageError: a file cannot be read, or has a part that cannot be simulated.
    """
    if picture is not None:
        require_picture_file(picture)
    name = preset or (str(target) if str(target) in TIMING_PRESETS else "zn540")
    geometry, states = _zones_of(Path(name if name in PRESETS else "zn540") if target is None else target)
    file = workload_file or fio_file or log_file
    assert file is not None

    def drive() -> DriveTiming:
        return make_timing(
            find_preset(name), capacity_sectors=geometry.zone_capacity, size_sectors=geometry.size,
            block_bytes=block_bytes or geometry.block_size_bytes, seed=seed,
        )  # fmt: skip

    try:
        with file.open(encoding="utf-8", errors="replace") as text, _bar() as at:
            if log_file is None:
                read = read_fio if workload_file is None else read_toml
                jobs = read(_limited(text.read(_WORKLOAD_BYTES_MAX + 1)), geometry)
                outcomes = run_workload(drive(), jobs, states, seed=seed, progress=at)
            else:
                logged, arrivals = read_log(read_lines(text))
                if target is None:
                    geometry, states = logged, _states(logged)
                outcomes = run_arrivals(drive(), arrivals, states, progress=at)
    except OSError as error:
        raise UsageError(host_sentence(error)) from None
    except UsageError as error:
        message = f"{file}: {error}"
        raise UsageError(message) from None
    _say(outcomes, f"{file.name} on {name}", picture, as_json=as_json)


def _bar() -> AbstractContextManager[Callable[[int], None]]:
    return progress(None, lambda count: f"{count} requests")


def _say(outcomes: Sequence[JobOutcome], title: str, picture: Path | None, *, as_json: bool) -> None:
    """Print the results of the jobs, and draw their latencies into the file *picture*."""
    jobs = report_json(outcomes)
    if not any(outcome.of for outcome in outcomes):
        message = "the workload contains no request"
        raise UsageError(message, exit_code=1)
    if picture is not None:
        requests = [(operation, found) for outcome in outcomes for operation, found in outcome.of.items()]
        try:
            write_picture(picture, "".join(latency_svg(requests, title=printable(title))))
        except OSError as error:
            raise UsageError(host_sentence(error)) from None
    if sum(len(found.begins_ns) for outcome in outcomes for found in outcome.of.values()) >= REQUESTS_MAX:
        say(f"the simulation ended after {REQUESTS_MAX} requests, and the results are of those only", err=True)
    if as_json:
        say_json({"jobs": jobs})
    else:
        say_lines(as_text(jobs))


def _limited(text: str) -> str:
    if len(text) > _WORKLOAD_BYTES_MAX:
        message = f"a workload has at most {_WORKLOAD_BYTES_MAX} characters"
        raise UsageError(message)
    return text


def _states(geometry: Geometry, written: Sequence[tuple[int, int]] = ()) -> ZoneStates:
    return ZoneStates(
        geometry.nr_zones, geometry.zone_size, geometry.zone_capacity,
        written=written, is_conventional=geometry.is_conventional,
    )  # fmt: skip


def _zones_of(target: Path) -> tuple[Geometry, ZoneStates]:
    """Return the geometry called *target*, with empty zones; or that of the image *target*, with its zones."""
    name = str(target)
    if name in PRESETS and not target.exists():
        geometry = build_geometry(preset=PRESETS[name])
        return geometry, _states(geometry)
    with open_target(target, readonly=True) as opened:
        geometry = geometry_of(info_of(opened))
        written = [(zone.zone_no, zone.wp - zone.start) for zone in zones_of(opened, conds=_NOT_EMPTY)]
    return geometry, _states(geometry, written)
