"""The cost of a page of ``watch --http`` for writers: 4 KiB writes through a mount, with a page open and without.

The effect to be seen is 2 %, which is little beside the machine's other work. So a second row has the processor time
that the page takes from the process of the mount, while just enough is written that each look finds a change.
The page has as many zones as a real drive.
"""

import mmap
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Final

from bench.fuse import ZONE_BYTES, empty, fio_job, mounted, processor_seconds_of
from bench.harness import PROJECT, Row, compare, limit, program

#: Writes with a page, as a share of those without; and the time of a processor that the page may take, in per cent.
GOAL: Final = 0.98
SHARE_MAX: Final = 2.0
SECONDS: Final = 10
#: A page is renewed this often.
LOOK_S: Final = 1.0
NR_ZONES: Final = 904
_RECEIVE_BYTES: Final = 1 << 16


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure writes while the page is looked at, and while it is not even served."""
    image, mountpoint = scratch / "watched.img", scratch / "watched"
    mountpoint.mkdir()
    shape = ["--size", str(NR_ZONES * ZONE_BYTES), "--zone-size", str(ZONE_BYTES), "--block-size", "4096"]
    for arguments in (["create", str(image), *shape], ["mkfs", str(image)]):
        subprocess.run([*program(), *arguments], check=True, stdout=subprocess.DEVNULL, cwd=PROJECT)
    file = mountpoint / "seq" / "0"
    mount = [*program(), "mount", "--foreground", str(image), str(mountpoint)]
    with mounted(mount, mountpoint / "seq") as process:
        write = fio_job(file, "write", "4k", zoned=True)

        def watched() -> float:
            with _page(image):
                return write()

        return [
            compare("watch", "4k sequential write with a page open", "KiB/s", watched, peer="no page", peers=write,
                    runs=runs, goal=GOAL),
            limit("watch", "processor time that a page takes from a mount", "%",
                  lambda: _share(image, file, process.pid), runs=1, at_most=SHARE_MAX),
        ]  # fmt: skip


def _share(image: Path, file: Path, pid: int) -> float:
    """Return the processor time of the process *pid* in per cent of the time for which the page is open."""
    empty(file)
    with _page(image):
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_DIRECT)
        try:
            begin, before = time.monotonic(), processor_seconds_of(pid)
            # A direct write needs aligned memory, and an anonymous mapping is aligned.
            with mmap.mmap(-1, 4096) as block:
                while time.monotonic() < begin + SECONDS:
                    os.write(fd, block)
                    time.sleep(LOOK_S / 2)
            return 100 * (processor_seconds_of(pid) - before) / (time.monotonic() - begin)
        finally:
            os.close(fd)


@contextmanager
def _page(image: Path) -> Iterator[None]:
    """Serve the page and read its events, as a browser does, until the end of the context."""
    watch = [*program(), "watch", str(image), "--http", "127.0.0.1:0"]
    with subprocess.Popen(watch, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            with urllib.request.urlopen(url.replace("/?", "/events?"), timeout=30) as events:
                reader = threading.Thread(target=_drain, args=(events,))
                reader.start()
                try:
                    yield
                finally:
                    server.terminate()
                    reader.join()
        except BaseException:
            server.kill()
            raise


def _drain(events: HTTPResponse) -> None:
    with suppress(IncompleteRead):  # the server is terminated in the middle of its answer
        while events.read1(_RECEIVE_BYTES):
            pass
