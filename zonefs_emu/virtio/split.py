"""The split ring.

Source: virtio 1.4, "Split Virtqueues".
"""

import struct
from collections.abc import Sequence
from typing import Final

from zonefs_emu.virtio.memory import BadAddressError, GuestMemory
from zonefs_emu.virtio.ring import (
    CHAIN_DESCRIPTORS_MAX,
    DESC_BYTES,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    BrokenRingError,
    Chain,
    Fence,
    Ring,
    check_size,
)

_NO_INTERRUPT: Final = 1  # avail.flags
_NO_NOTIFY: Final = 1  # used.flags
_HEADER_BYTES: Final = 4  # flags and idx, of both the available and the used ring
_EVENT_BYTES: Final = 2

_NONE: Final[tuple[Chain, ...]] = ()
_THREE: Final = struct.Struct("<6Q").unpack_from
#: No head is below it: no chain is taken for a usual one.
_NONE_USUAL: Final = 0


def sizes(queue_size: int, *, event_idx: bool) -> tuple[int, int, int]:
    """Return the bytes of descriptor table, available ring and used ring for *queue_size* entries."""
    event = _EVENT_BYTES if event_idx else 0
    return queue_size * DESC_BYTES, _HEADER_BYTES + 2 * queue_size + event, _HEADER_BYTES + 8 * queue_size + event


