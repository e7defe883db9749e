"""Split rings by hand: each kind of damage has its sentence, and what is remembered of descriptors stays true."""

import ctypes
import struct
from collections.abc import Sequence

import pytest

from tests.virtio.rings import Pair
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.virtio import split
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, BrokenRingError, Chain
from zonefs_emu.virtio.split import SplitRing, sizes

A = GUEST_BASE + 0x8000


def descriptor(pair: Pair, index: int, fields: tuple[int, int, int, int]) -> None:
    struct.pack_into("<QIHH", pair.bytes, pair.areas[0].offset + 16 * index, *fields)


def pop(pair: Pair, head: int = 0) -> Sequence[Chain]:
    assert hasattr(pair.driver, "publish")
    pair.driver.publish(head)
    return pair.ring.pop(1)


def test_areas_of_a_ring() -> None:
    assert sizes(256, event_idx=True) == (4096, 518, 2054)
    assert sizes(256, event_idx=False) == (4096, 516, 2052)


@pytest.mark.parametrize(
    ("descriptors", "head", "sentence"),
    [
        ([], 8, "begins at descriptor 8, but the table has 8"),
        ([], 65535, "descriptor 65535"),
        ([(A, 0, 0, 0)], 0, "a buffer has 0 bytes"),
        ([(1, 5, 0, 0)], 0, "is not in the guest's memory"),
        ([(A, 1 << 31, 0, 0)], 0, "is not in the guest's memory"),
        (([((1 << 64) - 4, 16, 0, 0)]), 0, "is not in the guest's memory"),
        ([(A, 1, DESC_NEXT, 0)], 0, "more descriptors than the ring"),
        ([(A, 1, DESC_NEXT, 8)], 0, "more descriptors than the ring"),
        ([(A, 1, DESC_NEXT | DESC_WRITE, 1), (A, 1, 0, 0)], 0, "a readable buffer after a writable one"),
        ([(A, 16, DESC_INDIRECT | DESC_NEXT, 1), (A, 1, 0, 0)], 0, "indirect descriptor is followed by another"),
        ([(A, 17, DESC_INDIRECT, 0)], 0, "an indirect table of 17 bytes"),
        ([(A, 0, DESC_INDIRECT, 0)], 0, "an indirect table of 0 bytes"),
        ([(A, 16 * 1025, DESC_INDIRECT, 0)], 0, "an indirect table of 16400 bytes"),
        ([(1, 16, DESC_INDIRECT, 0)], 0, "is not in the guest's memory"),
    ],
)
def test_a_broken_chain(descriptors: list[tuple[int, int, int, int]], head: int, sentence: str) -> None:
    pair = Pair(is_packed=False)
    for index, fields in enumerate(descriptors):
        descriptor(pair, index, fields)
    with pytest.raises(BrokenRingError, match=sentence):
        pop(pair, head)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([(A, 1, DESC_INDIRECT, 0), (A, 1, 0, 0)], "an indirect table contains an indirect descriptor"),
        ([(A, 1, DESC_NEXT, 0), (A, 1, 0, 0)], "does not end in the table"),
        ([(A, 1, DESC_NEXT, 2), (A, 1, 0, 0)], "does not end in the table"),
    ],
)
def test_a_broken_table(entries: list[tuple[int, int, int, int]], sentence: str) -> None:
    pair = Pair(is_packed=False)
    for index, fields in enumerate(entries):
        struct.pack_into("<QIHH", pair.bytes, 0x9000 + 16 * index, *fields)
    descriptor(pair, 0, (GUEST_BASE + 0x9000, 16 * len(entries), DESC_INDIRECT, 0))
    with pytest.raises(BrokenRingError, match=sentence):
        pop(pair)


def test_an_available_index_that_jumps() -> None:
    pair = Pair(is_packed=False)
    struct.pack_into("<H", pair.bytes, pair.areas[1].offset + 2, 9)
    with pytest.raises(BrokenRingError, match="9 ahead, more than the 8 entries of the ring"):
        pair.ring.pop(1)


def test_a_table_may_be_longer_than_its_chain_and_out_of_order() -> None:
    pair = Pair(is_packed=False)
    for index, fields in enumerate([(A, 1, DESC_NEXT, 2), (A + 1, 9, 0, 0), (A + 2, 3, DESC_WRITE, 0)]):
        struct.pack_into("<QIHH", pair.bytes, 0x9000 + 16 * index, *fields)
    descriptor(pair, 0, (GUEST_BASE + 0x9000, 48, DESC_INDIRECT, 0))
    pair.driver.publish(0)  # type: ignore[union-attr]  # a split driver
    ((_, readable, writable),) = pair.ring.pop(1)
    assert ([len(part) for part in readable], [len(part) for part in writable]) == ([1], [3])


def chain_of(pair: Pair, head: int = 0) -> list[tuple[int, int]]:
    """Pop the chain at *head*: (offset into the memory, bytes) of its buffers, readable ones first."""
    pair.driver.publish(head)  # type: ignore[union-attr]  # a split driver
    ((token, readable, writable),) = pair.ring.pop(1)
    assert token == head
    whole = ctypes.addressof(ctypes.c_char.from_buffer(pair.bytes))
    buffers = [(ctypes.addressof(ctypes.c_char.from_buffer(part)) - whole, len(part)) for part in readable + writable]
    pair.ring.push([(head, [], [])], [0])
    return buffers


