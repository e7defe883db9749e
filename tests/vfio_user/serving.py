"""Daemons that serve an image at a vfio-user socket, and that can be killed: forks of one process, so they start fast.

    python serving.py IMAGE SOCKET KEEPER

The process waits for lines on its standard input. Each has it start a daemon, whose number it prints once that serves.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.vhost_user import listening
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.kept_client import KeptClient
from zonefs_emu.vfio_user.vfio_server import VfioServer


class Daemons:
    """The process that starts them."""

    def __init__(self, image: Path, path: Path, keeper: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(image), str(path), str(keeper)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.path = path
        self._pid = 0

    def start(self) -> None:
        """Start the next daemon, and wait until it serves."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("start\n")
        self._process.stdin.flush()
        self._pid = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the daemon."""
        os.kill(self._pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon in order."""
        os.kill(self._pid, signal.SIGTERM)

    def close(self) -> None:
        """End everything, once the last daemon has ended."""
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


def _serve(image: Path, path: Path, keeper: Path) -> None:
    device = ZonedDevice.open(image)
    subsystem = Subsystem([device])
    kept = KeptClient.find(keeper, subsystem, device.unforeseen)
    with listening(path) as sock:
        server = VfioServer(
            sock, lambda client, _: KeptClient.start(client, keeper, subsystem, device.unforeseen), device.unforeseen,
            kept,
        )  # fmt: skip
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        os.write(1, f"{os.getpid()}\n".encode())
        server.run()
    device.close()


def _main(image: Path, path: Path, keeper: Path) -> None:
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            _serve(image, path, keeper)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
