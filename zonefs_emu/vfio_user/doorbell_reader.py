"""Doorbells that a guest rings by messages, taken from the client's socket by the daemon itself.

The keeper (:mod:`keeper`) and the daemon both have the socket, and one of them reads it at a time. Nearly all messages
of a guest at work are doorbells, and a doorbell that came by way of the keeper would wake two processes. So the daemon
reads doorbells itself, and leaves everything else in the socket, for the keeper.

A daemon may be killed at any instant. So a message is first looked at, its doorbell is stored, and only then it is
taken from the socket. A keeper that finds the message still there stores the same value once more, before another
daemon serves.
"""

import socket
import struct
from typing import Final

from zonefs_emu.vfio_user.drive_memory import DOORBELLS_END, DOORBELLS_OFFSET, DriveMemory
from zonefs_emu.vfio_user.vfio_messages import MessageFlag, VfioCommand

#: Identifier; command, size, flags; error number; offset; region, count; the doorbell. The parts in bytes are constant.
_DOORBELL: Final = struct.Struct("<2s10s4xQ8sI")
_KIND: Final = struct.pack("<HII", VfioCommand.REGION_WRITE, _DOORBELL.size, MessageFlag.NO_REPLY)
_PLACE: Final = struct.pack("<II", 0, 4)
#: Doorbells that are taken at once; the queues are served in between.
DOORBELLS_AT_ONCE: Final = 64
_LOOK_BYTES: Final = DOORBELLS_AT_ONCE * _DOORBELL.size


class DoorbellReader:
    """Takes doorbells from *sock*, which belongs to it, and stores them in *memory*."""

    def __init__(self, sock: socket.socket, memory: DriveMemory) -> None:
        sock.settimeout(0)
        self._socket = sock
        self._doorbells = memory.doorbells

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def take(self) -> bool:
        """Store the doorbells that are next in the socket; False if something else is next, or the end of the client.

        What is behind them stays there: the socket is then still readable.
        """
        try:
            data = self._socket.recv(_LOOK_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        at, doorbells = 0, self._doorbells
        for _, kind, offset, place, value in _DOORBELL.iter_unpack(data[: len(data) - len(data) % _DOORBELL.size]):
            if kind != _KIND or place != _PLACE or offset & 3 or not DOORBELLS_OFFSET <= offset < DOORBELLS_END:
                break
            doorbells[(offset - DOORBELLS_OFFSET) >> 2] = value
            at += _DOORBELL.size
        if not at:
            return False
        self._socket.recv(at)
        return True

    def close(self) -> None:
        """Close this process' descriptor; the client notices nothing while the keeper has one."""
        self._socket.close()
