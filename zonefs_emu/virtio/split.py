"""The split ring.

Source: virtio 1.4, "Split Virtqueues".
"""

import struct
from collections.abc import Sequence
from typing import Final

from zonefs_emu.virtio.memory import BadAddressError, GuestMemory
from zonefs_emu.virtio.ring import (
    CHAIN_BYTES_MAX,
    CHAIN_DESCRIPTORS_MAX,
    DESC_BYTES,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    BrokenRingError,
    Chain,
    Fence,
    OversizedChainError,
    Ring,
    check_bytes,
    check_descriptors,
    check_size,
    check_table,
    read_table,
)

_NO_INTERRUPT: Final = 1  # avail.flags
_NO_NOTIFY: Final = 1  # used.flags
_HEADER_BYTES: Final = 4  # flags and idx, of both the available and the used ring
_EVENT_BYTES: Final = 2

_NONE: Final[tuple[Chain, ...]] = ()
_THREE_BYTES: Final = 3 * DESC_BYTES
_TABLE_BYTES_MAX: Final = CHAIN_DESCRIPTORS_MAX * DESC_BYTES
_ONE: Final = struct.Struct("<2Q").unpack_from
_THREE: Final = struct.Struct("<6Q").unpack
_RAW_THREE: Final = struct.Struct(f"{_THREE_BYTES}s").unpack_from
#: Byte offset of the flags in a descriptor.
_FLAGS_OFFSET: Final = 12
#: Only chains whose head is below a limit count as usual. With this limit, none does.
_NONE_USUAL: Final = 0
#: The most buffers that are remembered by their descriptors. Each takes about 250 bytes.
_KNOWN_BUFFERS_MAX: Final = 4096


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
        "_known",
        "_known_tables",
        "_nr_known",
        "_ordered",
        "_table",
        "_used",
        "logged",
        "memory",
        "next_idx",
        "size",
        "used_idx",
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
        """Continue at available index *base*. *desc*, *avail* and *used* have the :func:`sizes` of *size* entries.

        Raises:
            BrokenRingError: *size* is no power of two up to 32768.
        """
        check_size(size, power_of_two=True)
        self.size = size
        self.memory = memory
        self.logged: dict[int, list[tuple[int, int]]] | None = None
        self._table = desc.cast("B")
        self._desc = desc.cast("Q")
        # Chains and buffers by the bytes of their descriptors: of three descriptors in a row, and of whole indirect
        # tables. Drivers use the same buffers again and again. A ring has the same memory all its life, so descriptors
        # that were translated once need not be translated again.
        self._known: dict[bytes, Chain] = {}
        self._known_tables: dict[bytes, tuple[list[memoryview], list[memoryview]]] = {}
        self._nr_known = 0
        self._avail = avail.cast("H")
        # The flags, idx and avail_event are 16 bits wide. The elements have 64 bits, from byte 4 on.
        self._used = used.cast("H")
        self._elements = used[_HEADER_BYTES : _HEADER_BYTES + 8 * size].cast("Q")
        self._event_idx = event_idx
        self._fence = fence
        self._ordered = ordered
        #: The next available index, and the used index that the driver sees. The compiled ring walker moves both.
        self.next_idx = base & 0xFFFF
        self.used_idx = self._used[1]
        self._called = self.used_idx

    @property
    def base(self) -> int:
        """The next available index."""
        return self.next_idx

    def has_work(self) -> bool:
        """Say whether the driver has made a chain available."""
        return self._avail[1] != self.next_idx

    @property
    def nr_available(self) -> int:
        """The chains that the driver has made available."""
        return (self._avail[1] - self.next_idx) & 0xFFFF

    def pop(self, limit: int) -> Sequence[Chain]:
        """Take up to *limit* chains; see :meth:`Ring.pop`."""
        avail = self._avail
        following = self.next_idx
        count = (avail[1] - following) & 0xFFFF
        if not count:
            return _NONE
        size = self.size
        if count > size:
            message = f"the available index is {count} ahead, more than the {size} entries of the ring"
            raise BrokenRingError(message)
        if not self._ordered:
            self._fence()
        chains: list[Chain] = []
        table, known, known_tables = self._table, self._known, self._known_tables
        start, view = self.memory.hot_start, self.memory.hot_view
        mask = size - 1
        usual = _NONE_USUAL if self.logged is not None else size - 2
        taken = count if count < limit else limit  # noqa: FURB136  (calling min costs a third of a request)
        try:
            for index in range(following, following + taken):
                head = avail[2 + (index & mask)]
                # The usual chains of disk drivers are three descriptors in a row (header, one buffer, status), or an
                # indirect table. All other chains are left to _walk. Descriptors are copied before they are checked,
                # because the guest may change them in between.
                if head < usual:
                    at = head * DESC_BYTES
                    if not table[at + _FLAGS_OFFSET] & DESC_INDIRECT:
                        (raw,) = _RAW_THREE(table, at)
                        chain = known.get(raw)
                        if chain is None:
                            chain = self._learn(head, raw)
                        chains.append(chain)
                        continue
                    address, meta = _ONE(table, at)
                    if meta >> 32 & 0xFFFF == DESC_INDIRECT:
                        offset = address - start
                        length = meta & 0xFFFFFFFF
                        if 0 <= offset <= len(view) - length and length <= _TABLE_BYTES_MAX:
                            raw = (
                                _RAW_THREE(view, offset)[0]
                                if length == _THREE_BYTES
                                else bytes(view[offset : offset + length])
                            )
                        else:
                            raw = read_table(self.memory, address, length)
                        readable, writable = known_tables.get(raw) or self._learn_table(head, raw)
                        chains.append((head, readable, writable))
                        continue
                chains.append(self._walk(head))
        except OversizedChainError:
            if not chains:
                self.next_idx = (following + 1) & 0xFFFF
                raise
            # The chains before the one that is too long are returned first, and the next call raises.
        self.next_idx = (following + len(chains)) & 0xFFFF
        return chains

    def _learn(self, head: int, raw: bytes) -> Chain:
        """Return the chain that starts at *head*; remember it if *raw*, the three descriptors there, is a usual one."""
        buffers = self._usual(raw, head)
        if buffers is None:
            return self._walk(head)
        self._make_room(buffers)
        chain = self._known[raw] = (head, *buffers)
        return chain

    def _learn_table(self, head: int, raw: bytes) -> tuple[list[memoryview], list[memoryview]]:
        """Return and remember the buffers of the indirect table *raw*, to which descriptor *head* refers."""
        buffers = self._usual(raw, 0) if len(raw) == _THREE_BYTES else None
        if buffers is None:
            descriptors = _table_chain(raw)
            buffers = translate(descriptors, self.memory)
            check_bytes((head, *buffers), descriptors)
        self._make_room(buffers)
        self._known_tables[raw] = buffers
        return buffers

    def _make_room(self, buffers: tuple[list[memoryview], list[memoryview]]) -> None:
        """Forget all chains if they would take too much memory together with *buffers*, which are remembered next."""
        count = len(buffers[0]) + len(buffers[1])
        self._nr_known += count
        if self._nr_known > _KNOWN_BUFFERS_MAX:
            self._known.clear()
            self._known_tables.clear()
            self._nr_known = count

    def _usual(self, raw: bytes, first: int) -> tuple[list[memoryview], list[memoryview]] | None:
        """Return the buffers of the three descriptors *raw*, or None if they are not a usual chain.

        They are those with the numbers *first* and following in their table, and must be chained in that order.
        """
        a0, m0, a1, m1, a2, m2 = _THREE(raw)
        if (
            m0 >> 32 != DESC_NEXT | first + 1 << 16
            or m1 >> 32 | DESC_WRITE != DESC_NEXT | DESC_WRITE | first + 2 << 16
            or m2 >> 32 & 0xFFFF != DESC_WRITE
        ):
            return None
        memory = self.memory
        start, end, view = memory.hot_start, memory.hot_end, memory.hot_view
        n0, n1, n2 = m0 & 0xFFFFFFFF, m1 & 0xFFFFFFFF, m2 & 0xFFFFFFFF
        if n0 + n1 + n2 > CHAIN_BYTES_MAX:
            return None
        flags = m1 >> 32 & DESC_WRITE
        if not (start <= a0 < a0 + n0 <= end and start <= a1 < a1 + n1 <= end and start <= a2 < a2 + n2 <= end):
            return translate(((a0, n0, 0), (a1, n1, flags), (a2, n2, DESC_WRITE)), memory)
        a0 -= start
        a1 -= start
        a2 -= start
        if flags:
            return [view[a0 : a0 + n0]], [view[a1 : a1 + n1], view[a2 : a2 + n2]]
        return [view[a0 : a0 + n0], view[a1 : a1 + n1]], [view[a2 : a2 + n2]]

    def _walk(self, head: int) -> Chain:
        """Follow the chain that starts at *head*, in any of its forms.

        Raises:
            OversizedChainError: it has too many bytes.
            BrokenRingError: it breaks the standard, or has too many descriptors.

        Source: virtio 1.4, Indirect Descriptors: "The device MUST handle the case of zero or more normal chained
        descriptors followed by a single descriptor with flags&VIRTQ_DESC_F_INDIRECT."
        """
        if head >= self.size:
            message = f"a chain begins at descriptor {head}, but the table has {self.size}"
            raise BrokenRingError(message)
        descriptors: list[tuple[int, int, int]] = []
        desc = self._desc
        at, count = head, 0
        while True:
            address, meta = desc[2 * at], desc[2 * at + 1]
            length, flags = meta & 0xFFFFFFFF, meta >> 32 & 0xFFFF
            if flags & DESC_INDIRECT:
                if flags & DESC_NEXT:
                    message = "an indirect descriptor is followed by another descriptor"
                    raise BrokenRingError(message)
                descriptors += _table_chain(read_table(self.memory, address, length))
                break
            descriptors.append((address, length, flags))
            if not flags & DESC_NEXT:
                break
            at = meta >> 48
            count += 1
            if at >= self.size or count >= self.size or len(descriptors) > CHAIN_DESCRIPTORS_MAX:
                message = (
                    f"a chain has more descriptors than the ring ({self.size}), more than {CHAIN_DESCRIPTORS_MAX}, or "
                    "one that lies outside of the ring"
                )
                raise BrokenRingError(message)
        return self._chain(head, descriptors)

    def _chain(self, head: int, descriptors: list[tuple[int, int, int]]) -> Chain:
        check_descriptors(len(descriptors))
        readable, writable = translate(descriptors, self.memory)
        if self.logged is not None:
            self.logged[head] = [(address, length) for address, length, flags in descriptors if flags & DESC_WRITE]
        chain = head, readable, writable
        check_bytes(chain, descriptors)
        return chain

    def push(self, chains: Sequence[Chain], lengths: Sequence[int]) -> None:
        """Give chains back; see :meth:`Ring.push`."""
        elements = self._elements
        mask = self.size - 1
        used_idx = self.used_idx
        index = 0  # not zip: there are few chains, and making a zip costs more than two of them
        for chain in chains:
            elements[used_idx + index & mask] = chain[0] | lengths[index] << 32
            index += 1
        used_idx += index
        if not self._ordered:
            self._fence()
        self.used_idx = used_idx = used_idx & 0xFFFF
        self._used[1] = used_idx

    def needs_call(self) -> bool:
        """Say whether the driver wants a notification; see :meth:`Ring.needs_call`.

        Source: virtio 1.4, "Used Buffer Notification Suppression".
        """
        self._fence()
        if not self._event_idx:
            called = self._called != self.used_idx
            self._called = self.used_idx
            return called and not self._avail[0] & _NO_INTERRUPT
        used_idx = self.used_idx
        event = self._avail[2 + self.size]
        needed = (used_idx - event - 1) & 0xFFFF < (used_idx - self._called) & 0xFFFF
        self._called = used_idx
        return needed

    def sleep(self) -> bool:
        """Ask for a kick; see :meth:`Ring.sleep`."""
        if self._event_idx:
            self._used[2 + 4 * self.size] = self.next_idx
        else:
            self._used[0] = 0
        self._fence()
        return self._avail[1] != self.next_idx

    def wake(self) -> None:
        """Ask for no kicks. With EVENT_IDX there is nothing to do: the available event has passed already."""
        if not self._event_idx:
            self._used[0] = _NO_NOTIFY