def three(pair: Pair, data: int, *, head: int = 0, table: bool = False) -> None:
    """Describe header, *data* bytes that are written and status as drivers of disks do."""
    at = 0x9000 if table else pair.areas[0].offset + 16 * head
    first = 0 if table else head
    for index, fields in enumerate(
        [(A, 16, DESC_NEXT, first + 1), (A + 16, data, DESC_NEXT | DESC_WRITE, first + 2), (A + 64, 1, DESC_WRITE, 0)]
    ):
        struct.pack_into("<QIHH", pair.bytes, at + 16 * index, *fields)
    if table:
        descriptor(pair, head, (GUEST_BASE + 0x9000, 48, DESC_INDIRECT, 0))


@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("known_max", [4096, 6, 3])
def test_what_descriptors_mean_is_remembered_by_what_they_say(
    table: bool, known_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is remembered: what is given back is always what the descriptors say now."""
    monkeypatch.setattr(split, "_KNOWN_BUFFERS_MAX", known_max)
    pair = Pair(is_packed=False)
    for data in (8, 8, 9, 8, 10, 11, 8, 8):
        for head in (0, 4):
            three(pair, data, head=head, table=table)
            assert chain_of(pair, head) == [(0x8000, 16), (0x8010, data), (0x8040, 1)]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "_KNOWN_BUFFERS_MAX", 30)
    pair = Pair(is_packed=False)
    for data in range(1, 40):
        three(pair, data, table=bool(data & 1))
        chain_of(pair)
    ring = pair.ring
    assert isinstance(ring, SplitRing)
    assert 0 < 3 * (len(ring._known) + len(ring._known_tables)) <= 30


@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
def test_buffers_in_several_regions(table: bool) -> None:
    """Header and status lie in one region, the data in another, the table in the smaller one."""
    pair = Pair(is_packed=False)
    small = GuestMemory(
        [
            Region(GUEST_BASE, 0xA000, 0, pair.bytes[:0xA000]),
            Region(GUEST_BASE + (1 << 32), len(pair.bytes) - 0xA000, 1 << 40, pair.bytes[0xA000:]),
        ]
    )
    pair.ring = SplitRing(8, *pair.views(), small, event_idx=True, base=0, fence=pair.fence, ordered=True)
    three(pair, 8, table=table)
    at = 0x9010 if table else pair.areas[0].offset + 16
    struct.pack_into("<Q", pair.bytes, at, GUEST_BASE + (1 << 32) + 0x100)
    for _ in range(2):
        assert chain_of(pair) == [(0x8000, 16), (0xA100, 8), (0x8040, 1)]


@pytest.mark.parametrize(("second", "third"), [(5, 2), (1, 5), (5, 6), (2, 1)])
@pytest.mark.parametrize("decoy", [DESC_WRITE, DESC_NEXT | DESC_WRITE], ids=["ends", "goes on"])
@pytest.mark.parametrize("with_table", [False, True], ids=["direct", "table"])
def test_chains_that_are_not_three_in_a_row(second: int, third: int, decoy: int, with_table: bool) -> None:
    """Header, data, status; the descriptors behind the first are those that it names, not those that follow it."""
    pair = Pair(is_packed=False)
    place = pair.heap.take(1024).offset
    table = pair.heap.take(16 * 8).offset

    def write(index: int, fields: tuple[int, int, int, int]) -> None:
        if with_table:
            pair.bytes[table + 16 * index : table + 16 * index + 16] = struct.pack("<QIHH", *fields)
        else:
            descriptor(pair, index, fields)

    for index in range(8):  # what stands beside them is buffers of 7 bytes, as of chains of before
        write(index, (GUEST_BASE + place, 7, decoy, (index + 1) % 8))
    write(0, (GUEST_BASE + place, 16, DESC_NEXT, second))
    write(second, (GUEST_BASE + place + 16, 512, DESC_NEXT | DESC_WRITE, third))
    write(third, (GUEST_BASE + place + 528, 1, DESC_WRITE, 0))
    if with_table:
        descriptor(pair, 4, (GUEST_BASE + table, 16 * 8, DESC_INDIRECT, 0))
    for _ in range(2):  # the second time from what is remembered
        (chain,) = pop(pair, 4 if with_table else 0)
        assert [[len(part) for part in parts] for parts in chain[1:]] == [[16], [512, 1]]


@pytest.mark.parametrize("with_table", [False, True], ids=["direct", "table"])
def test_a_table_behind_a_chain_counts_with_it(with_table: bool) -> None:
    pair = Pair(is_packed=False, size=64)
    place = pair.heap.take(64).offset
    count = 1024 if with_table else 1023
    table = pair.heap.take(16 * count).offset
    for index in range(count):
        flags = DESC_NEXT if index < count - 1 else 0
        pair.bytes[table + 16 * index : table + 16 * index + 16] = struct.pack(
            "<QIHH", GUEST_BASE + place, 8, flags, index + 1
        )
    descriptor(pair, 0, (GUEST_BASE + place, 8, DESC_NEXT, 1))
    descriptor(pair, 1, (GUEST_BASE + table, 16 * count, DESC_INDIRECT, 0))
    if with_table:
        with pytest.raises(BrokenRingError, match="more than 1024 descriptors"):
            pop(pair)
    else:
        ((_, readable, _),) = pop(pair)
        assert len(readable) == 1024