class SplitRing(Ring):
    """A split ring of *size* entries."""

    __slots__ = (
        "_avail",
        "_called",
        "_desc",
        "_elements",
        "_event_idx",
        "_fence",
        "_next",
        "_ordered",
        "_table",
        "_used",
        "_used_idx",
        "logged",
        "memory",
        "size",
    )

    def __init__(
        self,
        size: int,
        desc: memoryview,
        avail: memoryview,
        used: memoryview,
        memory: GuestMemory,
        *,
        event_idx: bool,
        base: int,
        fence: Fence,
        ordered: bool,
    ) -> None:
        """Go on at available index *base*; the memory has the :func:`sizes` of *size* entries.

        Raises:
            BrokenRingError: *size* is no power of two.
        """
        check_size(size, power_of_two=True)
        self.size = size
        self.memory = memory
        self.logged: dict[int, list[tuple[int, int]]] | None = None
        self._table = desc
        self._desc = desc.cast("Q")
        self._avail = avail.cast("H")
        # flags, idx and avail_event lie at even addresses, the elements at odd multiples of four.
        self._used = used.cast("H")
        self._elements = used[_HEADER_BYTES : _HEADER_BYTES + 8 * size].cast("Q")
        self._event_idx = event_idx
        self._fence = fence
        self._ordered = ordered
        self._next = base & 0xFFFF
        self._used_idx = self._used[1]
        self._called = self._used_idx

    @property
    def base(self) -> int:
        """The next available index."""
        return self._next

    @property
    def used_idx(self) -> int:
        """The index that the driver was shown last."""
        return self._used_idx

    def has_work(self) -> bool:
        """Say whether the driver has made a chain available."""
        return self._avail[1] != self._next

    def pop(self, limit: int) -> Sequence[Chain]:
        """Take up to *limit* chains; see :meth:`Ring.pop`."""
        avail = self._avail
        following = self._next
        count = (avail[1] - following) & 0xFFFF
        if not count:
            return _NONE
        size = self.size
        if count > size:
            msg = f"the available index is {count} ahead in a ring of {size}"
            raise BrokenRingError(msg)
        if not self._ordered:
            self._fence()
        chains: list[Chain] = []
        table = self._table
        memory = self.memory
        start, end, view = memory.hot_start, memory.hot_end, memory.hot_view
        mask = size - 1
        usual = _NONE_USUAL if self.logged is not None else size - 2
        for index in range(following, following + min(count, limit)):
            head = avail[2 + (index & mask)]
            # The usual chain of a disk driver: header, one buffer, status, in descriptors that follow each other or in
            # an indirect table; all in the largest region. Whatever is unusual is left to _walk, which starts again
            # from the beginning. Each field is read once: the guest may change it while we look.
            if head < usual:
                a0, m0, a1, m1, a2, m2 = _THREE(table, head * DESC_BYTES)
                first = head
                if m0 >> 32 & 0xFFFF == DESC_INDIRECT:
                    offset = a0 - start
                    if m0 & 0xFFFFFFFF == 3 * DESC_BYTES and a0 >= start and a0 + 3 * DESC_BYTES <= end:
                        a0, m0, a1, m1, a2, m2 = _THREE(view, offset)
                        first = 0
                e0 = a0 + (m0 & 0xFFFFFFFF)
                e1 = a1 + (m1 & 0xFFFFFFFF)
                e2 = a2 + (m2 & 0xFFFFFFFF)
                if (
                    m0 >> 32 == DESC_NEXT | first + 1 << 16
                    and m1 >> 32 | DESC_WRITE == DESC_NEXT | DESC_WRITE | first + 2 << 16
                    and m2 >> 32 & 0xFFFF == DESC_WRITE
                    and start <= a0 < e0 <= end
                    and start <= a1 < e1 <= end
                    and start <= a2 < e2 <= end
                ):
                    header, data, status = (
                        view[a0 - start : e0 - start],
                        view[a1 - start : e1 - start],
                        view[a2 - start : e2 - start],
                    )
                    if m1 & (DESC_WRITE << 32):
                        chains.append((head, [header], [data, status]))
                    else:
                        chains.append((head, [header, data], [status]))
                    continue
            chains.append(self._walk(head))
        self._next = (following + len(chains)) & 0xFFFF
        return chains

    def _walk(self, head: int) -> Chain:
        """Follow the chain that starts at *head*, however it is made.

        Source: virtio 1.4, "The device MUST treat [an indirect descriptor's table] [...]"; a table refers to no other.
        """
        if head >= self.size:
            msg = f"descriptor {head} in a table of {self.size}"
            raise BrokenRingError(msg)
        descriptors: list[tuple[int, int, int]] = []
        desc = self._desc
        at, count = head, 0
        while True:
            address, meta = desc[2 * at], desc[2 * at + 1]
            length, flags = meta & 0xFFFFFFFF, meta >> 32 & 0xFFFF
            if flags & DESC_INDIRECT:
                if flags & DESC_NEXT:
                    msg = "an indirect descriptor with a next one"
                    raise BrokenRingError(msg)
                self._walk_table(address, length, descriptors)
                break
            descriptors.append((address, length, flags))
            if not flags & DESC_NEXT:
                break
            at = meta >> 48
            count += 1
            if at >= self.size or count >= self.size or len(descriptors) > CHAIN_DESCRIPTORS_MAX:
                msg = f"a chain with more descriptors than the ring of {self.size} has, or one beyond them"
                raise BrokenRingError(msg)
        return self._chain(head, descriptors)

    def _walk_table(self, address: int, length: int, descriptors: list[tuple[int, int, int]]) -> None:
        count, rest = divmod(length, DESC_BYTES)
        if rest or not 0 < count <= CHAIN_DESCRIPTORS_MAX:
            msg = f"an indirect table of {length} bytes"
            raise BrokenRingError(msg)
        try:
            table = struct.unpack(f"<{2 * count}Q", self.memory.read(address, length))
        except BadAddressError as error:
            raise BrokenRingError(str(error)) from None
        at = 0
        for _ in range(count):
            meta = table[2 * at + 1]
            flags = meta >> 32 & 0xFFFF
            if flags & DESC_INDIRECT:
                msg = "an indirect descriptor inside an indirect table"
                raise BrokenRingError(msg)
            descriptors.append((table[2 * at], meta & 0xFFFFFFFF, flags))
            if not flags & DESC_NEXT:
                return
            at = meta >> 48
            if at >= count:
                break
        msg = f"an indirect table of {count} descriptors whose chain does not end in it"
        raise BrokenRingError(msg)

    def _chain(self, head: int, descriptors: list[tuple[int, int, int]]) -> Chain:
        readable, writable = translate(descriptors, self.memory)
        if self.logged is not None:
            self.logged[head] = [(address, length) for address, length, flags in descriptors if flags & DESC_WRITE]
        return head, readable, writable

    def push(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        """Give chains back; see :meth:`Ring.push`."""
        elements = self._elements
        mask = self.size - 1
        used_idx = self._used_idx
        for chain, length in zip(chains, lengths, strict=True):
            elements[used_idx & mask] = chain[0] | length << 32
            used_idx += 1
        if not self._ordered:
            self._fence()
        self._used_idx = used_idx = used_idx & 0xFFFF
        self._used[1] = used_idx

    def needs_call(self) -> bool:
        """Say whether the driver wants to be told; see :meth:`Ring.needs_call`.

        Source: virtio 1.4, "Used Buffer Notification Suppression".
        """
        self._fence()
        if not self._event_idx:
            called = self._called != self._used_idx
            self._called = self._used_idx
            return called and not self._avail[0] & _NO_INTERRUPT
        used_idx = self._used_idx
        event = self._avail[2 + self.size]
        needed = (used_idx - event - 1) & 0xFFFF < (used_idx - self._called) & 0xFFFF
        self._called = used_idx
        return needed

    def sleep(self) -> bool:
        """Ask for a kick; see :meth:`Ring.sleep`."""
        if self._event_idx:
            self._used[2 + 4 * self.size] = self._next
        else:
            self._used[0] = 0
        self._fence()
        return self._avail[1] != self._next

    def wake(self) -> None:
        """Ask for no kicks. With EVENT_IDX the event that was asked for lies behind us already."""
        if not self._event_idx:
            self._used[0] = _NO_NOTIFY


def translate(
    descriptors: Sequence[tuple[int, int, int]], memory: GuestMemory
) -> tuple[list[memoryview], list[memoryview]]:
    """Return the readable and the writable buffers of *descriptors* (guest address, bytes, flags).

    Raises:
        BrokenRingError: not all of it is memory, a buffer is empty, or a readable one follows a writable one ("The
            driver MUST place any device-writable descriptor elements after any device-readable ones").
    """
    readable: list[memoryview] = []
    writable: list[memoryview] = []
    start, end, view = memory.hot_start, memory.hot_end, memory.hot_view
    try:
        for address, length, flags in descriptors:
            if start <= address < address + length <= end and (flags & DESC_WRITE or not writable):
                (writable if flags & DESC_WRITE else readable).append(view[address - start : address + length - start])
            elif flags & DESC_WRITE:
                writable += memory.slices(address, length)
            elif writable:
                msg = "a readable buffer after a writable one"
                raise BrokenRingError(msg)
            else:
                readable += memory.slices(address, length)
    except BadAddressError as error:
        raise BrokenRingError(str(error)) from None
    return readable, writable
