"""The part of io_uring that ublk needs: a ring of 128-byte submission entries, most of them commands to a device.

May not know: what the commands mean.

The bindings on the package index were rejected, because they wrap liburing, which the host would need in a suitable
version. Only two system calls and mmap are needed, whose interface is stable since Linux 5.19.

A submission entry is placed once and pushed any number of times: a queue answers each tag with the same entry, in which
only the result changes. One thread uses a ring. No barriers are needed, because the kernel reads submission entries
only inside io_uring_enter, which orders memory, and the call that delivers a completion orders the reads of it.

Source: io_uring_setup(2), io_uring_enter(2), include/uapi/linux/io_uring.h.
"""

import ctypes
import errno
import mmap
import os
import select
import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, NamedTuple, NoReturn

OP_POLL_ADD: Final = 6
OP_URING_CMD: Final = 46
POLLIN: Final = 1
SQE_BYTES: Final = 128
#: The offset of the command's area of 80 bytes in an entry.
COMMAND_OFFSET: Final = 48

_SYS_SETUP: Final = 425
_SYS_ENTER: Final = 426
_SETUP_CQSIZE: Final = 1 << 3
_SETUP_TASKRUN_FLAG: Final = 1 << 9
_SETUP_SQE128: Final = 1 << 10
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13
_SQ_TASKRUN: Final = 1 << 2
_ENTER_GETEVENTS: Final = 1
#: How often the rings are looked at between two system calls.
_LOOKS_AT_ONCE: Final = 16
_FEAT_SINGLE_MMAP: Final = 1
_OFF_SQ_RING: Final = 0
_OFF_SQES: Final = 0x10000000
_CQE_BYTES: Final = 16

#: struct io_uring_params: ten numbers, then the offsets of the two rings.
_PARAMS: Final = struct.Struct("<10I" + 2 * "8IQ")
#: sqe: opcode, flags, ioprio, fd, cmd_op, pad, addr, len, flags of the operation, user_data, buf_index, personality,
#: splice_fd; then the command's own 80 bytes.
_SQE: Final = struct.Struct("<BBHiIIQIIQHHi")


