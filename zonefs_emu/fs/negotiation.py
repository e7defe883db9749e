"""Hiding features of the kernel from libfuse, which otherwise enables all of them; pyfuse3 has no option for that.

FUSE_INIT, the first request of a mount, lists the features of the kernel, and its answer those to be enabled. libfuse
reads the request from the descriptor of the mount. This module puts a socket in the place of that descriptor, from
which libfuse reads the request without some of the features. Before libfuse answers, the descriptor is that of the
mount again, so later requests cost no more.

    handshake = Handshake()
    pyfuse3.init(operations, …)
    handshake.begin(FUSE_ASYNC_DIO)
    # pyfuse3.main() calls operations.init(), which calls handshake.end()

The alternative, mounting without libfuse, would repeat its code for fusermount3.
"""

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

#: The feature by which the kernel sends the pieces of an asynchronous direct request without waiting for one another.
#: Source of all numbers here: Linux include/uapi/linux/fuse.h.
FUSE_ASYNC_DIO: Final = 1 << 15

_OPCODE_INIT: Final = 26
#: struct fuse_in_header: len, opcode.
_HEADER: Final = struct.Struct("=II")
#: The offset of fuse_init_in.flags, behind the header of 40 bytes and major, minor, max_readahead.
_FLAGS_OFFSET: Final = 40 + 12
_FLAGS: Final = struct.Struct("=I")
#: The kernel refuses to give a request to a reader whose buffer is smaller than the largest request.
_ROOM_BYTES: Final = (1 << 20) + 4096


class Handshake:
    """The first request of the mount that is made next in this process, after this object."""

    def __init__(self) -> None:
        self._before = _fuse_descriptors()
        self._fd = -1
        #: A copy of the mount's descriptor while a socket is in its place; -1 otherwise.
        self._kept = -1
        self._socket: socket.socket | None = None

    def begin(self, withheld: int) -> None:
        """Let libfuse read the first request without the features *withheld* (bits of fuse_init_in.flags)."""
        (self._fd,) = _fuse_descriptors() - self._before
        # The request is there already, because the kernel sends it before mount(2) returns.
        request = bytearray(os.read(self._fd, _ROOM_BYTES))
        _, opcode = _HEADER.unpack_from(request)
        assert opcode == _OPCODE_INIT
        (flags,) = _FLAGS.unpack_from(request, _FLAGS_OFFSET)
        _FLAGS.pack_into(request, _FLAGS_OFFSET, flags & ~withheld)
        self._socket, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with reader:
            self._socket.send(request)
            self._kept = os.dup(self._fd)
            os.dup2(reader.fileno(), self._fd, inheritable=False)

    def end(self) -> None:
        """Put the mount's descriptor back in its place; do nothing if it is there already."""
        if self._socket is not None:
            os.dup2(self._kept, self._fd, inheritable=False)
            os.close(self._kept)
            self._socket.close()
            self._socket = None


def _fuse_descriptors() -> set[int]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        # Not by stat(2), which would wait for an answer of this thread if the file is on a mount of this process.
        with suppress(FileNotFoundError):  # the listing's own descriptor
            if entry.readlink() == Path("/dev/fuse"):
                found.add(int(entry.name))
    return found
