"""zonefs over FUSE against a bare pyfuse3 pass-through, and libfuse's own C example where it can be built.

fio, psync, direct: one job, one request at a time, so a figure is a round trip through the kernel's FUSE queue.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.harness import PROJECT, Row, compare, fio, progress

SECONDS: Final = 3
ZONE_BYTES: Final = 1 << 30
GOALS: Final = {("write", "4k"): 0.7, ("write", "1M"): 0.9, ("read", "4k"): 0.7, ("read", "1M"): 0.9}


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure 4 KiB and 1 MiB sequential writes and reads."""
    found = []
    with _zonefs(scratch) as zone_file, _passthrough(scratch) as plain_file:
        for (direction, size), goal in GOALS.items():
            found.append(
                compare("FUSE", f"{size} sequential {direction}", "KiB/s", _fio(zone_file, direction, size, zoned=True),
                        peer="pyfuse3 pass-through", peers=_fio(plain_file, direction, size), runs=runs, goal=goal)
            )  # fmt: skip
        with _passthrough_ll(scratch) as c_file:
            if c_file is not None:
                for direction, size in GOALS:
                    found.append(
                        compare("FUSE", f"{size} sequential {direction}", "KiB/s",
                                _fio(zone_file, direction, size, zoned=True), peer="passthrough_ll (C, on tmpfs)",
                                peers=_fio(c_file, direction, size), runs=runs)
                    )  # fmt: skip
    return found


def _fio(file: Path, direction: str, size: str, *, zoned: bool = False) -> Callable[[], float]:
    def measure() -> float:
        if direction == "write":
            os.truncate(file, 0)
            # What is measured is writing. A reset is made durable before the zone is overwritten, which means that the
            # old data is synced first: that is paid here.
            os.sync()
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        elif zoned and file.stat().st_size < ZONE_BYTES // 2:
            _fill(file)
        elif not zoned and file.stat().st_size < ZONE_BYTES:
            os.truncate(file, ZONE_BYTES)
        job = fio(
            "--name=bench", f"--filename={file}", f"--rw={direction}", f"--bs={size}", "--ioengine=psync", "--direct=1",
            f"--size={ZONE_BYTES if direction == 'write' else ZONE_BYTES // 2}", "--fallocate=none",
            "--allow_file_create=0", "--unlink=0", f"--file_append={int(direction == 'write')}", f"--runtime={SECONDS}",
        )  # fmt: skip
        figures = job[direction]
        assert isinstance(figures, dict)
        return float(figures["bw"])

    return measure


def _fill(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_DIRECT)
    size = os.fstat(fd).st_size
    # A direct write wants aligned memory; an anonymous mapping is.
    import mmap  # noqa: PLC0415

    with mmap.mmap(-1, 1 << 20) as block:
        while size < ZONE_BYTES // 2:
            size += os.pwritev(fd, [block], size)
    os.close(fd)


@contextmanager
def _zonefs(scratch: Path) -> Iterator[Path]:
    image, mountpoint = scratch / "fuse.img", scratch / "zonefs"
    mountpoint.mkdir()
    cli = [sys.executable, "-m", "zonefs_emu"]
    for arguments in (
        ["create", image, "--size", "4GiB", "--zone-size", str(ZONE_BYTES), "--block-size", "4096"],
        ["mkfs", image],
        ["mount", image, mountpoint],
    ):
        subprocess.run([*cli, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint / "seq" / "0"
    finally:
        subprocess.run([*cli, "umount", str(mountpoint)], check=True)


@contextmanager
def _passthrough(scratch: Path) -> Iterator[Path]:
    with _served(scratch, "pyfuse3", [sys.executable, "-m", "bench.passthrough"]) as file:
        yield file


@contextmanager
def _served(scratch: Path, name: str, command: list[str]) -> Iterator[Path]:
    backing, mountpoint = scratch / f"{name}.file", scratch / f"{name}.mnt"
    backing.touch()
    mountpoint.mkdir()
    with _mounted([*command, str(backing), str(mountpoint)], mountpoint / "file") as file:
        yield file


@contextmanager
def _passthrough_ll(scratch: Path) -> Iterator[Path | None]:
    """Mount libfuse's example, which mirrors the whole tree of a directory; None where it cannot be built."""
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
    # It hands O_DIRECT on to its source with memory that is not aligned: a disk refuses that, tmpfs does not.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as source:
        (Path(source) / "file").touch()
        options = f"source={source},cache=never"
        with _mounted([str(program), "-f", "-o", options, str(mountpoint)], mountpoint / "file") as file:
            yield file


@contextmanager
def _mounted(command: list[str], file: Path) -> Iterator[Path]:
    """Let *command* serve the file system in which *file* is, at its root."""
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        deadline = time.monotonic() + 10
        while not file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{file.parent} was not mounted"
                raise RuntimeError(message)
            time.sleep(0.02)
        yield file
    finally:
        subprocess.run(["fusermount3", "-u", str(file.parent)], check=True)
        process.wait(10)