def _load_syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True)["syscall"]
    function.argtypes = (ctypes.c_long,) * 5 + (ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_long
    return function


_syscall: Final = _load_syscall()


def _raise_errno() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


class Places(NamedTuple):
    """The places of the two rings: byte offsets in *memory*, which has *nr_bytes*, and the masks of their indices.

    *entries*: the submission entries, SQE_BYTES each. *sq_array*: the numbers of those that are submitted, 4 bytes
    each. *completions*: 16 bytes each.
    """

    memory: mmap.mmap
    nr_bytes: int
    entries: mmap.mmap
    sq_tail: int
    sq_mask: int
    sq_array: int
    cq_head: int
    cq_tail: int
    cq_mask: int
    completions: int


class Ring:
    """One io_uring with *nr_entries* places for submission entries."""

    def __init__(self, nr_entries: int, *, one_thread: bool = False) -> None:
        """Set up the ring. With *one_thread*, only the calling thread may use the ring, which makes it faster.

        Raises:
            OSError: the kernel is older than 5.19 (6.1 with *one_thread*), or forbids io_uring
                (``kernel.io_uring_disabled``).
        """
        flags = _SETUP_SQE128 | _SETUP_CQSIZE
        if one_thread:
            flags |= _SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN | _SETUP_TASKRUN_FLAG
        params = ctypes.create_string_buffer(_PARAMS.size)
        _PARAMS.pack_into(params, 0, 0, 2 * nr_entries, flags, *([0] * 25))
        self._fd = _syscall(_SYS_SETUP, nr_entries, ctypes.addressof(params), 0, 0, None, 0)
        if self._fd < 0:
            _raise_errno()
        fields = _PARAMS.unpack(params.raw)
        sq_entries, cq_entries, features = fields[0], fields[1], fields[5]
        if not features & _FEAT_SINGLE_MMAP:
            os.close(self._fd)
            raise OSError(errno.ENOSYS, "the kernel's io_uring is too old")
        sq, cq = fields[10:19], fields[19:28]
        ring_bytes = max(sq[6] + 4 * sq_entries, cq[5] + _CQE_BYTES * cq_entries)
        self._ring = mmap.mmap(self._fd, ring_bytes, offset=_OFF_SQ_RING)
        #: The submission entries, SQE_BYTES each.
        self.entries = mmap.mmap(self._fd, sq_entries * SQE_BYTES, offset=_OFF_SQES)
        self._words = words = memoryview(self._ring)[: ring_bytes // 4 * 4].cast("I")
        self._results = memoryview(self._ring)[: ring_bytes // 4 * 4].cast("i")
        self._sq_tail = sq[1] // 4
        self._sq_mask = words[sq[2] // 4]
        self._array = sq[6] // 4
        self._sq_flags = sq[4] // 4
        self._cq_head, self._cq_tail = cq[0] // 4, cq[1] // 4
        self._cq_mask = words[cq[2] // 4]
        self._cqes = cq[5] // 4
        self._next = words[self._sq_tail]
        self._head = words[self._cq_head]
        #: The number of entries that were pushed and not yet submitted.
        self.pending = 0

    def place(
        self, index: int, operation: int, fd: int, user_data: int, *, command: int = 0, flags: int = 0,
        payload: bytes = b"",
    ) -> None:  # fmt: skip
        """Fill submission entry *index*; *command* and *payload* (up to 80 bytes) are those of an OP_URING_CMD.

        The kernel copies an entry when the entry is submitted.
        """
        at = index * SQE_BYTES
        _SQE.pack_into(self.entries, at, operation, 0, 0, fd, command, 0, 0, 0, flags, user_data, 0, 0, 0)
        self.entries[at + COMMAND_OFFSET : at + COMMAND_OFFSET + len(payload)] = payload

    def push(self, index: int) -> None:
        """Queue entry *index* for submission. An entry may be queued once before it is submitted."""
        words = self._words
        tail = self._next
        words[self._array + (tail & self._sq_mask)] = index
        self._next = words[self._sq_tail] = (tail + 1) & 0xFFFFFFFF
        self.pending += 1

    def enter(self, nr_wanted: int) -> None:
        """Submit the pushed entries and sleep until there are *nr_wanted* completions, or until a signal.

        Raises:
            OSError: the kernel refuses the submission.
        """
        done = _syscall(_SYS_ENTER, self._fd, self.pending, nr_wanted, _ENTER_GETEVENTS, None, 0)
        if done >= 0:
            self.pending -= done
        elif ctypes.get_errno() != errno.EINTR:
            _raise_errno()

    def has_completions(self) -> bool:
        """Return whether there is a completion."""
        return bool(self._head != self._words[self._cq_tail])

    def spin(self, duration_ns: int) -> bool:
        """Poll for up to *duration_ns* for a completion; True if :meth:`enter` would not sleep now.

        Only for rings made with *one_thread*, to which the kernel delivers completions inside :meth:`enter`.
        """
        words, flags, tail, head = self._words, self._sq_flags, self._cq_tail, self._head
        give_way = select.poll().poll
        end = monotonic_ns() + duration_ns
        while True:
            for _ in range(_LOOKS_AT_ONCE):
                if words[flags] & _SQ_TASKRUN or words[tail] != head:
                    return True
            if monotonic_ns() >= end:
                return False
            # Other threads of the daemon, such as that of a mount, get the interpreter during this system call only.
            give_way(0)

    def reap(self) -> list[tuple[int, int]]:
        """Remove all completions and return (the lower 32 bits of user_data, result) of each.

        A negative result is a negative errno.
        """
        words, results, cqes, mask = self._words, self._results, self._cqes, self._cq_mask
        head, tail = self._head, words[self._cq_tail]
        found = []
        while head != tail:
            at = cqes + 4 * (head & mask)
            found.append((words[at], results[at + 2]))
            head = (head + 1) & 0xFFFFFFFF
        self._head = words[self._cq_head] = head
        return found

    def places(self) -> Places:
        """Return where the compiled walker (tag_walker.pyx) finds both rings."""
        return Places(
            self._ring, len(self._ring), self.entries, 4 * self._sq_tail, self._sq_mask, 4 * self._array,
            4 * self._cq_head, 4 * self._cq_tail, self._cq_mask, 4 * self._cqes,
        )  # fmt: skip

    def catch_up(self, nr_pushed: int) -> None:
        """Take over the positions of both rings, which the walker has moved by pushing *nr_pushed* entries."""
        self._head = self._words[self._cq_head]
        self._next = self._words[self._sq_tail]
        self.pending += nr_pushed

    def call(self, fd: int, command: int, payload: bytes) -> int:
        """Send one command to *fd*, sleep until it has completed, also through signals, and return its result.

        Only for rings without other commands.

        Raises:
            OSError: the kernel refuses the submission. A command that fails has a negative errno as result.
        """
        self.place(0, OP_URING_CMD, fd, 0, command=command, payload=payload)
        self.push(0)
        while True:
            self.enter(1)
            for _, result in self.reap():
                return result

    def close(self) -> None:
        """Close the ring; the kernel cancels commands that have not completed."""
        if self._fd >= 0:
            self._words.release()
            self._results.release()
            self._ring.close()
            self.entries.close()
            os.close(self._fd)
            self._fd = -1
