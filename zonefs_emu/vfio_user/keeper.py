"""The process that keeps a client while the daemon is killed and started again.

A QEMU whose vfio-user server is gone has lost its device, and ends if I/O was under way. So the daemon gives the
connection to a process that does little and fails seldom. The keeper has the connection, the PCI function
(:mod:`pci_function`), the maps of memory and the eventfds of interrupts, and the memory that the daemon shares
(:mod:`drive_memory`, :mod:`drive_record`). It answers all messages itself. What the drive has to know, the keeper tells
it over a link (:mod:`keeper_link`) and waits until that is done, so a client notices no difference. Doorbells need no
answer, and it leaves them to the daemon (:mod:`doorbell_reader`). While no daemon is there, what the guest writes to
doorbells and registers is stored, and its commands wait.

The keeper ends with its client, or when the daemon requests it. Without a daemon it goes on, because a guest that waits
for its drive is better off than one that is ended.

It imports little, because it may run for months beside each guest.
"""

import os
import select
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.client_connection import ClientConnection
from zonefs_emu.vfio_user.doorbell_reader import DOORBELLS_AT_ONCE
from zonefs_emu.vfio_user.drive_memory import MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.keeper_link import KeeperLink, LinkKind, LinkMessage
from zonefs_emu.vfio_user.pci_config import InterruptKind
from zonefs_emu.vfio_user.pci_function import DmaRegion, PciFunction
from zonefs_emu.virtqueue.peer_memory import PeerMemory

#: Messages of the client that are handled before those of the daemon: at least those that a killed daemon left.
_MESSAGES: Final = DOORBELLS_AT_ONCE


class GivenUpError(Exception):
    """The daemon requests the end of the client's connection."""


