"""The state of a drive in memory that outlives its process."""

from typing import Any

from zonefs_emu.nvme.controller import IO_QUEUES_MAX, QUEUE_ENTRIES_MAX
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord, DriveState


def state(nr_resets: int) -> DriveState:
    found: Any = {"nr_resets": nr_resets, "cqs": [], "completion": None}
    return found  # type: ignore[no-any-return]


def test_the_state_that_was_saved_last_counts_in_every_process() -> None:
    buffer = bytearray(RECORD_BYTES)
    assert DriveRecord(buffer).load() is None
    for nr_resets in range(5):
        DriveRecord(buffer).save(state(nr_resets))
        assert DriveRecord(buffer).load() == state(nr_resets)


def test_a_state_that_is_half_stored_does_not_count() -> None:
    buffer = bytearray(RECORD_BYTES)
    record = DriveRecord(buffer)
    record.save(state(1))
    counting = bytes(buffer[:8])
    record.save(state(2))
    buffer[:8] = counting  # the last store is missing
    assert record.load() == state(1)


def test_the_records_of_queues_do_not_touch_each_other() -> None:
    buffer = bytearray(RECORD_BYTES)
    record = DriveRecord(buffer)
    size = QUEUE_ENTRIES_MAX + 1
    record.save(state(1))
    rings = [record.new_ring(number, size) for number in range(1, IO_QUEUES_MAX + 1)]
    for number, ring in enumerate(rings, 1):
        record.tails[number] = number << 1 | 1
        ring.finish_split(number)
    assert record.load() == state(1)
    for number in range(1, IO_QUEUES_MAX + 1):
        assert record.tails[number] == number << 1 | 1
        assert record.ring(number, size).recorded == number
    assert record.new_ring(3, 5).finished == 0, "of a new queue of this number"
