"""Queues in guest memory: wrap around, phase, and memory in pieces."""

import struct

import pytest

from zonefs_emu.vfio_user.drive_queues import CompletionQueue, ShadowDoorbells, SubmissionQueue, queue_view
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory, Region

DATA = bytearray(0x4000)
MEMORY = GuestMemory(
    [Region(0, 0x1000, 0, memoryview(DATA)[:0x1000]), Region(0x1000, 0x3000, 0, memoryview(DATA)[0x1000:])]
)
TAILS = memoryview(bytearray(8 * 8)).cast("Q")


def test_completions_go_round_and_turn_their_phase() -> None:
    queue = CompletionQueue(3, 0x2000, 4, 1, TAILS)
    queue.place(MEMORY)
    phases = []
    for number in range(10):
        at = 0x2000 + 16 * queue.tail
        queue.post(number, number + 1, 5, 100 + number, 0x4002)
        result, sq_head, sq_number, cid, status = struct.unpack_from("<QHHHH", DATA, at)
        assert (result, sq_head, sq_number, cid, status >> 1) == (number, number + 1, 5, 100 + number, 0x4002)
        phases.append(status & 1)
    assert phases == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]


def test_a_full_queue_has_one_entry_free() -> None:
    queue = CompletionQueue(3, 0x2000, 4, 1, TAILS)
    queue.place(MEMORY)
    full = []
    for _ in range(3):
        full.append(queue.is_full)
        queue.post(0, 0, 0, 0, 0)
    full.append(queue.is_full)
    queue.head = 1
    full.append(queue.is_full)
    queue.post(0, 0, 0, 0, 0)
    full.append(queue.is_full)
    assert full == [False, False, False, True, False, True]


def test_heads_go_round() -> None:
    queue = SubmissionQueue(1, 0x1000, 3, CompletionQueue(1, 0x2000, 3, 1, TAILS), None)
    queue.place(MEMORY)
    assert len(queue.entries) == 3 * 64
    assert [queue.advance() for _ in range(4)] == [1, 2, 0, 1]


@pytest.mark.parametrize("base", [0xFC0, 0x3FC0, 0x8000])
def test_a_queue_lies_in_one_piece_of_memory(base: int) -> None:
    with pytest.raises(BadAddressError):
        queue_view(MEMORY, base, 128)
    with pytest.raises(BadAddressError):
        SubmissionQueue(1, base, 2, CompletionQueue(1, base, 2, 1, TAILS), None).place(MEMORY)


def test_shadow_doorbells_are_words_of_the_guests_memory() -> None:
    shadow = ShadowDoorbells(0x1000, 0x2000)
    shadow.place(MEMORY, 0x1000)
    shadow.doorbells[2], shadow.event_index[3] = 5, 6
    assert struct.unpack_from("<I", DATA, 0x1008) == (5,)
    assert struct.unpack_from("<I", DATA, 0x200C) == (6,)