class RemoteDrive:
    """The :class:`zonefs_emu.vfio_user.pci_function.Drive` of the keeper: it passes each call to the daemon.

    While no daemon is there, memory and interrupts are kept for the next one, and a reset clears the registers and
    doorbells.
    """

    def __init__(self, memory: DriveMemory, memory_fd: int, client_fd: int) -> None:
        self._memory = memory
        self._memory_fd = memory_fd
        self._client_fd = client_fd
        self._wakes = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._regions: dict[int, DmaRegion] = {}
        self._interrupts: Sequence[int] = ()
        self.link: KeeperLink | None = None
        #: Whether the daemon reads the client's socket.
        self.is_reader = False

    def map_memory(self, region: DmaRegion) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        # A later daemon must be able to map the memory.
        PeerMemory().map(region.fd, region.size, region.offset).close()
        self._regions[region.iova] = region
        self._ask(_map(region))

    def unmap_memory(self, region: DmaRegion) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        del self._regions[region.iova]
        self._ask(_map(region, LinkKind.UNMAP))

    def set_interrupts(self, fds: list[int]) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        self._interrupts = fds
        self._ask(_interrupts(fds))

    def reset(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        if not self._ask(LinkMessage(LinkKind.RESET)):
            self._memory.clear()

    def kick(self) -> None:
        """See :class:`zonefs_emu.vfio_user.pci_function.Drive`."""
        os.eventfd_write(self._wakes, 1)

    def attach(self, link: KeeperLink) -> None:
        """Let the daemon at the other end of *link* serve from now on. There is no other."""
        self.link = link
        with suppress(PeerError):
            link.send(LinkMessage(LinkKind.HELLO, fds=(self._memory_fd, self._wakes, self._client_fd)))
            for region in self._regions.values():
                self._ask(_map(region))
            self._ask(_interrupts(self._interrupts))
            self._ask(LinkMessage(LinkKind.START))

    def let_read(self) -> None:
        """Leave the client's socket to the daemon, if there is one, until that gives it back."""
        if self.link is None:
            return
        try:
            self.link.send(LinkMessage(LinkKind.READ))
            self.is_reader = True
        except PeerError:
            self.detach()

    def detach(self) -> None:
        """Note that no daemon is there."""
        self.is_reader = False
        if self.link is not None:
            self.link.close()
            self.link = None

    def close(self) -> None:
        """Close the link and release the memory."""
        self.detach()
        os.close(self._wakes)
        os.close(self._memory_fd)

    def listen(self) -> None:
        """Handle one message that the daemon sends by itself: END, or READ, by which it gives the client's socket back.

        Raises:
            GivenUpError: the message is END.
        """
        assert self.link is not None
        try:
            self._take(self.link)
        except PeerError:
            self.detach()

    def _ask(self, message: LinkMessage) -> bool:
        """Let the daemon carry out *message*; return False if there is no daemon, or it dies meanwhile.

        Raises:
            GivenUpError: the daemon answers with END.
        """
        if self.link is None:
            return False
        try:
            self.link.send(message)
            self._take(self.link)
        except PeerError:
            self.detach()
            return False
        return True

    def _take(self, link: KeeperLink) -> None:
        kind = link.receive().kind
        if kind is LinkKind.END:
            raise GivenUpError
        if kind is LinkKind.READ:
            self.is_reader = False


def _map(region: DmaRegion, kind: LinkKind = LinkKind.MAP) -> LinkMessage:
    fds = [region.fd] if kind is LinkKind.MAP else []
    return LinkMessage(kind, iova=region.iova, size=region.size, offset=region.offset, fds=fds)


def _interrupts(fds: Sequence[int]) -> LinkMessage:
    bits = sum(1 << vector for vector, fd in enumerate(fds) if fd >= 0)
    return LinkMessage(LinkKind.INTERRUPTS, bits, fds=[fd for fd in fds if fd >= 0])


class Keeper:
    """Keeps one client, for one daemon after the other that comes to *listener*."""

    def __init__(
        self, client: socket.socket, listener: socket.socket, memory_fd: int, interrupt_kind: InterruptKind
    ) -> None:
        """Take over the arguments; *memory_fd* is the file of the memory, which begins with that of the drive."""
        self._listener = listener
        listener.settimeout(0)
        self._connection = ClientConnection(client)
        memory = DriveMemory(mmap(memory_fd, MEMORY_BYTES))
        self._drive = RemoteDrive(memory, memory_fd, client.fileno())
        self._function = PciFunction(self._drive, memory, interrupt_kind)

    def run(self) -> None:
        """Keep the client until it ends, or the daemon ends its connection."""
        try:
            while True:
                self._wait()
                self._accept()
                if not self._drive.is_reader:
                    self._serve()
        except (PeerError, GivenUpError):
            return

    def fail(self, text: str) -> None:
        """Send the reason for the keeper's end to the daemon, if there is one."""
        if self._drive.link is not None:
            with suppress(PeerError):
                self._drive.link.send(LinkMessage(LinkKind.FAILED, text=text))

    def close(self) -> None:
        """Close the client's connection, and remove its memory from the daemon."""
        self._connection.close()
        with suppress(GivenUpError):
            self._function.close()
        self._drive.close()
        self._listener.close()

    def _wait(self) -> None:
        poller = select.poll()
        if not self._drive.is_reader:
            poller.register(self._connection, select.POLLIN)
        poller.register(self._listener, select.POLLIN)
        if self._drive.link is not None:
            poller.register(self._drive.link, select.POLLIN)
        ready = dict(poller.poll())
        if self._drive.link is not None and self._drive.link.fileno() in ready:
            self._drive.listen()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # none was there, or it went away again
        link = KeeperLink(sock)
        try:
            # Doorbells that the earlier daemon has stored, but not taken, are stored once more, the older values first.
            # The next daemon must not see these: it has served the newer ones, and would serve the whole queue again.
            self._drive.detach()
            self._serve()
        except PeerError:
            link.close()
            raise
        self._drive.attach(link)

    def _serve(self) -> None:
        for count in range(_MESSAGES):
            message = self._connection.receive()
            if message is None:
                # The rest of a message that has begun is the keeper's. One was handled, so the version is agreed upon.
                if count and self._connection.is_between_messages:
                    self._drive.let_read()
                return
            reply = self._function.handle(message)
            if reply is not None:
                self._connection.send_bytes(reply)


def main(arguments: Sequence[str]) -> None:
    """Keep a client.

    *arguments*: the numbers of the client's socket, the socket that listens for daemons, and the file of the memory;
    then the number of the kind of interrupts, and the path of the second socket.
    """
    *fds, kind, path = arguments
    for fd in fds:
        os.set_inheritable(int(fd), False)  # noqa: FBT003  (its only form)
    client, listener, memory_fd = (int(fd) for fd in fds)
    keeper = Keeper(socket.socket(fileno=client), socket.socket(fileno=listener), memory_fd, InterruptKind(int(kind)))
    place = Path(path)
    ours = _identity(place)
    try:
        keeper.run()
    except Exception:  # the boundary of the process
        keeper.fail(traceback.format_exc())
    finally:
        # Before the daemon sees the end of the link: it may then make another keeper at this place. It may have done so
        # already, if it has given the client up by itself.
        if ours is not None and _identity(place) == ours:
            place.unlink(missing_ok=True)
        keeper.close()


def _identity(place: Path) -> tuple[int, int] | None:
    """Return the identity of the file *place*, which differs from that of another file of the name; None if missing."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


if __name__ == "__main__":
    main(sys.argv[1:])
