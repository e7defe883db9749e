"""vhost-user-blk through libblkio, beside qemu-storage-daemon on a plain file.

They run side by side, each with its own connection, and are measured in turn by one client. Its loop is in C
(blkio_loop.c). A loop in Python was rejected: it costs more than a request, so the figures would be those of the
client.
"""

import ctypes
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import PROJECT, PURE, Row, judge, program, progress
from tools.blkio import Blkio
from tools.guest.kit import Kit, obtain_kit
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry

ZONE_BYTES: Final = 512 << 20
NR_ZONES: Final = 4
DEPTH: Final = 32
BUFFER_BYTES: Final = DEPTH * 131072
START_SECONDS: Final = 30
#: The place of random reads, which is written once, and that of sequential writes, which is emptied before each of
#: them.
READ_ZONE: Final = 1
WRITE_ZONE: Final = 2
READ_BYTES: Final = 128 << 20

#: Of each round the better mode counts as the peer.
AIO_MODES: Final = ("threads", "io_uring")
_PURE: Final = 'import os\nos.environ["ZONEFS_EMU_PURE"] = "1"'


class Disk:
    """A back-end behind a socket, and how to empty the zone that is written."""

    def __init__(self, client: Blkio, loop: ctypes.CDLL, empty: Callable[[], None]) -> None:
        self.client = client
        self.loop = loop
        self.empty = empty

    def fill(self) -> None:
        """Write what will be read."""
        start = READ_ZONE * ZONE_BYTES
        self._run(range(start, start + READ_BYTES, 131072), 131072, DEPTH, write=True)

    def write(self, length: int, nr_requests: int, depth: int) -> float:
        """Write *nr_requests* of *length* bytes one after the other; requests a second."""
        self.empty()
        # The cost of earlier writes and of punching the hole must not be in the measured time.
        self.client.flush()
        start = WRITE_ZONE * ZONE_BYTES
        return self._run(range(start, start + length * nr_requests, length), length, depth, write=True)

    def read(self, nr_requests: int, depth: int) -> float:
        """Read *nr_requests* of 4 KiB anywhere; requests a second."""
        draw = random.Random(nr_requests)
        offsets = [READ_ZONE * ZONE_BYTES + draw.randrange(READ_BYTES // 4096) * 4096 for _ in range(nr_requests)]
        return self._run(offsets, 4096, depth, write=False)

    def _run(self, offsets: "range | list[int]", length: int, depth: int, *, write: bool) -> float:
        array = (ctypes.c_uint64 * len(offsets))(*offsets)
        begin = time.perf_counter()
        nr_failed = self.client.load(self.loop, array, length, depth=depth, write=write)
        seconds = time.perf_counter() - begin
        if nr_failed:
            message = f"{nr_failed} of {len(offsets)} requests of {length} bytes failed"
            raise RuntimeError(message)
        return len(offsets) / seconds


#: What is measured, the goals with and without the compiled ring walker, and how.
LOADS: Final[Sequence[tuple[str, float, float, Callable[[Disk], float]]]] = (
    ("4 KiB random read, depth 32", 1.8, 0.6, lambda disk: disk.read(60_000, 32)),
    ("4 KiB random read, depth 1", 1.5, 0.9, lambda disk: disk.read(15_000, 1)),
    ("4 KiB sequential write, depth 32", 2.0, 1.5, lambda disk: disk.write(4096, 40_000, 32)),
    ("4 KiB sequential write, depth 1", 1.5, 0.9, lambda disk: disk.write(4096, 15_000, 1)),
    ("128 KiB sequential write, depth 32", 1.1, 0.8, lambda disk: disk.write(131072, 1_200, 32)),
)


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure 4 KiB random reads, 4 KiB and 128 KiB sequential writes: with the compiled ring walker and without."""
    kit = obtain_kit(print)
    library, loop = kit.library("libblkio.so.1"), compile_loop(scratch)
    found = []
    with ExitStack() as stack:
        disks = {
            "compiled": stack.enter_context(our_disk(scratch, library, loop)),
            "pure": stack.enter_context(our_disk(scratch, library, loop, name="pure", change=_PURE)),
            **{aio: stack.enter_context(_peer(scratch, kit, library, loop, aio)) for aio in AIO_MODES},
        }
        for disk in disks.values():
            disk.fill()
        os.sync()  # the host would otherwise write back while others are measured
        for what, goal, pure_goal, measure in LOADS:
            figures: dict[str, list[float]] = {name: [] for name in disks}
            for number in range(runs):
                progress(f"vhost: {what}, {number + 1} of {runs}")
                for name, disk in disks.items():
                    figures[name].append(measure(disk))
            better = [max(modes) for modes in zip(*(figures[aio] for aio in AIO_MODES), strict=True)]
            for name, told, wanted in (("compiled", what, goal), ("pure", f"{what}{PURE}", pure_goal)):
                pairs = list(zip(figures[name], better, strict=True))
                found.append(judge("vhost", told, "/s", pairs, peer="qemu-storage-daemon", goal=wanted))
    return found


def compile_loop(scratch: Path) -> ctypes.CDLL:
    """Return the client's loop."""
    compiled = scratch / "blkio_loop.so"
    source = Path(__file__).with_name("blkio_loop.c")
    subprocess.run(["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(compiled), str(source)], check=True)
    return ctypes.CDLL(str(compiled))


@contextmanager
def our_disk(
    scratch: Path,
    library: str,
    loop: ctypes.CDLL,
    *,
    name: str = "vhost",
    change: str = "",
    options: Sequence[str] = (),
) -> Iterator[Disk]:
    """Serve an image; *change*: statements that its process executes before it begins; *options*: of ``serve``."""
    image, socket_path = scratch / f"{name}.img", scratch / f"{name}.sock"
    zone = ZONE_BYTES // 512
    ZonedDevice.create(image, Geometry(size=NR_ZONES * zone, zone_size=zone, zone_capacity=zone), uuid=uuid4())

    def empty() -> None:
        subprocess.run([*program(), "reset", str(image), "--zone", str(WRITE_ZONE)], check=True, cwd=PROJECT)

    with (
        _running(
            [*program(change), "serve", str(image), "--vhost-user-blk", str(socket_path), *options], socket_path, None
        ),
        Blkio(library, socket_path, buffer_bytes=BUFFER_BYTES) as client,
    ):
        yield Disk(client, loop, empty)


@contextmanager
def _peer(scratch: Path, kit: Kit, library: str, loop: ctypes.CDLL, aio: str) -> Iterator[Disk]:
    plain, socket_path = scratch / f"{aio}.raw", scratch / f"{aio}.sock"
    with plain.open("wb") as file:
        file.truncate(NR_ZONES * ZONE_BYTES)
    block = f"driver=file,node-name=disk,filename={plain},aio={aio}"
    export = f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={socket_path},writable=on"
    command = [kit.program("qemu-storage-daemon"), "--blockdev", block, "--export", export]

    def empty() -> None:
        # As a reset does: what is overwritten in place costs less than what is new.
        place = ["--offset", str(WRITE_ZONE * ZONE_BYTES), "--length", str(ZONE_BYTES)]
        subprocess.run(["fallocate", "--punch-hole", *place, str(plain)], check=True)

    with (
        _running(command, socket_path, kit.environment),
        Blkio(library, socket_path, buffer_bytes=BUFFER_BYTES) as client,
    ):
        yield Disk(client, loop, empty)


@contextmanager
def _running(command: list[str], socket_path: Path, environment: dict[str, str] | None) -> Iterator[None]:
    """Run a back-end until its socket is there, and end it after the context."""
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not socket_path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    message = f"{' '.join(command)} does not serve"
                    raise RuntimeError(message)
                time.sleep(0.05)
            time.sleep(0.2)  # bound, but not yet listening
            yield
        finally:
            process.terminate()
