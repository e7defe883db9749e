"""An NVMe ZNS drive at a vfio-user socket, as a front-end of a session."""

import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.front_ends.own_thread import run_or_cut, run_until_stopped
from zonefs_emu.front_ends.vhost_user import listening
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.kept_client import KeptClient
from zonefs_emu.vfio_user.pci_config import InterruptKind
from zonefs_emu.vfio_user.vfio_server import VfioServer

_SUFFIX: Final = ".vfio-"


class VfioUserFrontEnd:
    """The front-end of a session that serves its devices as namespaces of one PCI function at the socket *path*."""

    def __init__(self, path: Path, *, nqn: str = "", serial: str = "", is_msi: bool = False) -> None:
        """*nqn* and *serial* are those of the image by default.

        *is_msi*: the function has MSI instead of MSI-X, so that QEMU 11.1 can unplug it. A guest that a keeper has held
        goes on with the interrupts that it has.
        """
        self._path = path
        self._nqn = nqn
        self._serial = serial
        self._interrupt_kind = InterruptKind.MSI if is_msi else InterruptKind.MSIX

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled, beginning with the guest that a keeper has held since an earlier process ended."""
        subsystem = Subsystem([session.device, *session.others], nqn=self._nqn, serial=self._serial)
        unforeseen = session.device.unforeseen
        place = keeper_path(session.path, self._path)
        kept = await _kept_client(place, subsystem, unforeseen)
        with listening(self._path) as sock:

            def start(client: socket.socket, end_fd: int) -> KeptClient:
                return KeptClient.start(
                    client, place, subsystem, unforeseen, end_fd, interrupt_kind=self._interrupt_kind
                )

            server = VfioServer(sock, start, unforeseen, kept)
            with session.register("vfio-user", str(self._path), server.statistics):
                await run_until_stopped(server.run, server.stop, task_status.started, server.look_after)


async def _kept_client(place: Path, subsystem: Subsystem, unforeseen: UnforeseenErrors) -> KeptClient | None:
    """Return the client of the keeper of *place*; None if there is none.

    A keeper that the host has stopped does not answer. So it is asked on another thread, and the session answers its
    control socket meanwhile.
    """
    for each in places_of_keeper(place):
        link = KeptClient.link_of(each)
        if link is not None:
            client = await run_or_cut(partial(KeptClient.go_on, link, subsystem, unforeseen), link.cut)
            if client is not None:
                return client
    return None


def keeper_path(image: Path, path: Path) -> Path:
    """Return where the keeper of the guest at the socket *path* is found, beside the control socket of *image*.

    Raises:
        UsageError: there is no place for it. OSError: there is no such image.
    """
    digest = zlib.crc32(str(path.absolute()).encode())
    return rendezvous.log_path(image).with_suffix(f"{_SUFFIX}{digest:08x}")


def places_of_keeper(place: Path) -> Iterator[Path]:
    """Yield the places where the keeper of *place* can be: a daemon of another environment uses another directory."""
    yield place
    for directory in rendezvous.directories():
        if directory != place.parent:
            with suppress(OSError), rendezvous.open_directory(directory):
                yield directory / place.name
