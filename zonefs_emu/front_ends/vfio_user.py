"""An NVMe ZNS drive at a vfio-user socket, as a front-end of a session."""

from pathlib import Path

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.front_ends.own_thread import run_until_stopped
from zonefs_emu.front_ends.vhost_user import listening
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.vfio_server import VfioServer


class VfioUserFrontEnd:
    """The front-end of a session that offers its devices as a PCI function at the socket *path*, a namespace each."""

    def __init__(self, path: Path, *, nqn: str = "", serial: str = "") -> None:
        """*nqn* and *serial* are those of the image by default."""
        self._path = path
        self._nqn = nqn
        self._serial = serial

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        subsystem = Subsystem([session.device, *session.others], nqn=self._nqn, serial=self._serial)
        with listening(self._path) as sock:
            server = VfioServer(subsystem, sock, session.device.unforeseen)
            with session.register("vfio-user", str(self._path), server.statistics):
                await run_until_stopped(server.run, server.stop, task_status.started)
