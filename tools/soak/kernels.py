"""Unforeseen exceptions in ublk, VDUSE and NVMe/TCP: all three serve one image in this process, each under load.

    python -m tools.soak.kernels DIRECTORY

Each function of the package raises once, below a boundary, as :mod:`tools.soak.planting` has it. What is written is
compared with what was answered, at each read and in the image at the end. The last line of the output says as JSON how
many requests of each load were done, and how many were refused or lost.

In one process, because what plays the kernel (:mod:`tools.soak.kernel_doubles`) stands in the place of modules.
"""

import errno
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Final
from uuid import uuid4

from tools.soak import planting
from tools.soak.daemon import GEOMETRY, ZONE
from tools.soak.disk_loads import BlkLoad
from tools.soak.kernel_doubles import UblkQueue, VduseDriver, VduseKernel
from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS, Ledger
from tools.soak.loads import DataLoad, Load
from tools.soak.nvme_loads import NvmeLoad
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.errors import PeerError
from zonefs_emu.inflight.tag_record import TagRecord
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.nvme_tcp.server import NvmeTcpServer, listen
from zonefs_emu.ublk import io_queue
from zonefs_emu.ublk.io_queue import IoQueue
from zonefs_emu.ublk.protocol import BLK_ZONE_BYTES, Request
from zonefs_emu.vduse import vduse_device
from zonefs_emu.vduse.vdpa_bus import Driver
from zonefs_emu.vduse.vduse_device import VduseDevice

_DEPTH: Final = 8
_FUA: Final = 1 << 13
#: How likely a function's next call raises. A loop that fails several times in a row is given up, so the functions that
#: each step of it calls must not all raise one after the other.
_PROBABILITY: Final = 0.03
#: After so many requests of every load without a new exception, none is left to be planted.
_NR_QUIET_REQUESTS: Final = 400
_SECONDS_MAX: Final = 500
#: For the end: users wait for an answer for 60 s, and front-ends for the host's disk for less.
_ENDING_SECONDS_MAX: Final = 80
UBLK: Final = (range(2, 12), range(12, 22))
VDUSE: Final = range(22, 42)
NVME: Final = range(42, 62)


class Served:
    """The part of a daemon that loads need, in this process."""

    planting = "once"
    is_running = True

    def __init__(self) -> None:
        #: Where the NVMe/TCP drive is, and the name of its subsystem.
        self.nvme = "127.0.0.1", 0
        self.nqn = ""


