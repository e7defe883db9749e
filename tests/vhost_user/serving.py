"""A back-end that serves a fresh image, in this process or in one of its own that can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.backend import Backend, serve_in_thread
from zonefs_emu.virtio.blk_config import BlkOptions
from zonefs_emu.virtqueue.blk_device import BlkDevice
from zonefs_emu.virtqueue.virtio_device import VirtioDevice

ZONE: Final = 2048
GEOMETRY: Final = Geometry(
    size=32 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),), max_open_zones=6, max_active_zones=8
)
UUID_OF_TESTS: Final = UUID("00000000-0000-4000-8000-000000000003")


def create(path: Path, geometry: Geometry = GEOMETRY) -> Path:
    ZonedDevice.create(path, geometry, uuid=UUID_OF_TESTS)
    return path


def blk_device(device: ZonedDevice, *, nr_queues: int = 1, strict: bool = False) -> BlkDevice:
    return BlkDevice(device, BlkOptions(serial="serial-of-tests", nr_queues=nr_queues), strict=strict)


@contextmanager
def serving(device: ZonedDevice, virtio_device: VirtioDevice, path: Path) -> Iterator[Backend]:
    """Serve *virtio_device* at socket *path* on a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    backend = Backend(device, virtio_device, listener=listener)
    thread = serve_in_thread(backend, "backend")
    try:
        yield backend
    finally:
        backend.stop()
        thread.join(30)
        assert not thread.is_alive()


def still_serves(path: Path) -> None:
    """The next front-end finds the device as it was."""
    with Frontend(path) as frontend:
        frontend.start()
        assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0


class Daemon:
    """A back-end in a process of its own."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image = image
        self.path = path
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.path.unlink(missing_ok=True)
        return subprocess.Popen([sys.executable, __file__, str(self.image), str(self.path)])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _main(image: Path, path: Path) -> None:
    device = ZonedDevice.open(image)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    backend = Backend(device, blk_device(device), listener=listener)
    signal.signal(signal.SIGTERM, lambda *_: backend.stop())
    thread = serve_in_thread(backend, "backend")
    while thread.is_alive():
        time.sleep(0.1)
    device.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
