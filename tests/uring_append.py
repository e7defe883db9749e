"""A program for the guest: zone appends, all under way at once, by io_uring passthrough (/dev/ng0n1).

    python uring_append.py NODE NSID ZSLBA COUNT BLOCK_BYTES

Append number N writes one block that is filled with the byte N + 1. It prints a line for each append, in the order of
the completions: N, the NVMe status, and where the drive has put the block. fio has no zone append, and nvme-cli has one
at a time, by ioctl.

Source: Linux, include/uapi/linux/nvme_ioctl.h (struct nvme_uring_cmd) and io_uring.h.
"""

import ctypes
import mmap
import os
import struct
import sys

SETUP, ENTER = 425, 426
SQE128, CQE32 = 1 << 10, 1 << 11
ENTRY_BYTES, COMPLETION_BYTES = 128, 32
URING_CMD = 46
#: _IOWR('N', 0x80, struct nvme_uring_cmd), whose 72 bytes follow the first 48 of an entry.
COMMAND = 0xC0484E80
ZONE_APPEND = 0x7D


def main(node: str, nsid: int, zslba: int, count: int, block_bytes: int) -> None:
    """Append *count* blocks to the zone at *zslba*."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    params = ctypes.create_string_buffer(120)
    struct.pack_into("<II", params, 4, 0, SQE128 | CQE32)
    ring = syscall(SETUP, count, params, 0, 0, None, 0)
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    nr_entries, nr_completions = struct.unpack_from("<II", params)
    # struct io_sqring_offsets: head, tail, ring_mask, ring_entries, flags, dropped, array; io_cqring_offsets alike.
    sq, cq = struct.unpack_from("<7I", params, 40), struct.unpack_from("<6I", params, 80)
    rings = mmap.mmap(ring, max(sq[6] + 4 * nr_entries, cq[5] + COMPLETION_BYTES * nr_completions))
    entries = mmap.mmap(ring, nr_entries * ENTRY_BYTES, offset=0x10000000)
    blocks = mmap.mmap(-1, count * block_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
    fd = os.open(node, os.O_RDWR)
    for number in range(count):
        blocks[number * block_bytes : (number + 1) * block_bytes] = bytes([number + 1]) * block_bytes
        at = number * ENTRY_BYTES
        struct.pack_into("<BBHiIIQIIQ", entries, at, URING_CMD, 0, 0, fd, COMMAND, 0, 0, 0, 0, number)
        cdws = (zslba & 0xFFFFFFFF, zslba >> 32, 0, 0, 0, 0)
        data = (0, address + number * block_bytes, 0, block_bytes)
        struct.pack_into("<BBHIIIQQII6III", entries, at + 48, ZONE_APPEND, 0, 0, nsid, 0, 0, *data, *cdws, 0, 0)
        struct.pack_into("<I", rings, sq[6] + 4 * number, number)
    struct.pack_into("<I", rings, sq[1], count)
    if syscall(ENTER, ring, count, count, 1, None, 0) != count:
        raise OSError(ctypes.get_errno(), "io_uring_enter")
    for number in range(count):
        which, result, _, where = struct.unpack_from("<QiIQ", rings, cq[5] + COMPLETION_BYTES * number)
        sys.stdout.write(f"{which} {result} {where}\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
