"""The record word by word. That it is enough for every kill is shown in test_exactly_once.py."""

import struct

import pytest

from zonefs_emu.device.intent_log import ALL_ZONES
from zonefs_emu.inflight.ring_record import MAGIC, RingRecord, record_bytes
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

SIZE = 4


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(record_bytes(SIZE)))


def words(memory: memoryview) -> tuple[int, ...]:
    return struct.unpack(f"<{len(memory) // 8}Q", memory)


def test_layout(memory: memoryview) -> None:
    assert record_bytes(SIZE) == 64 + 32 * SIZE
    assert record_bytes(3) % 64 == 0
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(10)
    record.start_request(1, ())
    record.begin(Operation.APPEND, 4096, 8, 2)
    record.commit()
    record.finish_split(2)
    found = words(memory)
    assert found[0] == MAGIC | 1 << 32 | SIZE << 48  # magic, version 1, split, size
    assert found[1] == 12  # finished
    assert found[3] == 11 << 16 | 1  # committed
    slot = found[8 + 4 * (11 % SIZE) :][:4]
    assert slot == (12, 4096, 8 | Operation.APPEND << 32 | 2 << 40, 0)


def test_what_is_not_ours_is_cleared(memory: memoryview) -> None:
    memory[:] = b"\xff" * len(memory)
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(7)
    assert words(memory)[1:] == (7, *[0] * (7 - 1 + 4 * SIZE))
    assert not record.recovering


