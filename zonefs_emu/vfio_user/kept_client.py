"""A client that a keeper has (:mod:`keeper`), in the daemon: its drive, and the link to the keeper.

The daemon starts a keeper for each client that connects, and finds the keeper that an earlier daemon has left.
"""

import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Container
from contextlib import ExitStack, suppress
from mmap import mmap
from pathlib import Path
from typing import Final, Self

from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.errors import PeerError
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.doorbell_reader import DoorbellReader
from zonefs_emu.vfio_user.drive_memory import MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord
from zonefs_emu.vfio_user.keeper_link import KeeperLink, LinkKind, LinkMessage, connect_to_keeper, listen_for_daemons
from zonefs_emu.vfio_user.pci_config import NR_VECTORS, InterruptKind
from zonefs_emu.vfio_user.pci_drive import PciDrive
from zonefs_emu.vfio_user.pci_function import DmaRegion
from zonefs_emu.virtqueue.peer_memory import LOST

log = logging.getLogger(__name__)

#: A keeper is a new interpreter, which may take long to start on a busy host.
_START_S: Final = 60.0
#: How long a keeper may take to end before it is killed: much less than a daemon has for its own end. Nothing is lost
#: with a keeper whose client's connection ends.
_END_S: Final = 1.0
#: The place of this package. The keeper must not import another one from its working directory.
_ROOT: Final = Path(__file__).resolve().parents[2]


def _start_keeper(client: socket.socket, path: Path, interrupt_kind: InterruptKind) -> "subprocess.Popen[bytes]":
    """Start a keeper that has a copy of *client* and listens at *path*.

    Raises:
        OSError: the host starts no process.
    """
    with listen_for_daemons(path) as listener:
        memory_fd = os.memfd_create("nvme-drive", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory_fd, MEMORY_BYTES + RECORD_BYTES)
            fds = (client.fileno(), listener.fileno(), memory_fd)
            arguments = [*map(str, fds), str(interrupt_kind.value), str(path.absolute())]
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "zonefs_emu.vfio_user.keeper", *arguments],
                pass_fds=fds, start_new_session=True, cwd="/", stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
            )  # fmt: skip
        finally:
            os.close(memory_fd)


