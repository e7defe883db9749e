"""How fast a log on zones would be on a real drive, without one: see docs/timing.md.

python examples/simulated_time.py
"""

import tempfile
from pathlib import Path
from uuid import uuid4

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.virtual_clock import Submitted, VirtualClock
from zonefs_emu.errors import Status
from zonefs_emu.model.presets import PRESETS, build_geometry
from zonefs_emu.model.transitions import ZNS
from zonefs_emu.units import Sector

BLOCK = (bytes(4096),)


def append_rate(path: Path, *, depth: int, count: int) -> float:
    """Return how many appends of 4 KiB a second a ZN540 takes with *depth* of them under way."""
    ZonedDevice.create(path, build_geometry(preset=PRESETS["zn540"]), uuid=uuid4())
    device = ZonedDevice.open(path)
    clock = VirtualClock()
    device.sleep_ns = clock.advance
    device.start_timing("zn540", clock=clock.now)
    port = device.port("log", ZNS)
    nr_begun = 0

    def begin_next(_: Submitted[tuple[Status, Sector]] | None = None) -> None:
        nonlocal nr_begun
        if nr_begun < count:
            nr_begun += 1
            clock.submit_then(begin_next, lambda: port.append(0, 8, BLOCK))

    for _ in range(depth):
        begin_next()
    clock.run_until_idle()
    device.close()
    return count * 1e9 / clock.now_ns


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for depth in (1, 2, 4):
            rate = append_rate(Path(directory) / f"{depth}.img", depth=depth, count=20_000)
            print(f"{depth} under way: {rate:.0f} appends a second")