def test_a_ring_that_is_far_from_the_record_is_a_new_one(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(0)
    record.start_request(0, ())
    record.begin(Operation.RESET, 0, 0, 0)
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(100)
    assert not again.recovering
    again.start_request(0, ())
    assert again.recover(Operation.RESET, 0, 0) is None


def test_the_used_index_is_the_truth_also_when_it_wraps(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(65534)
    record.finish_split(1)
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(1)  # two more were shown than the record knows of
    assert again.finished == 65537
    assert again.recovering
    again.finish_split(SIZE)
    assert not again.recovering


def crash(memory: memoryview) -> RingRecord:
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(0)
    again.start_request(0, ())
    return again


def test_recovery(memory: memoryview) -> None:
    record = crash(memory)
    record.begin(Operation.APPEND, 4100, 8, 0)
    found = crash(memory).recover(Operation.APPEND, 4096, 8)
    assert found is not None
    assert (found.sector, found.committed, found.all_zones) == (4100, False, False)
    record.commit()
    found = crash(memory).recover(Operation.APPEND, 4096, 8)
    assert found is not None
    assert found.committed
    record.abort()
    assert words(memory)[8] == 0


def test_a_request_that_is_not_the_recorded_one_is_executed(memory: memoryview) -> None:
    crash(memory).begin(Operation.WRITE, 4096, 8, 0)
    for operation, sector, nr_sectors in (
        (Operation.WRITE, 4096, 9),
        (Operation.WRITE, 4097, 8),
        (Operation.APPEND, 4096, 8),
        (Operation.RESET, 4096, 0),
    ):
        assert crash(memory).recover(operation, sector, nr_sectors) is None
    other = crash(memory)
    other.start_request(1, ())
    assert other.recover(Operation.WRITE, 4096, 8) is None


def test_all_zones(memory: memoryview) -> None:
    crash(memory).begin(Operation.RESET, 0, ALL_ZONES, 0)
    found = crash(memory).recover(Operation.RESET, 0, ALL_ZONES)
    assert found is not None
    assert found.all_zones


def test_merged_writes_are_recovered_one_by_one(memory: memoryview) -> None:
    record = crash(memory)
    record.start_request(0, [(0, 2), (2, 3), (5, 1)])
    record.begin(Operation.WRITE, 0, 6, 0)
    for committed in (False, True):
        if committed:
            record.commit()
        again = crash(memory)
        for ahead, (sector, nr_sectors) in enumerate([(0, 2), (2, 3), (5, 1)]):
            again.start_request(ahead, ())
            found = again.recover(Operation.WRITE, sector, nr_sectors)
            assert found is not None
            assert found.committed is committed
            if committed:
                again.commit()


def test_a_request_of_several_changes(memory: memoryview) -> None:
    """WRITE ZEROES of a long range: what has committed of it is not done again, and the next part is."""
    record = crash(memory)
    for part in range(2):
        record.begin(Operation.WRITE, part * 8, 8, 0)
        record.commit()
    record.begin(Operation.WRITE, 16, 8, 0)
    again = crash(memory)
    for part, committed in ((0, True), (1, True), (2, False)):
        found = again.recover(Operation.WRITE, part * 8, 8)
        assert found is not None
        assert found.committed is committed
        again.commit()
    assert again.recover(Operation.WRITE, 24, 8) is None


def test_packed(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=True)
    assert record.start_packed(0x8000) is None
    record.before_packed(0x8002)
    again = RingRecord(memory, SIZE, packed=True)
    assert again.start_packed(0x8000) == 0x8000
    assert again.recover_packed(given_back=False) == 0x8000
    assert again.finished == 0
    record = RingRecord(memory, SIZE, packed=True)
    record.start_packed(0x8000)
    record.recover_packed(given_back=False)
    record.before_packed(0x8002)
    again = RingRecord(memory, SIZE, packed=True)
    again.start_packed(0x8000)
    assert again.recover_packed(given_back=True) == 0x8002
    assert again.finished == 1
    again.before_packed(0x8003)
    again.finish_packed()
    assert words(memory)[1] == 2 << 16 | 0x8003


@pytest.mark.parametrize(("packed", "stamp"), [(False, 0x0004_00_01_5A564946), (True, 0x0004_01_01_5A564946)])
def test_what_other_versions_know_a_record_by(memory: memoryview, *, packed: bool, stamp: int) -> None:
    record = RingRecord(memory, SIZE, packed=packed)
    if packed:
        record.start_packed(0)
    else:
        record.start_split(0)
    assert words(memory)[0] == stamp


@pytest.mark.parametrize(("finished", "is_ours"), [((1 << 47) - 1, True), (1 << 47, False)])
def test_a_packed_record_of_more_requests_than_there_can_be_is_none(
    memory: memoryview, finished: int, *, is_ours: bool
) -> None:
    RingRecord(memory, SIZE, packed=True).start_packed(0)
    memory.cast("Q")[1] = memory.cast("Q")[2] = finished << 16 | 0x8003
    again = RingRecord(memory, SIZE, packed=True)
    assert again.start_packed(0x8001) == (0x8003 if is_ours else None)
    if is_ours:
        assert again.recover_packed(given_back=False) == 0x8003
        assert again.finished == finished


@pytest.mark.parametrize("given_back", [False, True])
def test_a_packed_ring_that_gave_nothing_back_goes_on_where_it_began(memory: memoryview, *, given_back: bool) -> None:
    """A descriptor of earlier use may look as if it had been given back."""
    RingRecord(memory, SIZE, packed=True).start_packed(0x8002)
    again = RingRecord(memory, SIZE, packed=True)
    assert again.start_packed(0) == 0x8002
    assert again.recover_packed(given_back=given_back) == 0x8002
    assert again.finished == 0


def test_a_packed_ring_is_recovering_until_every_request_of_the_earlier_process_is_finished(memory: memoryview) -> None:
    RingRecord(memory, SIZE, packed=True).start_packed(0x8000)
    again = RingRecord(memory, SIZE, packed=True)
    again.start_packed(0)
    again.recover_packed(given_back=False)
    recovering = []
    for number in range(SIZE + 1):
        recovering.append(again.recovering)
        again.before_packed(0x8000 + number + 1)
        again.finish_packed()
    assert recovering == [True] * SIZE + [False]


@pytest.mark.parametrize("cond", Condition)
def test_the_condition_before_is_recovered(memory: memoryview, cond: Condition) -> None:
    crash(memory).begin(Operation.CLOSE, 4096, 0, cond)
    found = crash(memory).recover(Operation.CLOSE, 4096, 0)
    assert found is not None
    assert found.cond is cond


@pytest.mark.parametrize("ahead", range(SIZE))
@pytest.mark.parametrize("nr_spans", [0, 1, 2])
def test_what_is_aborted_is_forgotten_and_nothing_else(memory: memoryview, ahead: int, nr_spans: int) -> None:
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(SIZE + 1)  # positions are beyond the first round
    for position in range(SIZE):
        record.start_request(position, ())
        record.begin(Operation.WRITE, position * 8, 8, 0)
    before = words(memory)
    record.start_request(ahead, [(number * 8, 8) for number in range(nr_spans)])
    record.abort()
    forgotten = {8 + 4 * ((SIZE + 1 + ahead + number) % SIZE) for number in range(max(nr_spans, 1))}
    assert words(memory) == tuple(0 if index in forgotten else word for index, word in enumerate(before))


def test_the_record_of_merged_writes_word_by_word(memory: memoryview) -> None:
    """Over entries of earlier requests, one of which was the third change of its request."""
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(6)
    for position in range(SIZE):
        record.start_request(position, ())
        for _ in range(2):
            record.commit()
        record.begin(Operation.APPEND, 1 << 40, 99, 2)
    record.finish_split(SIZE)
    record.start_request(1, [(4096, 3), (4099, 5)])
    record.begin(Operation.WRITE, 4096, 8, 3)
    found = words(memory)
    for position, sector, nr_sectors in ((11, 4096, 3), (12, 4099, 5)):
        slot = found[8 + 4 * (position % SIZE) :][:4]
        assert slot == (position + 1, sector, nr_sectors | Operation.WRITE << 32 | 3 << 40, 0)
    record.commit()
    assert words(memory)[3] == 12 << 16 | 1


class Pictures:
    """Memory of a record that keeps what it held after each store: where a process may be killed."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("Q")
        self.taken = [bytes(memory)]

    def cast(self, _format: str) -> "Pictures":
        return self

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, word: int) -> None:
        self._words[index] = word
        self.taken.append(bytes(self._words))

    def record(self, *, packed: bool) -> RingRecord:
        return RingRecord(self, SIZE, packed=packed)  # type: ignore[arg-type]  # all that a record does with memory


def restart(picture: bytes, used_idx: int = 0) -> RingRecord:
    again = RingRecord(memoryview(bytearray(picture)), SIZE, packed=False)
    again.start_split(used_idx)
    again.start_request(0, ())
    return again


def test_a_change_is_recovered_whole_or_not_at_all_wherever_the_process_is_killed(memory: memoryview) -> None:
    """The second change of a request, over the intent of the first, in a slot with the number of the same request."""
    record = crash(memory)
    record.begin(Operation.WRITE, 4096, 8, Condition.EMPTY)
    record.commit()
    pictures = Pictures(memory)
    record = pictures.record(packed=False)
    record.start_split(0)
    record.start_request(0, ())
    assert record.recover(Operation.WRITE, 4096, 8) is not None
    record.commit()
    record.begin(Operation.WRITE, 4104, 16, Condition.IMP_OPEN)
    found = []
    for picture in pictures.taken:
        again = restart(picture)
        first = again.recover(Operation.WRITE, 4096, 8)
        assert first is not None, "a committed change would be executed again"
        assert first.committed
        again.commit()
        second = again.recover(Operation.WRITE, 4104, 16)
        assert second is None or (second.sector, second.cond, second.committed) == (4104, Condition.IMP_OPEN, False)
        found.append(second is not None)
    assert found == sorted(found)
    assert found[-1]


@pytest.mark.parametrize("spans", [(), ((4096, 8), (4104, 16))])
def test_an_intent_is_not_taken_for_that_of_another_request_wherever_the_process_is_killed(
    memory: memoryview, spans: tuple[tuple[int, int], ...]
) -> None:
    """The intent of the request one round earlier is of another operation and sector."""
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(0)
    for position in range(SIZE):
        record.start_request(position, ())
        record.begin(Operation.APPEND, 1 << 40 | position, 8, Condition.CLOSED)
        record.commit()
    record.finish_split(SIZE)
    pictures = Pictures(memory)
    record = pictures.record(packed=False)
    record.start_split(SIZE)
    record.start_request(0, spans)
    record.begin(Operation.APPEND, 4096, 8, Condition.EMPTY)
    for picture in pictures.taken:
        found = restart(picture, SIZE).recover(Operation.APPEND, 0, 8)
        assert found is None or (found.sector, found.cond, found.committed) == (4096, Condition.EMPTY, False)


def test_a_ring_that_begins_anew_is_not_recovering_wherever_the_process_is_killed(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(50)
    record.start_request(0, ())
    record.begin(Operation.WRITE, 4096, 8, Condition.EMPTY)
    record.commit()
    pictures = Pictures(memory)
    pictures.record(packed=False).start_split(2)
    for picture in pictures.taken:
        assert not restart(picture, 2).recovering or picture == pictures.taken[-1]
    assert words(memory) == (MAGIC | 1 << 32 | SIZE << 48, 2, *[0] * (8 - 2 + 4 * SIZE))


def test_a_packed_ring_that_begins_anew_does_so_wherever_the_process_is_killed(memory: memoryview) -> None:
    RingRecord(memory, SIZE, packed=False).start_split(50)
    pictures = Pictures(memory)
    assert pictures.record(packed=True).start_packed(0x8000) is None
    for picture in pictures.taken[:-1]:
        again = RingRecord(memoryview(bytearray(picture)), SIZE, packed=True)
        assert again.start_packed(0x8001) is None
    again = RingRecord(memory, SIZE, packed=True)
    assert again.start_packed(0x8001) == 0x8000


def test_a_packed_ring_is_told_once_of_what_was_given_back_wherever_the_process_is_killed(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=True)
    record.start_packed(0x8000)
    record.before_packed(0x8001)
    record.finish_packed()
    pictures = Pictures(memory)
    record = pictures.record(packed=True)
    record.start_packed(0x8000)
    record.recover_packed(given_back=True)
    record.before_packed(0x8002)
    nr_before = len(pictures.taken)
    record.finish_packed()
    for number, picture in enumerate(pictures.taken):
        again = RingRecord(memoryview(bytearray(picture)), SIZE, packed=True)
        position = again.start_packed(0)
        shown = number >= nr_before - 1
        assert again.recover_packed(given_back=shown) == (0x8002 if shown else 0x8001)
        assert again.finished == (2 if shown else 1)
        assert position == (0x8001 if number < nr_before else 0x8002)


@pytest.mark.parametrize("used_idx", [4, 5, 6])
def test_a_used_index_is_of_the_record_if_no_more_than_a_ring_ahead(memory: memoryview, used_idx: int) -> None:
    RingRecord(memory, SIZE, packed=False).start_split(1)
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(used_idx)
    assert again.finished == used_idx
    assert again.recovering is (used_idx <= 1 + SIZE)


@pytest.mark.parametrize(("finished", "is_ours"), [((1 << 47) - 1, True), (1 << 47, False)])
def test_a_split_record_of_more_requests_than_there_can_be_is_none(
    memory: memoryview, finished: int, *, is_ours: bool
) -> None:
    RingRecord(memory, SIZE, packed=False).start_split(0)
    memory.cast("Q")[1] = finished
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(finished & 0xFFFF)
    assert again.recovering is is_ours
    assert again.finished == (finished if is_ours else 0)


@pytest.mark.parametrize("position", range(2 * SIZE + 1))
def test_only_requests_of_one_ring_after_those_finished_can_have_been_begun(memory: memoryview, position: int) -> None:
    RingRecord(memory, SIZE, packed=False).start_split(SIZE)
    slot = memory.cast("Q")[8 + 4 * (position % SIZE) :]
    for index, word in enumerate((position + 1, 4096, 8 | Operation.WRITE << 32 | Condition.EMPTY << 40, 0)):
        slot[index] = word
    again = RingRecord(memory, SIZE, packed=False)
    again.start_split(SIZE)
    again.start_request(position - SIZE, ())
    found = again.recover(Operation.WRITE, 4096, 8)
    assert (found is not None) is (position < 2 * SIZE)
    assert found is None or not found.committed


def test_an_intent_with_a_condition_that_there_is_none_of_is_no_record(memory: memoryview) -> None:
    crash(memory).begin(Operation.WRITE, 4096, 8, max(Condition) + 1)
    assert crash(memory).recover(Operation.WRITE, 4096, 8) is None


def test_what_later_requests_committed_says_that_earlier_ones_did(memory: memoryview) -> None:
    """Requests are executed in order; those without an intent changed nothing, or were refused."""
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(0)
    record.start_request(0, ())
    record.begin(Operation.WRITE, 4096, 8, Condition.EMPTY)
    record.commit()
    record.start_request(2, ())
    record.begin(Operation.WRITE, 8192, 8, Condition.EMPTY)
    record.commit()
    again = crash(memory)
    first = again.recover(Operation.WRITE, 4096, 8)
    assert first is not None
    assert first.committed
    again.start_request(1, ())
    assert again.recover(Operation.WRITE, 6000, 8) is None
    again.start_request(2, ())
    last = again.recover(Operation.WRITE, 8192, 8)
    assert last is not None
    assert last.committed
    again.commit()
    again.start_request(3, ())
    assert again.recover(Operation.WRITE, 9000, 8) is None


def test_what_was_committed_last_is_not_forgotten_while_earlier_requests_are_answered(memory: memoryview) -> None:
    record = RingRecord(memory, SIZE, packed=False)
    record.start_split(0)
    for position in range(2):
        record.start_request(position, ())
        record.begin(Operation.WRITE, 4096 + 8 * position, 8, Condition.EMPTY)
        record.commit()
    committed = words(memory)[3]
    again = crash(memory)
    again.commit()
    assert words(memory)[3] == committed == 1 << 16 | 1
