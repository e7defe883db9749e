"""Answers that are held, of a queue in memory of this process and on a clock that stands still."""

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.model.transitions import ZNS
from zonefs_emu.nvme.answer import SUCCESS, Answer
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.vfio_user.drive_queues import CompletionQueue, SubmissionQueue
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord
from zonefs_emu.vfio_user.held_answers import hold_answers

SIZE = 4


class Queue:
    """A submission queue of a timed drive, and what its guest sees."""

    def __init__(self, device: ZonedDevice, memory: bytearray) -> None:
        self.now_ns = 0
        timing = device.timing or device.start_timing("zn540", clock=lambda: self.now_ns)
        assert timing is not None
        timing.alarm.at = self._note_alarm  # type: ignore[method-assign]  # the clock stands still
        port = device.port("guest", ZNS)
        assert isinstance(port, TimedPort)
        port.hold = port.held.hold
        self.port = port
        self.alarms_ns: list[int] = []
        self.record = DriveRecord(memory)
        self.completions = CompletionQueue(1, 0, SIZE, -1, self.record.tails)
        self.completions.words = memoryview(bytearray(SIZE * 16)).cast("Q")
        self.queue = SubmissionQueue(1, 0, SIZE, self.completions, self.record.new_ring(1, SIZE))

    def _note_alarm(self, due_ns: int, function: object) -> None:
        assert callable(function)
        self.alarms_ns.append(due_ns)

    def hold(self, *, is_timed: bool = True) -> None:
        hold_answers(self.queue, is_timed=is_timed, has_room=lambda queue: not queue.is_full, wake=lambda: None)

    def carry_out(self, cid: int, nr_sectors: int) -> None:
        """Carry out a read, which takes longer the longer it is."""
        queue, answers, ring = self.queue, self.queue.answers, self.queue.ring
        assert answers is not None
        assert ring is not None
        ring.make_way()
        ring.start_request(0, ())
        data = bytearray(nr_sectors * 512)

        def read() -> Answer:
            assert not self.port.read(0, nr_sectors, [data])
            return SUCCESS

        answer = answers.carry_out(self.port, read)
        queue.advance()
        answers.hold(cid, answer)

    def is_full(self) -> bool:
        return self.queue.is_full

    def is_due(self) -> bool:
        return self.queue.is_due

    def take(self) -> list[int]:
        """Return the identifiers of the new completions."""
        words, found = self.completions.words, []
        while self.completions.head != self.completions.tail:
            found.append(words[2 * self.completions.head + 1] >> 32 & 0xFFFF)
            self.completions.head = (self.completions.head + 1) % SIZE
        return found


@pytest.fixture
def memory() -> bytearray:
    return bytearray(RECORD_BYTES)


@pytest.fixture
def queue(device: ZonedDevice, memory: bytearray) -> Queue:
    made = Queue(device, memory)
    made.hold()
    return made


def test_what_is_due_first_overtakes(queue: Queue) -> None:
    queue.carry_out(1, 256)
    queue.carry_out(2, 8)
    assert not queue.queue.give_due()
    first_ns = queue.alarms_ns[-1]
    queue.now_ns = first_ns
    assert queue.queue.give_due()
    assert queue.take() == [2]
    assert len(queue.alarms_ns) == 2, "an alarm for the next"
    queue.now_ns = queue.alarms_ns[-1]
    assert queue.is_due()
    assert queue.queue.give_due()
    assert queue.take() == [1]
    assert not queue.queue.give_due()


def test_the_last_command_of_a_full_queue_waits_for_an_answer(queue: Queue) -> None:
    for cid in (1, 2, 3):
        assert not queue.is_full()
        queue.carry_out(cid, 8)
    assert queue.is_full()
    queue.now_ns = 1 << 62
    assert queue.queue.give_due()
    assert not queue.is_full()
    assert sorted(queue.take()) == [1, 2, 3]


def test_no_completion_is_posted_without_room(queue: Queue) -> None:
    for cid in (1, 2):
        queue.carry_out(cid, 8)
    queue.completions.head = 2  # one entry is free
    queue.now_ns = 1 << 62
    assert queue.queue.give_due()
    assert not queue.is_due()
    assert not queue.queue.give_due()
    queue.completions.head = 1
    assert queue.queue.give_due()


@pytest.mark.parametrize("is_timed", [True, False])
def test_the_next_process_gives_what_was_held_first(device: ZonedDevice, memory: bytearray, *, is_timed: bool) -> None:
    earlier = Queue(device, memory)
    earlier.hold()
    earlier.carry_out(7, 256)
    earlier.carry_out(8, 256)
    later = Queue(device, bytearray(RECORD_BYTES))
    ring = DriveRecord(memory).ring(1, SIZE)
    assert ring.was_holding
    assert not ring.was_giving
    ring.start_split(ring.recorded)
    later.queue = SubmissionQueue(1, 0, SIZE, later.completions, ring)
    later.hold(is_timed=is_timed)
    assert later.is_full(), "nothing is carried out before"
    assert later.queue.give_due()
    assert later.take() == [7, 8]
    assert ring.was_holding == is_timed
    assert (later.queue.answers is not None) == is_timed
    assert not later.is_full()
    assert ring.finished == 2


def test_a_queue_with_room_for_one_answers_at_once_what_an_earlier_process_had_begun(
    device: ZonedDevice, memory: bytearray
) -> None:
    """The record of two entries has an intent in one, so that there is no room to hold the answer."""
    made = Queue(device, memory)
    ring = made.record.new_ring(1, 2)
    ring.start_request(0, ())
    ring.begin(3, 0, 8, 0)  # type: ignore[arg-type]  # any change
    ring.start_split(0)
    made.queue = SubmissionQueue(1, 0, 2, made.completions, ring)
    made.hold()
    assert not made.is_full()
    answers = made.queue.answers
    assert answers is not None
    made.queue.advance()
    answers.hold(5, Answer(NvmeStatus.INTERNAL_ERROR))
    assert made.take() == [5]
    assert ring.finished == 1
    assert ring.was_holding
