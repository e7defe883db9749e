"""The link between a keeper and the present daemon of its client: messages with descriptors.

The keeper passes each request of the client that concerns the drive to the daemon and waits for DONE. So the client
gets no answer before the daemon has handled the request. A daemon that takes over gets HELLO, each map of memory, the
interrupts, and START.

::

    keeper → daemon   HELLO      the memory that outlives the daemon, an eventfd: look at registers and doorbells, and
                                 the client's socket
                      MAP        a map of the client's memory, with its descriptor
                      UNMAP      it is gone
                      INTERRUPTS number: which vectors have an eventfd, as bits; the eventfds in this order
                      RESET      the drive is to be reset
                      START      all is said
                      READ       the daemon reads the client's socket from now on (:mod:`doorbell_reader`); no DONE
                      FAILED     the keeper has met a bug, and ends; number bytes of text follow
    daemon → keeper   DONE       the request was carried out
                      READ       the keeper reads the client's socket from now on: no doorbell is next there
                      END        the client is to be given up: the daemon ends in order, or the guest is broken
"""

import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from zonefs_emu.descriptor_socket import DescriptorSocket
from zonefs_emu.errors import PeerError

_MESSAGE: Final = struct.Struct("<IIQQQ")
_FDS_MAX: Final = 32
_TEXT_BYTES_MAX: Final = 4096
#: The mode of the socket. Source: XDG Base Directory Specification, "XDG_RUNTIME_DIR", for the sticky bit.
_MODE: Final = stat.S_ISVTX | 0o600


class LinkKind(IntEnum):
    """The kind of a message."""

    HELLO = 1
    MAP = 2
    UNMAP = 3
    INTERRUPTS = 4
    RESET = 5
    START = 6
    DONE = 7
    END = 8
    FAILED = 9
    READ = 10


class LinkMessage(NamedTuple):
    """A message. The receiver owns *fds* and closes them."""

    kind: LinkKind
    number: int = 0
    iova: int = 0
    size: int = 0
    offset: int = 0
    fds: Sequence[int] = ()
    text: str = ""


class KeeperLink(DescriptorSocket):
    """One end of a link."""

    def __init__(self, sock: socket.socket, timeout_s: float | None = None) -> None:
        """Take over *sock*, which is connected. *timeout_s*: how long the other end may be silent; None: for ever."""
        super().__init__(sock, peer="other end of the link", fds_max=_FDS_MAX)
        #: A descriptor that ends the waiting of :meth:`receive` when it is readable; -1: none.
        self.end_fd = -1
        self._timeout_ms = None if timeout_s is None else int(timeout_s * 1000)

    def send(self, message: LinkMessage) -> None:
        """Send *message*; of FAILED, the text only.

        Raises:
            PeerError: the other end is gone.
        """
        text = message.text.encode(errors="replace")[-_TEXT_BYTES_MAX:]
        number = len(text) if message.kind is LinkKind.FAILED else message.number
        head = _MESSAGE.pack(message.kind, number, message.iova, message.size, message.offset)
        self.send_bytes(head + text, tuple(message.fds))

    def receive(self) -> LinkMessage:
        """Wait for the next message and return it.

        Raises:
            PeerError: the other end is gone, or silent for too long, or this process ends (:attr:`end_fd`).
        """
        head, fds = self._take(_MESSAGE.size)
        kind, number, iova, size, offset = _MESSAGE.unpack(head)
        text = b""
        if kind == LinkKind.FAILED:
            text, _ = self._take(min(number, _TEXT_BYTES_MAX))
        return LinkMessage(LinkKind(kind), number, iova, size, offset, fds, text.decode(errors="replace"))

    def _take(self, nr_bytes: int) -> tuple[bytes, list[int]]:
        while not self.fill(nr_bytes):
            ready = self._wait()
            if self.end_fd in ready:
                message = "this process ends"
                raise PeerError(message)
            if not ready:
                message = "the other end of the keeper's link does not answer"
                raise PeerError(message)
        return self.take()

    def cut(self) -> None:
        """Make :meth:`receive` of another thread fail at once, and all that follows."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _wait(self) -> list[int]:
        """Wait until the link or :attr:`end_fd` is readable; return which is, none after too long."""
        poller = select.poll()
        for fd in (self.fileno(), self.end_fd):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        return [fd for fd, _ in poller.poll(self._timeout_ms)]


def listen_for_daemons(path: Path) -> socket.socket:
    """Return a listening socket at *path* for daemons; it replaces that of a process that is gone.

    Raises:
        OSError: the host refuses.
    """
    directory = _open_directory(path)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
            # A guest may run for months, and systemd-tmpfiles removes old files, except those with the sticky bit.
            os.chmod(path.name, _MODE, dir_fd=directory)
            sock.listen()
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(directory)


def connect_to_keeper(path: Path, timeout_s: float) -> KeeperLink | None:
    """Return a link to the keeper at *path*; None if there is none.

    Raises:
        OSError: the host refuses.
    """
    try:
        directory = _open_directory(path)
    except FileNotFoundError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout_s)
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError as error:
        sock.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return None
        raise
    finally:
        os.close(directory)
    return KeeperLink(sock, timeout_s)


def _open_directory(path: Path) -> int:
    # A socket's address has at most 107 bytes, and a path may be longer, so it is named through its directory.
    return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
