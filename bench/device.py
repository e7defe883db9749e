"""The device without a front-end, against bare system calls on a plain file in the same directory.

Figures are processor time: no call waits, and other work of the machine would count in elapsed time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import uuid4

from bench.harness import Row, compare
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO

NR_WRITES: Final = 20_000
BLOCK: Final = b"z" * 4096


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure writes, reads and refusals of 4 KiB."""
    geometry = Geometry(size=1 << 24, zone_size=1 << 20, zone_capacity=1 << 20, max_open_zones=8, max_active_zones=12)
    image = scratch / "device.img"
    ZonedDevice.create(image, geometry, uuid=uuid4())
    device = ZonedDevice.open(image)
    port = device.port("bench", VIRTIO)
    fd = os.open(scratch / "plain.img", os.O_RDWR | os.O_CREAT, 0o600)
    next_zone = iter(range(geometry.nr_zones))
    offsets = iter(range(0, 1 << 40, NR_WRITES * len(BLOCK)))

    def write() -> float:
        start = geometry.zone_start(next(next_zone))
        return _each_us(lambda i: port.write(start + 8 * i, 8, (BLOCK,)))

    def plain_write() -> float:
        start = next(offsets)
        return _each_us(lambda i: os.pwrite(fd, BLOCK, start + 4096 * i))

    buffer = bytearray(4096)
    found = [
        compare("device", "4 KiB sequential write", "µs", write, peer="os.pwrite", peers=plain_write,
                runs=runs, goal=1 / 2.5, less_is_better=True),
        compare("device", "4 KiB read", "µs", lambda: _each_us(lambda i: port.read(8 * i, 8, (buffer,))),
                peer="os.preadv", peers=lambda: _each_us(lambda i: os.preadv(fd, (buffer,), 4096 * i)),
                runs=runs, less_is_better=True),
        compare("device", "refused 4 KiB write", "µs", lambda: _refused(port), peer="os.pwrite", peers=plain_write,
                runs=runs, goal=1 / 5, less_is_better=True),
    ]  # fmt: skip
    device.start_timing("none")
    untimed = device.port("untimed", VIRTIO)
    found.append(
        compare("device", "4 KiB read, with --timing none", "µs",
                lambda: _each_us(lambda i: untimed.read(8 * i, 8, (buffer,))), peer="without the option",
                peers=lambda: _each_us(lambda i: port.read(8 * i, 8, (buffer,))), runs=runs, goal=0.95,
                less_is_better=True)
    )  # fmt: skip
    os.close(fd)
    device.close()
    return found


def _refused(port: Port) -> float:
    return _each_us(lambda _: port.write(8 * 3, 8, (BLOCK,)))


def _each_us(call: Callable[[int], object]) -> float:
    start = time.process_time_ns()
    for i in range(NR_WRITES):
        call(i)
    return (time.process_time_ns() - start) / NR_WRITES / 1000
