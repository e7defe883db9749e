"""The daemon of a soak: ``zonefs-emu serve`` with every front-end, and the shape of its image."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS
from tools.soak.planting import PLANTED_VARIABLE
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.unforeseen import REPORT_VARIABLE
from zonefs_emu.model.geometry import Geometry

ZONE: Final = 4096
ZONE_BLOCKS: Final = ZONE // BLOCK_SECTORS
#: The super block lies in zone 0, zone 1 is for hostile guests and hosts, and 120 are for the loads; fewer may be open
#: than are written to. All are sequential, because NVMe knows no others.
GEOMETRY: Final = Geometry(
    size=122 * ZONE, zone_size=ZONE, zone_capacity=ZONE, block_size_bytes=BLOCK_BYTES,
    write_granularity=BLOCK_SECTORS, max_open_zones=6, max_append=ZONE,
)  # fmt: skip
#: The zone of the mount's first file.
FIRST_FILE_ZONE: Final = 1
FILES: Final = range(2, 22)
VERBS: Final = range(22, 42)
BLK: Final = range(42, 62)
SCSI: Final = range(62, 82)
NVME: Final = range(82, 102)
VFIO: Final = range(102, 122)
LOADED: Final = (*FILES, *VERBS, *BLK, *SCSI, *NVME, *VFIO)
_START_SECONDS: Final = 60
ANSWER_SECONDS: Final = 60
PROGRAM: Final = (sys.executable, "-m", "zonefs_emu")


class GoneError(Exception):
    """The daemon is not there any more."""


class LostConnectionError(Exception):
    """An answer, a connection or a ring was lost to an exception that was planted; the daemon goes on."""


class Daemon:
    """``zonefs-emu serve`` with every front-end that it has.

    *planting*: how exceptions are planted into it (:mod:`tools.soak.planting`: ``once``, or a probability), or None.
    """

    def __init__(self, directory: Path, planting: str | None = None) -> None:
        self.planting = planting
        #: A line for each exception that was planted.
        self.planted = directory / "planted"
        #: What the daemon contained, as ZONEFS_EMU_INTERNAL_ERRORS has it.
        self.contained = directory / "contained"
        self.image = directory / "soak.img"
        self.mountpoint = directory / "mnt"
        self.blk, self.scsi = directory / "blk.sock", directory / "scsi.sock"
        #: The same disks, for guests that mean harm.
        self.hostile_blk, self.hostile_scsi = directory / "hostile-blk.sock", directory / "hostile-scsi.sock"
        #: The NVMe drive of a guest.
        self.vfio = directory / "vfio.sock"
        #: Where the NVMe/TCP drive is, and the name of its subsystem; known once it is served.
        self.nvme = "127.0.0.1", 0
        self.nqn = ""
        self.log = directory / "daemon.log"
        self._output = directory / "daemon.out"
        self.mountpoint.mkdir()
        ZonedDevice.create(self.image, GEOMETRY, uuid=uuid4(), label="soak")
        subprocess.run([*PROGRAM, "mkfs", str(self.image)], check=True, stdout=subprocess.DEVNULL)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def nr_planted(self) -> int:
        """How many exceptions were planted so far."""
        return self.planted.read_bytes().count(b"\n") if self.planted.exists() else 0

    @property
    def resident_kib(self) -> int:
        """Resident memory now."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def start(self) -> None:
        """Start it and wait until it serves."""
        for path in (self.blk, self.scsi, self.hostile_blk, self.hostile_scsi, self.vfio):
            path.unlink(missing_ok=True)
        program: Sequence[str] = PROGRAM
        environment = dict(os.environ)
        if self.planting is not None:
            program = (sys.executable, "-m", "tools.soak.planting", self.planting)
            environment |= {PLANTED_VARIABLE: str(self.planted), REPORT_VARIABLE: str(self.contained)}
        with self.log.open("ab") as log, self._output.open("wb") as output:
            before = log.tell()
            self._process = subprocess.Popen(
                [
                    *program, "serve", str(self.image), "--vhost-user-blk", str(self.blk),
                    "--vhost-user-scsi", str(self.scsi), "--vhost-user-blk", str(self.hostile_blk),
                    "--vhost-user-scsi", str(self.hostile_scsi), "--mount", str(self.mountpoint),
                    "--mount-options", "errors=repair", "--nvme-tcp", f"{self.nvme[0]}:{self.nvme[1]}",
                    "--vfio-user", str(self.vfio),
                ],
                stdout=output, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while b"is served" not in self.log.read_bytes()[before:]:
            assert self.is_running, f"the daemon did not start: see {self.log}"
            assert time.monotonic() < deadline, f"the daemon does not come up: see {self.log}"
            time.sleep(0.05)
        while (
            found := re.search(r"nvme connect -t tcp -a (\S+) -s (\d+) -n (\S+)\n", self._output.read_text())
        ) is None:
            assert self.is_running, f"the daemon did not start: see {self.log}"
            time.sleep(0.05)
        self.nvme, self.nqn = (found[1], int(found[2])), found[3]

    def kill(self) -> None:
        """Kill it as the kernel does when memory is out, and clean up as the administrator does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        fusermount = shutil.which("fusermount3")
        assert fusermount is not None
        subprocess.run([fusermount, "-u", "-z", str(self.mountpoint)], check=False, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Stop it in order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(ANSWER_SECONDS)
        assert code == 0, f"the daemon ended with exit code {code}: see {self.log}"
