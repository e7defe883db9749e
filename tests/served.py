"""An image served by a daemon of its own, and the command line beside it: what tests with a real guest work on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

CHECKOUT: Final = Path(__file__).parents[1]
#: Starting an interpreter takes long where a guest uses both processors.
CLI_SECONDS: Final = 60
STOP_SECONDS: Final = 30
READY: Final = "is served"


class Served:
    """An image in *directory* and the daemon that serves it; a context manager that ends the daemon.

    *create*: options of ``zonefs-emu create``. *front_ends*: sockets for virtual machines, and our own mount.
    *options*: further ones of ``zonefs-emu serve``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        create: str,
        front_ends: Sequence[Literal["scsi", "blk", "nvme", "vfio", "mount"]] = ("scsi",),
        options: Sequence[str] = (),
    ) -> None:
        self.image = directory / "disk.img"
        self.scsi_socket = directory / "disk.scsi"
        self.mount_point = directory / "mnt"
        self.mount_point.mkdir()
        self.blk_socket = directory / "disk.blk"
        self.vfio_socket = directory / "disk.vfio"
        self._log = directory / "disk.log"
        self._front_ends = front_ends
        self._options = options
        self._nr_starts = 0
        self._daemon: subprocess.Popen[bytes] | None = None
        self.cli("create", str(self.image), *create.split())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._daemon is None:
            return
        if error is None:
            self.stop()
            return
        error.add_note(f"--- the daemon's log\n{self.log}")
        # It may hang, which may be why the test failed; killed at once it would leave its mount behind.
        self._daemon.terminate()
        try:
            self._daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def log(self) -> str:
        """What the daemons of this image have printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start the daemon; clients wait until its socket listens."""
        assert self._daemon is None
        self._nr_starts += 1
        command = [sys.executable, "-m", "zonefs_emu", "serve", str(self.image), *self._options]
        options = {
            "scsi": ("--vhost-user-scsi", str(self.scsi_socket)),
            "blk": ("--vhost-user-blk", str(self.blk_socket)),
            "nvme": ("--nvme-tcp", "127.0.0.1:0"),
            "vfio": ("--vfio-user", str(self.vfio_socket)),
            "mount": ("--mount", str(self.mount_point)),
        }
        command += [word for name in self._front_ends for word in options[name]]
        with self._log.open("ab") as log:
            self._daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )

    def wait_until_ready(self) -> None:
        """Wait until the daemon serves and answers verbs."""
        deadline = time.monotonic() + CLI_SECONDS
        while self.log.count(READY) < self._nr_starts:
            assert self._daemon is not None
            assert self._daemon.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def nvme(self) -> tuple[str, int, str]:
        """Return the address, port and subsystem of the NVMe/TCP drive; once the daemon is ready."""
        while not (found := re.findall(r"nvme connect -t tcp -a (\S+) -s (\d+) -n (\S+)\n", self.log)):
            time.sleep(0.02)
        address, port, nqn = found[-1]
        return address, int(port), nqn

    def kill(self) -> None:
        """Kill the daemon as the out-of-memory killer would."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._daemon = None

    def stop(self) -> None:
        """End the daemon as a service manager does; it must end well."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        status = self._daemon.wait(STOP_SECONDS)
        self._daemon = None
        assert status == 0, f"exit status {status} of the daemon\n{self.log}"

    def cli(self, *words: str, data: bytes | None = None) -> bytes:
        """Run ``zonefs-emu`` with *words*; what it prints. It must succeed."""
        command = [sys.executable, "-m", "zonefs_emu", *words]
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            check=False,
            timeout=CLI_SECONDS,
            env=_environment(),
        )
        assert done.returncode == 0, f"{words}: {done.stderr.decode()}"
        return done.stdout

    def verb(self, name: str, *options: str, data: bytes | None = None) -> str:
        """Run the verb *name* on the image."""
        return self.cli(name, str(self.image), *options, data=data).decode()

    def blkzone_report(self) -> str:
        """Return the zones as blkzone of the util-linux at hand prints them."""
        return self.verb("report", "--format", "blkzone")

    def conds(self) -> list[str]:
        """Return the condition of each zone, in two letters."""
        return [zone["cond"] for zone in json.loads(self.verb("report", "--json"))["zones"]]

    def written(self, zone_no: int) -> int:
        """Return how many sectors of a zone are written."""
        written: int = json.loads(self.verb("report", "--json"))["zones"][zone_no]["written"]
        return written

    def refusals(self, count: int = 100) -> list[dict[str, object]]:
        """Return the last refusals, oldest first."""
        refusals: list[dict[str, object]] = json.loads(self.verb("why", "-n", str(count), "--json"))["refusals"]
        return refusals


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(CHECKOUT)}
