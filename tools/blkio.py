"""libblkio by ctypes: a vhost-user-blk front-end that is neither QEMU's nor ours.

It never accepts ZONED, so it sees the disk as one that refuses some writes. It drives reads, writes and flushes at full
speed, which benchmarks need, and has its own order of messages, which tests need.

Source: libblkio 1.5, blkio(3); the structures are those of its blkio.h.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_DRIVER: Final = b"virtio-blk-vhost-user"


class BlkioError(OSError):
    """A call of the library failed; with its own words."""


class _MemRegion(ctypes.Structure):
    _fields_ = (  # type: ignore[mutable-override]  # a class is given it once
        ("addr", ctypes.c_void_p),
        ("len", ctypes.c_size_t),
        ("iova", ctypes.c_uint64),
        ("fd_offset", ctypes.c_int64),
        ("fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
    )


class _Completion(ctypes.Structure):
    _fields_ = (  # type: ignore[mutable-override]  # a class is given it once
        ("user_data", ctypes.c_size_t),
        ("error_msg", ctypes.c_char_p),
        ("ret", ctypes.c_int),
        ("reserved", ctypes.c_uint8 * 12),
    )


class Blkio:
    """A connection to a vhost-user-blk back-end, with one queue and one buffer; a context manager that ends it.

    Every method raises BlkioError if the library reports an error of its own. Errors of a request are results.
    """

    def __init__(self, library: str, socket_path: Path, *, buffer_bytes: int, queue_size: int = 128) -> None:
        """Connect to *socket_path* and start, with *library* (a path of libblkio.so.1).

        Raises:
            BlkioError: no back-end listens, or the library refuses what it says.
        """
        self._lib = ctypes.CDLL(library)
        self._lib.blkio_get_error_msg.restype = ctypes.c_char_p
        self._lib.blkio_get_queue.restype = ctypes.c_void_p
        for function in (self._lib.blkioq_read, self._lib.blkioq_write):
            function.argtypes = (
                ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint32,
            )  # fmt: skip
            function.restype = None
        self._lib.blkioq_flush.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
        self._lib.blkioq_flush.restype = None
        self._lib.blkioq_do_io.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
        )  # fmt: skip
        self._blkio = ctypes.c_void_p()
        self._check(self._lib.blkio_create(_DRIVER, ctypes.byref(self._blkio)))
        try:
            self._check(self._lib.blkio_set_str(self._blkio, b"path", os.fsencode(socket_path)))
            self._check(self._lib.blkio_connect(self._blkio))
            self._check(self._lib.blkio_set_int(self._blkio, b"num-queues", 1))
            self._check(self._lib.blkio_set_int(self._blkio, b"queue-size", queue_size))
            self._check(self._lib.blkio_start(self._blkio))
            region = _MemRegion()
            self._check(
                self._lib.blkio_alloc_mem_region(self._blkio, ctypes.byref(region), ctypes.c_size_t(buffer_bytes))
            )
            self._check(self._lib.blkio_map_mem_region(self._blkio, ctypes.byref(region)))
        except BlkioError:
            self.close()
            raise
        self._address = int(region.addr)
        #: The buffer that requests read into and write from, by offset.
        self.buffer = memoryview((ctypes.c_char * buffer_bytes).from_address(self._address)).cast("B")
        self._queue = ctypes.c_void_p(self._lib.blkio_get_queue(self._blkio, 0))
        self._completions = (_Completion * queue_size)()
        self._submit_read = self._lib.blkioq_read
        self._submit_write = self._lib.blkioq_write
        self._do_io = self._lib.blkioq_do_io

    def __enter__(self) -> Self:
        """The connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End the connection; a second time does nothing."""
        if self._blkio.value is not None:
            self._lib.blkio_destroy(ctypes.byref(self._blkio))

    @property
    def capacity(self) -> int:
        """Size of the disk in bytes."""
        value = ctypes.c_uint64()
        self._check(self._lib.blkio_get_uint64(self._blkio, b"capacity", ctypes.byref(value)))
        return value.value

    @property
    def properties(self) -> dict[str, int]:
        """Numbers that the library has from the back-end's configuration space."""
        found = {}
        for name in ("request-alignment", "max-queues", "max-segments", "optimal-io-size"):
            value = ctypes.c_int()
            self._check(self._lib.blkio_get_int(self._blkio, name.encode(), ctypes.byref(value)))
            found[name] = value.value
        return found

    def read(self, offset: int, length: int, at: int = 0) -> int:
        """Read *length* bytes at *offset* of the disk into the buffer at *at*; 0, or a negative errno."""
        self._submit_read(self._queue, offset, self._address + at, length, at, 0)
        return self._wait_for_one()

    def write(self, offset: int, length: int, at: int = 0) -> int:
        """Write *length* bytes of the buffer at *at* to *offset* of the disk; 0, or a negative errno."""
        self._submit_write(self._queue, offset, self._address + at, length, at, 0)
        return self._wait_for_one()

    def flush(self) -> int:
        """Flush; 0, or a negative errno."""
        self._lib.blkioq_flush(self._queue, None, 0)
        return self._wait_for_one()

    def run(self, offsets: Iterable[int], length: int, *, depth: int, write: bool) -> int:
        """Read or write *length* bytes at each of *offsets*, *depth* at a time; how many of them failed.

        The slots of the buffer are *length* apart.
        """
        submit = self._submit_write if write else self._submit_read
        queue, do_io, completions = self._queue, self._do_io, self._completions
        slots = [self._address + slot * length for slot in range(depth)]
        nr_failed = 0
        for offset in offsets:
            slot = slots.pop()
            submit(queue, offset, slot, length, slot, 0)
            if slots:
                continue
            count = self._check(do_io(queue, completions, 1, depth, None))
            for completion in completions[:count]:
                slots.append(completion.user_data)
                nr_failed += completion.ret != 0
        while len(slots) < depth:
            count = self._check(do_io(queue, completions, 1, depth, None))
            for completion in completions[:count]:
                slots.append(completion.user_data)
                nr_failed += completion.ret != 0
        return nr_failed

    def load(
        self, loop: "ctypes.CDLL", offsets: "ctypes.Array[ctypes.c_uint64]", length: int, *, depth: int, write: bool
    ) -> int:
        """Do what :meth:`run` does, by the function ``run_load`` of *loop*; how many failed, or -1."""
        function = loop.run_load
        function.restype = ctypes.c_int64
        submit = self._submit_write if write else self._submit_read
        failed: int = function(
            self._queue, ctypes.cast(submit, ctypes.c_void_p), ctypes.cast(self._do_io, ctypes.c_void_p),
            offsets, ctypes.c_int64(len(offsets)), ctypes.c_void_p(self._address), ctypes.c_size_t(length), depth,
        )  # fmt: skip
        return failed

    def _wait_for_one(self) -> int:
        self._check(self._do_io(self._queue, self._completions, 1, 1, None))
        return int(self._completions[0].ret)

    def _check(self, result: int) -> int:
        if result < 0:
            text = self._lib.blkio_get_error_msg()
            raise BlkioError(-result, text.decode() if text else os.strerror(-result))
        return result
