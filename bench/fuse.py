"""zonefs over FUSE against a bare pyfuse3 pass-through, and libfuse's own C example where it can be built.

fio, psync, direct: each job makes one request at a time, so a figure is a round trip through the kernel's FUSE queue.

passthrough_ll hands O_DIRECT on to its source with memory that is not aligned, which a disk refuses and tmpfs does not.
So its source is on tmpfs, and so is the image that is compared with it. The pyfuse3 pass-through is on the disk, as is
the image beside it.

The listings of many files are compared with ``report --format json``, which visits as many zones, by the processor time
of all processes that take part.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import PROJECT, Row, compare, fio, program, progress, spread

SECONDS: Final = 2
ZONE_BYTES: Final = 1 << 30
CLI: Final = program()
#: Against the pyfuse3 pass-through, and against passthrough_ll.
GOALS: Final[Mapping[tuple[str, str], tuple[float, float | None]]] = {
    ("write", "4k"): (2.0, 0.7),
    ("write", "1M"): (0.9, None),
    ("read", "4k"): (2.0, 0.7),
    ("read", "1M"): (0.9, None),
}
NR_FILES: Final = 1_000_000


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure 4 KiB and 1 MiB sequential writes and reads, several callers, and directories of many files."""
    found = []
    with mounted_zonefs(scratch) as zone_file:
        with _passthrough(scratch) as plain_file:
            for (direction, size), (goal, _) in GOALS.items():
                found.append(
                    compare("FUSE", f"{size} sequential {direction}", "KiB/s",
                            fio_job(zone_file, direction, size, zoned=True), peer="pyfuse3 pass-through",
                            peers=fio_job(plain_file, direction, size), runs=runs, goal=goal)
                )  # fmt: skip
        found.append(
            compare("FUSE", "4k sequential read, 4 callers together", "KiB/s",
                    fio_job(zone_file, "read", "4k", zoned=True, nr_jobs=4), peer="one caller",
                    peers=fio_job(zone_file, "read", "4k", zoned=True), runs=runs, goal=1.0)
        )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
        _passthrough_ll(scratch, Path(memory)) as c_file,
        mounted_zonefs(Path(memory)) as zone_file,
    ):
        for (direction, size), (_, c_goal) in GOALS.items() if c_file is not None else ():
            assert c_file is not None
            found.append(
                compare("FUSE", f"{size} sequential {direction}, on tmpfs", "KiB/s",
                        fio_job(zone_file, direction, size, zoned=True), peer="passthrough_ll (C)",
                        peers=fio_job(c_file, direction, size), runs=runs, goal=c_goal)
            )  # fmt: skip
    return [*found, *_many_files(scratch, runs)]


