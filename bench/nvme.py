"""The drive over TCP, by the host's loopback interface.

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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import PROJECT, Row, limit
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.testing.nvme_initiator import NvmeHost, NvmeQueue

BLOCK: Final = 4096
ZONE_BLOCKS: Final = 16384
NR_READS: Final = 60_000
#: 15,000 reads a second.
AT_MOST_US: Final = 66.7


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure 4 KiB random reads of a zone that is full."""
    loop = compile_loop(scratch)
    with served(scratch / "nvme.img") as (address, port, nqn), NvmeHost(address, port, nqn, keep_alive_ms=0) as host:
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
    """Serve a new image over TCP; yields address, port and name of the subsystem."""
    zone = ZONE_BLOCKS * BLOCK >> 9
    geometry = Geometry(size=4 * zone, zone_size=zone, zone_capacity=zone, block_size_bytes=BLOCK)
    ZonedDevice.create(image, geometry, uuid=uuid4())
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
