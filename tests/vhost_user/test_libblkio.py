"""An independent front-end: libblkio, by ctypes, on our block socket."""

import ctypes
import errno
from pathlib import Path

import pytest

from tests.refused import last_refusal
from tests.vhost_user.serving import ZONE, blk_device, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.rules import DeviceRule

pytestmark = pytest.mark.qemu  # libblkio comes with the guest's kit

OFFSET = 2 * ZONE * 512


class Region(ctypes.Structure):
    """struct blkio_mem_region."""

    _fields_ = (  # type: ignore[mutable-override]  # ctypes takes any sequence
        ("addr", ctypes.c_void_p),
        ("iova", ctypes.c_uint64),
        ("len", ctypes.c_size_t),
        ("fd_offset", ctypes.c_int64),
        ("fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
    )
    addr: int


class Completion(ctypes.Structure):
    """struct blkio_completion."""

    _fields_ = (  # type: ignore[mutable-override]  # ctypes takes any sequence
        ("user_data", ctypes.c_void_p),
        ("error_msg", ctypes.c_char_p),
        ("ret", ctypes.c_int),
        ("reserved", ctypes.c_uint8 * 12),
    )
    ret: int


class Blkio:
    """A connected and started libblkio with one queue and a megabyte of memory."""

    def __init__(self, library: str, path: Path) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.blkio_get_error_msg.restype = ctypes.c_char_p
        self.lib.blkio_get_queue.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p()
        self.check(self.lib.blkio_create(b"virtio-blk-vhost-user", ctypes.byref(self.handle)))
        self.check(self.lib.blkio_set_str(self.handle, b"path", str(path).encode()))
        self.check(self.lib.blkio_connect(self.handle))
        self.check(self.lib.blkio_start(self.handle))
        self.region = Region()
        size = ctypes.c_size_t(1 << 20)
        self.check(self.lib.blkio_alloc_mem_region(self.handle, ctypes.byref(self.region), size))
        self.check(self.lib.blkio_map_mem_region(self.handle, ctypes.byref(self.region)))
        self.queue = ctypes.c_void_p(self.lib.blkio_get_queue(self.handle, 0))

    def check(self, code: int) -> None:
        if code < 0:
            raise OSError(-code, self.lib.blkio_get_error_msg().decode())

    def capacity(self) -> int:
        value = ctypes.c_uint64()
        self.check(self.lib.blkio_get_uint64(self.handle, b"capacity", ctypes.byref(value)))
        return value.value

    def _finish(self) -> int:
        done = Completion()
        self.check(self.lib.blkioq_do_io(self.queue, ctypes.byref(done), 1, 1, None))
        return done.ret

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        arguments = (ctypes.c_uint64(offset), ctypes.c_void_p(self.region.addr), ctypes.c_size_t(length), None, 0)
        self.lib.blkioq_read(self.queue, *arguments)
        return self._finish(), ctypes.string_at(self.region.addr, length)

    def write(self, offset: int, data: bytes) -> int:
        ctypes.memmove(self.region.addr, data, len(data))
        arguments = (ctypes.c_uint64(offset), ctypes.c_void_p(self.region.addr), ctypes.c_size_t(len(data)), None, 0)
        self.lib.blkioq_write(self.queue, *arguments)
        return self._finish()

    def flush(self) -> int:
        self.lib.blkioq_flush(self.queue, None, 0)
        return self._finish()

    def close(self) -> None:
        self.lib.blkio_destroy(ctypes.byref(self.handle))


def test_reads_writes_and_is_held_to_the_rules(device: ZonedDevice, tmp_path: Path) -> None:
    from tools.guest.kit import find_kit

    kit = find_kit()
    assert kit is not None
    virtio_device = blk_device(device)
    with serving(device, virtio_device, tmp_path / "socket"):
        for round_no in range(2):  # one after the other
            blkio = Blkio(str(kit.library("libblkio.so.1")), tmp_path / "socket")
            assert blkio.capacity() == 32 * ZONE * 512
            at = OFFSET + round_no * 8192
            assert blkio.write(at, b"a" * 8192) == 0
            # It does not accept ZONED, so it is told of an I/O error.
            assert blkio.write(at, b"b" * 4096) == -errno.EIO
            assert last_refusal(virtio_device.port).rule == DeviceRule.UNALIGNED_WP
            assert blkio.read(at, 12288) == (0, b"a" * 8192 + bytes(4096))
            assert blkio.flush() == 0
            blkio.close()