def _table_chain(raw: bytes) -> list[tuple[int, int, int]]:
    """Return the descriptors (guest address, bytes, flags) of the chain in the indirect table *raw*.

    Raises:
        BrokenRingError: *raw* has not the length of a table, has an indirect descriptor, or its chain leaves it.
    """
    check_table(len(raw))
    count = len(raw) // DESC_BYTES
    descriptors: list[tuple[int, int, int]] = []
    table = struct.unpack(f"<{2 * count}Q", raw)
    at = 0
    for _ in range(count):
        meta = table[2 * at + 1]
        flags = meta >> 32 & 0xFFFF
        if flags & DESC_INDIRECT:
            message = "an indirect table contains an indirect descriptor"
            raise BrokenRingError(message)
        descriptors.append((table[2 * at], meta & 0xFFFFFFFF, flags))
        if not flags & DESC_NEXT:
            return descriptors
        at = meta >> 48
        if at >= count:
            break
    message = f"the chain in an indirect table of {count} descriptors does not end in the table"
    raise BrokenRingError(message)


def translate(
    descriptors: Sequence[tuple[int, int, int]], memory: GuestMemory
) -> tuple[list[memoryview], list[memoryview]]:
    """Return the readable and the writable buffers of *descriptors* (guest address, bytes, flags).

    Raises:
        BrokenRingError: a buffer is empty or not all of it is memory, or a readable buffer follows a writable one: "The
            driver MUST place any device-writable descriptor elements after any device-readable descriptor elements."
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
                message = "a chain has a readable buffer after a writable one"
                raise BrokenRingError(message)
            else:
                readable += memory.slices(address, length)
    except BadAddressError as error:
        raise BrokenRingError(str(error)) from None
    return readable, writable
