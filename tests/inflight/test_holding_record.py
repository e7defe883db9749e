"""The record of a queue that holds answers. test_exactly_once.py shows the same with a device."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.inflight.holding_record import HELD, HoldingRecord
from zonefs_emu.inflight.ring_record import MAGIC, record_bytes
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

SIZE = 4


class World:
    """A record with the ring that it is of, as they outlive processes; :attr:`pictures` has both after each store."""

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed
        self.words = memoryview(bytearray(record_bytes(SIZE))).cast("Q")
        #: Requests carried out, and the numbers of those whose answers the driver has been shown.
        self.executed = 0
        self.shown: list[int] = []
        self.pictures: list[tuple[bytes, int, tuple[int, ...]]] = []

    def cast(self, _format: str) -> "World":
        return self

    def __getitem__(self, index: int) -> int:
        return self.words[index]

    def __setitem__(self, index: int, word: int) -> None:
        self.words[index] = word
        self.take_picture()

    def take_picture(self) -> None:
        self.pictures.append((bytes(self.words), self.executed, tuple(self.shown)))

    @staticmethod
    def position(count: int) -> int:
        """Return slot and wrap counter after *count* requests of one descriptor each."""
        turn, slot = divmod(count, SIZE)
        return slot | (0 if turn & 1 else 0x8000)

    def start(self) -> HoldingRecord:
        record = HoldingRecord(self, SIZE, packed=self.packed)  # type: ignore[arg-type]  # all that a record does
        given = len(self.shown)
        if not self.packed:
            record.start_split(given & 0xFFFF)
        elif (at := record.start_packed(self.position(0))) is not None:
            # The driver has been shown the descriptor at this position, or has not.
            assert record.recover_packed(given_back=at != self.position(given)) == self.position(record.finished)
            assert record.used_position == self.position(given)
        return record

    def begin(self) -> HoldingRecord:
        record = self.start()
        record.begin_holding(self.position(self.executed) if self.packed else 0)
        return record

    def execute(self, record: HoldingRecord) -> int:
        record.make_way()
        record.start_request(0, ())
        record.begin(Operation.WRITE, 8 * self.executed, 8, Condition.IMP_OPEN)
        record.commit()
        self.executed += 1
        return record.hold(self.executed, 100 + self.executed, self.position(self.executed) if self.packed else 0)

    def give(self, record: HoldingRecord, number: int) -> None:
        record.before_giving(number, self.position(len(self.shown) + 1) if self.packed else 0)
        self.shown.append(number)
        self.take_picture()
        record.note_given(number)

    def check_pictures(self) -> None:
        """Make sure that a process that is killed anywhere leaves exactly the answers that were not shown."""
        for picture, executed, shown in self.pictures:
            world = World(packed=self.packed)
            world.words[:] = memoryview(picture).cast("Q")
            world.shown = list(shown)
            record = world.start()
            assert record.finished in (executed - 1, executed)
            expected = sorted(set(range(1, record.finished + 1)) - set(shown))
            assert [number for number, _, _ in record.held] == expected
            assert all((first, second) == (number, 100 + number) for number, first, second in record.held)
            if record.finished < executed:
                record.start_request(0, ())
                found = record.recover(Operation.WRITE, 8 * (executed - 1), 8)
                assert found is None or found.sector == 8 * (executed - 1)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(packed=request.param)
    yield world
    world.check_pictures()


def test_layout() -> None:
    world = World(packed=False)
    record = world.begin()
    number = world.execute(record)
    assert number == 1
    assert world[0] == MAGIC | 2 << 32 | SIZE << 48
    assert (world[1], world[4], world[5]) == (1, 0, 0)
    slots = [tuple(world.words[at : at + 4]) for at in range(8, 8 + 4 * SIZE, 4)]
    assert (HELD | 1, 1, 101, 0) in slots[1:]
    assert slots[0][0] == 1, "the intent is still there"
    record.before_giving(1, 0)
    assert (world[4], world[5], world[6]) == (0, 1 << 16, 1)
    record.note_given(1)
    assert world[4] == 1 << 16
    assert not any(word & HELD for word in world.words[8:])


def test_answers_are_given_in_any_order(world: World) -> None:
    """The first is held through rounds of the ring, so that others need the slot in which it lies."""
    record = world.begin()
    slow = world.execute(record)
    for _ in range(3 * SIZE):
        quick = [world.execute(record), world.execute(record)]
        assert not record.can_hold
        for number in reversed(quick):
            world.give(record, number)
    assert [number for number, _, _ in record.held] == [slow]
    world.give(record, slow)
    record.end_holding()
    assert not world.begin().held


def test_anything_in_any_order() -> None:
    for seed, packed in itertools.product(range(10), (False, True)):
        rng = random.Random(seed)
        world = World(packed=packed)
        record = world.begin()
        held: list[int] = []
        for _ in range(40):
            if held and (not record.can_hold or rng.random() < 0.5):
                world.give(record, held.pop(rng.randrange(len(held))))
            else:
                held.append(world.execute(record))
        world.check_pictures()


def has_room(record: HoldingRecord) -> bool:
    return record.can_hold


def test_intents_of_requests_to_come_stay_where_they_are() -> None:
    """A process that answered in order had begun three; the next one holds their answers."""
    world = World(packed=False)
    record = world.start()
    for ahead in range(3):
        record.start_request(ahead, ())
        record.begin(Operation.APPEND, 4096 + 8 * ahead, 8, Condition.EMPTY)
    again = world.begin()
    assert not has_room(again), "one slot is free"
    again.end_holding()
    again.start_request(0, ())
    assert again.recover(Operation.APPEND, 4096, 8) is not None
    again.finish_split(1)
    world.executed, world.shown = 1, [1]
    again.begin_holding(0)
    assert has_room(again)
    for ahead in (1, 2):
        again.make_way()
        again.start_request(0, ())
        found = again.recover(Operation.APPEND, 4096, 8)
        assert found is not None
        assert found.sector == 4096 + 8 * ahead
        world.executed += 1
        again.hold(world.executed, 100 + world.executed, 0)
    assert [number for number, _, _ in again.held] == [2, 3]
    assert has_room(again)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (1, 7 << 16),  # carried out
        (1, 1 << 60),
        (4, 9 << 16),  # given
        (5, 9 << 16),
        (8 + 4 * 3, HELD | 9),  # an answer to what was not carried out
    ],
)
def test_a_record_that_contradicts_itself_does_not_count(word: int, value: int) -> None:
    for packed in (False, True):
        world = World(packed=packed)
        record = world.begin()
        world.execute(record)
        world.words[word] = value
        again = HoldingRecord(world.words.cast("B"), SIZE, packed=packed)
        if packed:
            assert again.start_packed(0x8000) is None
        else:
            again.start_split(0)
        assert not again.held
        assert again.finished == 0


def test_a_split_ring_elsewhere_is_a_new_one() -> None:
    world = World(packed=False)
    world.execute(world.begin())
    record = HoldingRecord(world.words.cast("B"), SIZE, packed=False)
    record.start_split(3)
    assert not record.held
    assert record.finished == 3


@given(packed=st.booleans(), garbage=st.lists(st.tuples(st.integers(1, 23), st.integers(0, (1 << 64) - 1)), max_size=8))
def test_any_words_are_taken_or_not(packed: bool, garbage: list[tuple[int, int]]) -> None:
    world = World(packed=packed)
    record = world.begin()
    world.execute(record)
    world.execute(record)
    for at, word in garbage:
        world.words[at] = word
    again = HoldingRecord(world.words.cast("B"), SIZE, packed=packed)
    if not packed:
        again.start_split(0)
    elif again.start_packed(0x8000) is not None:
        again.recover_packed(given_back=True)
    assert len(again.held) <= SIZE
    again.begin_holding(0)
