"""The drive over TCP, by the host's loopback interface; and a drive of a million zones beside one of a thousand.

No package has a client in C that works without a kernel module, so the client's loop is C code of this project
(nvme_tcp_loop.c). A loop in Python was rejected because it costs more than the target. :mod:`bench.attach` has the
kernel's driver and target.
"""

import ctypes
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import PROJECT, Row, compare, limit
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme.identify import Cns, CommandSet
from zonefs_emu.testing.nvme_initiator import NvmeHost, NvmeQueue, Reply

BLOCK: Final = 4096
ZONE_BLOCKS: Final = 16384
NR_READS: Final = 60_000
#: 15,000 reads a second.
AT_MOST_US: Final = 66.7
NR_MANY: Final = 1_000_000
NR_FEW: Final = 1000
SMALL_ZONE_BLOCKS: Final = 256
#: One portion of a report: 63 zones.
PORTION_BYTES: Final = 4096
NR_CALLS: Final = 1000


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure reads, and what must not grow with the number of zones."""
    return [*_reads(scratch, runs), *_zones(scratch, runs)]


def _reads(scratch: Path, runs: int) -> list[Row]:
    """Measure 4 KiB random reads of a zone that is full."""
    loop = compile_loop(scratch)
    with _drive(scratch / "nvme.img", 4, ZONE_BLOCKS) as host:
        queue = host.queue(1)
        data = bytes(range(256)) * (128 << 10 >> 8)
        for slba in range(0, ZONE_BLOCKS, len(data) // BLOCK):
            assert queue.write(1, slba, data, BLOCK).status == 0
        what = "4 KiB random read over TCP, depth {}, each"
        return [
            limit("nvme", what.format(1), "µs", partial(microseconds, loop, queue, NR_READS // 4, 1), runs=runs),
            limit(
                "nvme", what.format(32), "µs", partial(microseconds, loop, queue, NR_READS, 32), runs=runs,
                at_most=AT_MOST_US,
            ),
        ]  # fmt: skip


def _zones(scratch: Path, runs: int) -> list[Row]:
    """Measure identify, and reports of one portion, of a drive of a million zones beside one of a thousand."""
    with (
        _drive(scratch / "many.img", NR_MANY, SMALL_ZONE_BLOCKS) as many,
        _drive(scratch / "few.img", NR_FEW, SMALL_ZONE_BLOCKS) as few,
    ):
        queues = {many: many.queue(1), few: few.queue(1)}
        sizes = {many: NR_MANY, few: NR_FEW}

        def identify(host: NvmeHost) -> Reply:
            return host.identify(Cns.SET_NAMESPACE, nsid=1, command_set=CommandSet.ZNS)

        def report(host: NvmeHost) -> Reply:
            # The last portion, because a scan from the first zone on would show there.
            slba = (sizes[host] - PORTION_BYTES // 64 + 1) * SMALL_ZONE_BLOCKS
            return queues[host].report(1, slba, room=PORTION_BYTES)

        def count(host: NvmeHost) -> Reply:
            return queues[host].report(1, room=PORTION_BYTES, partial=False)

        commands = {"identify": identify, "report of 63 zones": report, "report of 63 zones, all counted": count}
        return [
            compare("nvme", f"1,000,000 zones: {what}", "µs", partial(_each_us, call, many), peer="1,000 zones",
                    peers=partial(_each_us, call, few), runs=runs, goal=0.8, less_is_better=True)
            for what, call in commands.items()
        ]  # fmt: skip


def _each_us(call: Callable[[NvmeHost], Reply], host: NvmeHost) -> float:
    begin = time.perf_counter()
    for _ in range(NR_CALLS):
        assert call(host).status == 0
    return 1e6 * (time.perf_counter() - begin) / NR_CALLS


@contextmanager
def _drive(image: Path, nr_zones: int, zone_blocks: int) -> Iterator[NvmeHost]:
    """Serve a new image; yields a host of it."""
    zone = zone_blocks * BLOCK >> 9
    geometry = Geometry(size=nr_zones * zone, zone_size=zone, zone_capacity=zone, block_size_bytes=BLOCK)
    ZonedDevice.create(image, geometry, uuid=uuid4())
    with served(image) as place, NvmeHost(*place, keep_alive_ms=0) as host:
        yield host


def compile_loop(scratch: Path) -> ctypes.CDLL:
    """Return the client's loop."""
    compiled = scratch / "nvme_tcp_loop.so"
    source = Path(__file__).with_name("nvme_tcp_loop.c")
    subprocess.run(["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(compiled), str(source)], check=True)
    loop = ctypes.CDLL(str(compiled))
    loop.run_reads.restype = ctypes.c_int64
    loop.run_reads.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_uint32] * 2, ctypes.c_int)
    return loop


def microseconds(loop: ctypes.CDLL, queue: NvmeQueue, nr_reads: int, depth: int) -> float:
    """Read *nr_reads* blocks anywhere in the first zone; microseconds for each."""
    draw = random.Random(nr_reads)
    slbas = (ctypes.c_uint64 * nr_reads)(*(draw.randrange(ZONE_BLOCKS) for _ in range(nr_reads)))
    queue.sock.setblocking(True)  # noqa: FBT003  (its only form)
    begin = time.perf_counter()
    nr_failed = loop.run_reads(queue.sock.fileno(), slbas, nr_reads, 1, BLOCK, depth)
    seconds = time.perf_counter() - begin
    if nr_failed:
        message = f"{nr_failed} of {nr_reads} reads failed"
        raise RuntimeError(message)
    return 1e6 * seconds / nr_reads


@contextmanager
def served(image: Path) -> Iterator[tuple[str, int, str]]:
    """Serve *image* over TCP; yields address, port and name of the subsystem."""
    serve = [sys.executable, "-u", "-m", "zonefs_emu", "serve", str(image), "--nvme-tcp", "127.0.0.1:0"]
    with subprocess.Popen(serve, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as daemon:
        assert daemon.stdout is not None
        try:
            for line in daemon.stdout:
                if found := re.search(r"nvme connect -t tcp -a (\S+) -s (\d+) -n (\S+)", line):
                    yield found[1], int(found[2]), found[3]
                    break
            else:
                message = "the target does not serve"
                raise RuntimeError(message)
        finally:
            daemon.terminate()