def _many_files(scratch: Path, runs: int) -> Iterator[Row]:
    """Mount a million zones and list them; the goal of either is a share of the processor time of the report."""
    image, mountpoint = scratch / "many.img", scratch / "many"
    mountpoint.mkdir()
    for arguments in (["create", image, "--size", f"{NR_FILES}M", "--zone-size", "1M"], ["mkfs", image]):
        subprocess.run([*CLI, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = partial(_processor_seconds, [*CLI, "report", str(image), "--format", "json"])
    figures: dict[str, list[float]] = {"mount": [], "ls -f": [], "report": []}
    for number in range(runs):
        progress(f"FUSE: {NR_FILES:,} files, {number + 1} of {runs}")
        figures["report"].append(report())
        with mounted([*CLI, "mount", "--foreground", str(image), str(mountpoint)], mountpoint / "seq") as process:
            begin = processor_seconds_of(process.pid)
            listed = _processor_seconds(["ls", "-f", str(mountpoint / "seq")])
            figures["mount"].append(begin)
            figures["ls -f"].append(listed + processor_seconds_of(process.pid) - begin)
    for what, goal in (("mount", 2.0), ("ls -f", 1 / 1.5)):
        yield Row(
            area="FUSE",
            what=f"{what} of {NR_FILES:,} files, processor time",
            unit="s",
            ours=statistics.median(figures[what]),
            peer="report --format json",
            peers=statistics.median(figures["report"]),
            ratios=tuple(b / a for a, b in zip(figures[what], figures["report"], strict=True)),
            noise=spread(figures["report"]),
            goal=goal,
        )


def _processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def processor_seconds_of(pid: int) -> float:
    """Return the processor time that the running process *pid* has used. Source: proc_pid_stat(5), utime, stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def empty(file: Path) -> None:
    """Reset the zone of *file*, durably.

    The next step measures writing. A reset is made durable before the zone is overwritten, and the old data is synced
    before that. Both costs arise here, outside of the measured time.
    """
    os.truncate(file, 0)
    os.sync()
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def fio_job(file: Path, direction: str, size: str, *, zoned: bool = False, nr_jobs: int = 1) -> Callable[[], float]:
    """Return what measures one run of fio on *file*, in KiB/s; *zoned*: it is the file of a zone."""

    def measure() -> float:
        if direction == "write":
            empty(file)
        elif zoned and file.stat().st_size < ZONE_BYTES // 2:
            _fill(file)
        elif not zoned and file.stat().st_size < ZONE_BYTES:
            os.truncate(file, ZONE_BYTES)
        job = fio(
            "--name=bench", f"--filename={file}", f"--rw={direction}", f"--bs={size}", "--ioengine=psync", "--direct=1",
            f"--size={ZONE_BYTES if direction == 'write' else ZONE_BYTES // 2}", "--fallocate=none",
            "--allow_file_create=0", "--unlink=0", f"--file_append={int(direction == 'write')}", f"--runtime={SECONDS}",
            f"--numjobs={nr_jobs}", "--group_reporting",
        )  # fmt: skip
        figures = job[direction]
        assert isinstance(figures, dict)
        return float(figures["bw"])

    return measure


def _fill(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_DIRECT)
    size = os.fstat(fd).st_size
    # A direct write needs aligned memory, and an anonymous mapping is aligned.
    import mmap  # noqa: PLC0415

    with mmap.mmap(-1, 1 << 20) as block:
        while size < ZONE_BYTES // 2:
            size += os.pwritev(fd, [block], size)
    os.close(fd)


@contextmanager
def mounted_zonefs(scratch: Path, *, name: str = "zonefs", change: str = "") -> Iterator[Path]:
    """Mount an image and yield the file of one zone; *change*: see :func:`bench.harness.program`."""
    image, mountpoint = scratch / f"{name}.img", scratch / name
    mountpoint.mkdir()
    for arguments in (
        ["create", image, "--size", "4GiB", "--zone-size", str(ZONE_BYTES), "--block-size", "4096"],
        ["mkfs", image],
        ["mount", image, mountpoint],
    ):
        subprocess.run([*program(change), *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint / "seq" / "0"
    finally:
        subprocess.run([*CLI, "umount", str(mountpoint)], check=True)


@contextmanager
def _passthrough(scratch: Path) -> Iterator[Path]:
    with _served(scratch, "pyfuse3", [sys.executable, "-m", "bench.passthrough"]) as file:
        yield file


@contextmanager
def _served(scratch: Path, name: str, command: list[str]) -> Iterator[Path]:
    backing, mountpoint = scratch / f"{name}.file", scratch / f"{name}.mnt"
    backing.touch()
    mountpoint.mkdir()
    with mounted([*command, str(backing), str(mountpoint)], mountpoint / "file"):
        yield mountpoint / "file"


@contextmanager
def _passthrough_ll(scratch: Path, memory: Path) -> Iterator[Path | None]:
    """Mount libfuse's example, which mirrors a directory of the tmpfs *memory*; None where it cannot be built."""
    program = scratch / "passthrough_ll"
    progress("building passthrough_ll")
    built = subprocess.run(
        [PROJECT / "bench" / "build-passthrough-ll", program], capture_output=True, text=True, check=False
    )
    if built.returncode:
        print(f"\npassthrough_ll is left out: {built.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        yield None
        return
    mountpoint = scratch / "c.mnt"
    mountpoint.mkdir()
    source = memory / "source"
    source.mkdir()
    (source / "file").touch()
    options = f"source={source},cache=never"
    with mounted([str(program), "-f", "-o", options, str(mountpoint)], mountpoint / "file"):
        yield mountpoint / "file"


@contextmanager
def mounted(command: list[str], file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Let *command* serve the file system in which *file* is, at its root."""
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        deadline = time.monotonic() + 30
        while not file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{file.parent} was not mounted"
                raise RuntimeError(message)
            time.sleep(0.02)
        yield process
    finally:
        subprocess.run(["fusermount3", "-u", str(file.parent)], check=True)
        process.wait(10)