class KeptClient:
    """One client: its drive. The keeper at the other end of *link* has its PCI function."""

    def __init__(
        self, link: KeeperLink, process: "subprocess.Popen[bytes] | None", subsystem: Subsystem,
        unforeseen: UnforeseenErrors,
    ) -> None:  # fmt: skip
        """Take over *link*, and *process* if this process has started the keeper.

        Raises:
            PeerError: the keeper is gone or silent for too long, its guest has truncated its memory, or this process
                ends (:attr:`KeeperLink.end_fd`).
            UsageError: its guest has another drive.
            RuntimeError: the keeper has met a bug, or the subsystem has no number left for a controller.
        """
        self._link = link
        self._process = process
        self._interrupts = [-1] * NR_VECTORS
        self._is_started = False
        #: Looks at the client's socket as well while this process reads it.
        self._poller: select.epoll | None = None
        with ExitStack() as undo:
            undo.callback(link.close)
            hello = link.receive()
            assert hello.kind is LinkKind.HELLO, hello.kind.name
            memory_fd, self._wakes, *clients = hello.fds
            undo.callback(os.close, self._wakes)
            sockets = [undo.enter_context(socket.socket(fileno=fd)) for fd in clients]
            try:
                shared = memoryview(mmap(memory_fd, MEMORY_BYTES + RECORD_BYTES))
            finally:
                os.close(memory_fd)
            record = DriveRecord(shared[MEMORY_BYTES:])
            memory = DriveMemory(shared[:MEMORY_BYTES])
            self.drive = PciDrive(subsystem, memory, record, unforeseen)
            undo.callback(self.drive.close)
            (client,) = sockets  # the keeper of another version, which may send none, has the record of that version
            self._doorbells = DoorbellReader(client, memory)
            try:
                while not self._is_started:
                    self._handle(link.receive())
            except PeerError:
                # The guest has broken its memory. The keeper is ended, because nothing finds it once there is another
                # one.
                with suppress(PeerError):
                    link.send(LinkMessage(LinkKind.END))
                raise
            undo.pop_all()

    @classmethod
    def start(
        cls, client: socket.socket, path: Path, subsystem: Subsystem, unforeseen: UnforeseenErrors, end_fd: int = -1,
        *, interrupt_kind: InterruptKind = InterruptKind.MSIX,
    ) -> Self:  # fmt: skip
        """Pass *client*, which has just connected, to a new keeper that daemons find at *path*.

        Blocks until the keeper runs, which takes as long as the host lets it wait, up to _START_S; or until *end_fd* is
        readable, if there is one.

        Raises:
            OSError: the host starts no process. PeerError: the keeper does not listen, or is gone at once.
            RuntimeError: as of the constructor.
        """
        with client:
            process = _start_keeper(client, path, interrupt_kind)
            try:
                link = connect_to_keeper(path, _START_S)
                if link is None:
                    raise PeerError("the keeper does not listen")
                link.end_fd = end_fd
                return cls(link, process, subsystem, unforeseen)
            except BaseException:
                process.kill()
                process.wait()
                # Also where the constructor has lost a copy of the descriptor: the guest would wait for an answer.
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                raise

    @classmethod
    def find(cls, path: Path, subsystem: Subsystem, unforeseen: UnforeseenErrors) -> Self | None:
        """Return the client of the keeper at *path*, which an earlier daemon has left; None if there is none.

        Raises:
            UsageError: its guest has another drive. OSError: the host refuses. RuntimeError: as of the constructor.
        """
        link = cls.link_of(path)
        return cls.go_on(link, subsystem, unforeseen) if link is not None else None

    @staticmethod
    def link_of(path: Path) -> KeeperLink | None:
        """Return a link to the keeper at *path* that an earlier daemon has left, without waiting for its messages.

        None: there is no keeper.

        Raises:
            OSError: the host refuses.
        """
        return connect_to_keeper(path, _START_S)

    @classmethod
    def go_on(cls, link: KeeperLink, subsystem: Subsystem, unforeseen: UnforeseenErrors) -> Self | None:
        """Go on with the client of the keeper at the other end of *link*; None if the client is given up.

        Blocks until the keeper has sent everything up to START, which takes as long as the host lets it wait, up to
        _START_S for each message.

        Raises:
            UsageError: its guest has another drive. RuntimeError: as of the constructor.
        """
        try:
            return cls(link, None, subsystem, unforeseen)
        except PeerError as error:
            log.info("the client that the keeper kept is abandoned: %s", error)
            return None

    def watch(self, poller: select.epoll) -> None:
        """See :class:`zonefs_emu.vfio_user.vfio_server.ServedClient`."""
        self._poller = poller
        for fd in (self._wakes, self._link.fileno(), *self.drive.wake_fds):
            poller.register(fd, select.EPOLLIN)

    def step(self, ready: Container[int]) -> bool:
        """Take doorbells, do what the keeper says, and serve queues; True if something is left to do.

        Raises:
            PeerError: the client is gone, or breaks the protocol.
        """
        if self._doorbells.fileno() in ready and not self._doorbells.take():
            self._read(is_reader=False)
            self._link.send(LinkMessage(LinkKind.READ))
        if self._wakes in ready:
            os.eventfd_read(self._wakes)
        if self._link.fileno() in ready:
            self._handle(self._link.receive())
        is_busy = self.drive.serve(ready)
        if self.drive.has_lost_memory:
            raise PeerError(LOST)
        return is_busy

    def _read(self, *, is_reader: bool) -> None:
        """Read the client's socket from now on, or no longer."""
        assert self._poller is not None
        if is_reader:
            self._poller.register(self._doorbells, select.EPOLLIN)
        else:
            self._poller.unregister(self._doorbells)

    def _handle(self, message: LinkMessage) -> None:
        if message.kind is LinkKind.READ:
            self._read(is_reader=True)
            return
        try:
            match message.kind:
                case LinkKind.MAP:
                    self.drive.map_memory(DmaRegion(message.iova, message.size, message.fds[0], message.offset))
                case LinkKind.UNMAP:
                    self.drive.unmap_memory(DmaRegion(message.iova, message.size, -1, message.offset))
                case LinkKind.INTERRUPTS:
                    self._set_interrupts(message)
                case LinkKind.RESET:
                    self.drive.reset()
                case LinkKind.START:
                    self.drive.start()
                    self._is_started = True
                case LinkKind.FAILED:
                    raise RuntimeError(f"the keeper has met a bug: {message.text}")
                case _:
                    raise AssertionError(message.kind)
        finally:
            if message.kind is LinkKind.MAP:
                os.close(message.fds[0])  # a mapping needs none
        self._link.send(LinkMessage(LinkKind.DONE))

    def _set_interrupts(self, message: LinkMessage) -> None:
        given = iter(message.fds)
        fds = [next(given) if message.number >> vector & 1 else -1 for vector in range(NR_VECTORS)]
        self.drive.set_interrupts(fds)
        self._interrupts, old = fds, self._interrupts
        for fd in old:
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """Let the keeper end the client's connection, if it is still there, and end the drive."""
        with ExitStack() as ending:  # each step is done, whatever the others raise
            ending.callback(self._wait_for_keeper)
            for fd in (self._wakes, *self._interrupts):
                if fd >= 0:
                    ending.callback(os.close, fd)
            ending.callback(self._doorbells.close)
            ending.callback(self._link.close)
            ending.callback(self.drive.close)
            with suppress(PeerError):
                self._link.send(LinkMessage(LinkKind.END))

    def _wait_for_keeper(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