class UblkLoad(DataLoad):
    """A user of the ublk device's queue *ublk*."""

    ublk: UblkQueue

    def _is_done(self, result: int, nr_bytes: int) -> bool:
        assert result in (nr_bytes, -errno.EIO), f"the ublk device answers {result}"
        return result >= 0

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Read."""
        nr_bytes = count * BLOCK_BYTES
        sector = zone.zone_no * ZONE + first * BLOCK_SECTORS
        result, _, data = self.ublk.ask(Request.READ, count * BLOCK_SECTORS, sector, room=nr_bytes)
        return data if self._is_done(result, nr_bytes) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write, now and then with Force Unit Access, or append."""
        start, count, dice = zone.zone_no * ZONE, len(data) // 512, self.rng.random()
        end = start + zone.acknowledged * BLOCK_SECTORS
        if dice < 0.5:
            result, _, _ = self.ublk.ask(Request.WRITE | (_FUA if dice < 0.05 else 0), count, end, data=data)
            return self._is_done(result, len(data))
        result, landed, _ = self.ublk.ask(Request.ZONE_APPEND, count, start, data=data)
        done = self._is_done(result, len(data))
        assert not done or landed == end, "an append went astray"
        return done

    def reset(self, zone: Ledger) -> bool:
        """Reset."""
        return self._is_done(self.ublk.ask(Request.ZONE_RESET, 0, zone.zone_no * ZONE)[0], 0)

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Flush."""
        return self._is_done(self.ublk.ask(Request.FLUSH, 0, 0)[0], 0)

    def written_sectors(self, zone: Ledger) -> int:
        """Report one zone."""
        start = zone.zone_no * ZONE
        result, _, data = self.ublk.ask(Request.REPORT_ZONES, 1, start, room=BLK_ZONE_BYTES)
        if not self._is_done(result, BLK_ZONE_BYTES):
            self.lost(PeerError("a report was refused"))
        return int.from_bytes(data[16:24], "little") - start

    def use_a_zone(self) -> None:
        """Ask for something other than data, or use a zone."""
        if self.rng.random() > 0.05:
            super().use_a_zone()
            return
        start = self.rng.choice(self.ledgers).zone_no * ZONE
        operation, count, outcomes = self.rng.choice(
            (
                (Request.REPORT_ZONES, 4000, (GEOMETRY.nr_zones * BLK_ZONE_BYTES,)),
                (Request.DISCARD, 8, (-errno.EOPNOTSUPP,)),
                (Request.ZONE_CLOSE, 0, (0, -errno.EIO)),
            )
        )
        result, _, _ = self.ublk.ask(operation, count, 0 if operation == Request.REPORT_ZONES else start)
        assert result in (*outcomes, -errno.EIO), f"the ublk device answers {result}"
        # An empty zone has nothing to close.
        self._note(done=result in outcomes)


class VduseLoad(BlkLoad):
    """The driver of the VDUSE device *vduse*, whose kernel is *kernel*."""

    kernel: VduseKernel
    vduse: VduseDevice

    def plug(self) -> None:
        """Bind the driver."""
        driver = self.driver = VduseDriver(self.kernel)
        driver.is_served = self._is_served
        self._frontend = driver  # type: ignore[assignment]  # it has what a load needs of a front-end
        driver.start()
        self.use(driver.queues[0])

    def _is_served(self) -> bool:
        loop = self.vduse._loop  # noqa: SLF001  (a driver cannot know; it waits without end)
        assert loop is not None
        assert loop.failure is None
        (queue,) = loop.queues
        return queue.ring is not None and queue.enabled and not queue.broken

    def look(self) -> None:
        """Ask for something other than data, or have the device set itself up in another way."""
        match self.rng.randrange(3):
            case 0:
                self.driver.suspend_and_resume()
            case 1:
                self.driver.move_memory()
            case _:
                super().look()


class Kernels:
    """The image, what serves it, and the loads. *directory* is theirs."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._image = directory / "kernels.img"
        ZonedDevice.create(self._image, GEOMETRY, uuid=uuid4())
        self._device = device = ZonedDevice.open(self._image)
        served = Served()
        self._ledgers: list[Ledger] = []

        def ledgers(zones: range) -> list[Ledger]:
            found = [Ledger(zone_no) for zone_no in zones]
            self._ledgers += found
            return found

        port = device.port("ublk", VIRTIO)
        port.intents = intents = Intents(contested=lambda _: False)
        self._ublk = ublk = UblkQueue(directory / "node", _DEPTH)
        self._record = TagRecord(directory / "tags", port, device_tag=1, nr_tags=_DEPTH, go_on=False)
        setattr(io_queue, "Ring", ublk)  # noqa: B010  (mypy refuses it otherwise)
        # The compiled walker reads the rings as memory, which the double's are not; and exceptions are for Python code.
        setattr(io_queue, "is_usable", lambda _: False)  # noqa: B010
        self._ended = threading.Event()
        self._queue = IoQueue(port, intents, ublk.fd, self._record, number=0, depth=_DEPTH, ended=self._ended.set)

        kernel = VduseKernel()
        for module in ("vdpa_bus", "fcntl"):
            setattr(vduse_device, module, kernel)
        self._vduse = VduseDevice(
            device, name="kernels", records=directory / "rings", driver=Driver.VM, ended=self._ended.set
        )

        sockets = listen(*served.nvme)
        served.nvme = sockets[0].getsockname()
        self._server = NvmeTcpServer(Subsystem([device]), sockets, device.unforeseen)
        served.nqn = self._server.subsystem.nqn
        self._accepting = threading.Thread(target=self._server.run, name="nvme-tcp")

        self.loads: list[Load] = []
        for number, zones in enumerate(UBLK):
            user = UblkLoad(served, f"ublk-{number}", seed, ledgers(zones))  # type: ignore[arg-type]  # all that it needs
            user.ublk = ublk
            self.loads.append(user)
        driver = VduseLoad(served, "vduse", seed, ledgers(VDUSE), directory)  # type: ignore[arg-type]  # as above
        driver.kernel, driver.vduse = kernel, self._vduse
        self.loads += [driver, NvmeLoad(served, "nvme", seed, ledgers(NVME))]  # type: ignore[arg-type]  # as above

    def begin(self) -> None:
        """Serve the image and use it."""
        self._queue.start()
        self._vduse.start()
        self._accepting.start()
        for load in self.loads:
            load.start()

    def check_alive(self) -> None:
        """Raise what a load or a front-end has found."""
        failures = (*(load.failure for load in self.loads), self._queue.failure, self._vduse.failure)
        for failure in failures:
            if failure is not None:
                raise failure
        assert not self._ended.is_set(), "a front-end has ended by itself"

    def end(self) -> None:
        """Stop all users, then all front-ends, and compare the image with what was answered."""
        for load in self.loads:
            load.stopping.set()
        for load in self.loads:
            load.join()
        self.check_alive()
        self._ublk.abort()
        self._queue.join()
        self._vduse.stop()
        self._server.stop()
        self._accepting.join()
        self._record.remove()
        self._device.close()
        device = ZonedDevice.open(self._image, readonly=True)
        for ledger in self._ledgers:
            ledger.reconcile(device.machine.wps[ledger.zone_no])
            found = bytearray(ledger.acknowledged * BLOCK_BYTES)
            device.image.backing.preadv([found], ledger.zone_no * ZONE * 512)
            ledger.compare(0, ledger.acknowledged, bytes(found))
        device.close()


def main() -> None:
    """Run until each load has made many requests since the last exception."""
    directory = Path(sys.argv[1])
    kernels = Kernels(directory, seed=1)
    planter = planting.Planter(planting.once(_PROBABILITY))
    planting.install(planter)
    kernels.begin()
    deadline = time.monotonic() + _SECONDS_MAX
    planted, done = -1, {load.name: 0 for load in kernels.loads}
    while True:
        kernels.check_alive()
        if planter.nr_planted != planted:
            planted, done = planter.nr_planted, {load.name: load.nr_done for load in kernels.loads}
        elif all(load.nr_done >= done[load.name] + _NR_QUIET_REQUESTS for load in kernels.loads):
            break
        assert time.monotonic() < deadline, {load.name: load.nr_done for load in kernels.loads}
        time.sleep(0.2)
    kernels.end()
    print(json.dumps({load.name: [load.nr_done, load.nr_refused + load.nr_lost] for load in kernels.loads}))


if __name__ == "__main__":
    # Front-ends that still serve, or hang, have threads that the interpreter would wait for.
    faulthandler.dump_traceback_later(_SECONDS_MAX + _ENDING_SECONDS_MAX, exit=True)
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
