"""The record across the death of the process: a child is killed at every step, the next one gets the requests again."""

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intent, Intents
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.inflight.tag_record import FREE, TagIntentLog, TagRecord
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

ZONE = 128
GEOMETRY = Geometry(
    size=8 * ZONE, zone_size=ZONE, zone_capacity=100, conventional=((0, 1),), write_granularity=4, max_append=16
)
TAGS = 4


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    ZonedDevice.create(path, GEOMETRY, uuid=UUID(int=1))
    return path


class Server:
    """What a process has: the image, a port, the records, and one thread's intent log."""

    def __init__(self, image: Path, *, go_on: bool, device_tag: int = 77) -> None:
        self.device = ZonedDevice.open(image)
        self.port: Port = self.device.port("ublk", VIRTIO)
        intents = self.port.intents = Intents(contested=lambda _: False)
        self.record = TagRecord(image.with_name("records"), self.port, device_tag=device_tag, nr_tags=TAGS, go_on=go_on)
        self.intent_log = intents.current.log = TagIntentLog(self.record, self.port)

    def append(self, tag: int, zone_no: int, data: bytes) -> int:
        self.intent_log.number, self.intent_log.payload = tag, (data,)
        status, landed = self.port.append(zone_no * ZONE, len(data) // 512, (data,))
        assert status is Status.OK
        return landed

    def write(self, tag: int, sector: int, data: bytes) -> Status:
        self.intent_log.number, self.intent_log.payload = tag, (data,)
        return self.port.write(sector, len(data) // 512, (data,))

    def answered(self, tag: int) -> None:
        self.record.words[self.record.slots[tag]] = FREE

    def contents(self, zone_no: int) -> bytes:
        zone = self.port.zone(zone_no)
        data = bytearray((zone.wp - zone.start) * 512)
        assert not data or self.port.read(zone.start, len(data) // 512, [data]) is Status.OK
        return bytes(data)


@contextmanager
def serving(image: Path, *, go_on: bool, device_tag: int = 77) -> Iterator[Server]:
    server = Server(image, go_on=go_on, device_tag=device_tag)
    try:
        yield server
    finally:
        server.record.close()
        server.device.close()


def pattern(letter: str, nr_sectors: int = 4) -> bytes:
    return letter.encode() * (512 * nr_sectors)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(body: Callable[[], None]) -> None:
    """Run *body* in a child, which must not come to its end."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child was not killed"


class DyingIntentLog(TagIntentLog):
    """Dies before or after one of its own steps: that is around every change of the image."""

    def __init__(self, record: TagRecord, port: Port, step: str) -> None:
        super().__init__(record, port)
        self.step = step

    def begin(self, operation: Operation, sector: int, nr_sectors: int, cond: int) -> None:
        if self.step == "before intent":
            die()
        super().begin(operation, sector, nr_sectors, cond)
        if self.step == "after intent":
            die()

    def commit(self) -> None:
        if self.step == "before mark":
            die()
        super().commit()
        if self.step == "after mark":
            die()


STEPS = ["before intent", "after intent", "before mark", "after mark"]


def start_dying(image: Path, step: str, *, go_on: bool = False) -> Server:
    server = Server(image, go_on=go_on)
    server.intent_log = DyingIntentLog(server.record, server.port, "")
    assert server.port.intents is not None
    server.port.intents.current.log = server.intent_log
    return server


def arm(server: Server, step: str) -> None:
    assert isinstance(server.intent_log, DyingIntentLog)
    server.intent_log.step = step


@pytest.mark.parametrize("step", STEPS)
def test_append_is_done_once(image: Path, step: str) -> None:
    def body() -> None:
        server = start_dying(image, step)
        server.append(0, 1, pattern("a"))
        server.append(1, 1, pattern("b"))
        server.answered(0)
        arm(server, step)
        server.append(2, 1, pattern("c"))

    run_and_die(body)
    with serving(image, go_on=True) as server:
        # Tags may change on the way, and so may the order.
        assert server.append(0, 1, pattern("c")) == ZONE + 8
        assert server.append(3, 1, pattern("b")) == ZONE + 4
        assert server.contents(1) == pattern("a") + pattern("b") + pattern("c")
        # A new append of bytes that are there already is one of its own.
        assert server.append(1, 1, pattern("b")) == ZONE + 12
        assert server.append(2, 1, pattern("c")) == ZONE + 16


@pytest.mark.parametrize("step", STEPS)
def test_write_is_done_once(image: Path, step: str) -> None:
    def body() -> None:
        server = start_dying(image, step)
        server.write(0, ZONE, pattern("a"))
        server.answered(0)
        arm(server, step)
        server.write(1, ZONE + 4, pattern("b"))

    run_and_die(body)
    with serving(image, go_on=True) as server:
        assert server.write(2, ZONE + 4, pattern("b")) is Status.OK
        assert server.write(2, ZONE + 8, pattern("c")) is Status.OK
        assert server.contents(1) == pattern("a") + pattern("b") + pattern("c")


@pytest.mark.parametrize("first_step", STEPS)
@pytest.mark.parametrize("second_step", STEPS)
def test_killed_again_before_everything_was_asked_for(image: Path, first_step: str, second_step: str) -> None:
    def first() -> None:
        server = start_dying(image, first_step)
        server.append(0, 1, pattern("a"))
        arm(server, first_step)
        server.append(1, 2, pattern("b"))

    def second() -> None:
        server = start_dying(image, second_step, go_on=True)
        server.append(3, 1, pattern("a"))
        arm(server, second_step)
        server.append(2, 3, pattern("c"))

    run_and_die(first)
    run_and_die(second)
    with serving(image, go_on=True) as server:
        for tag, zone_no, letter in ((2, 3, "c"), (1, 2, "b"), (0, 1, "a")):
            assert server.append(tag, zone_no, pattern(letter)) == zone_no * ZONE
            assert server.contents(zone_no) == pattern(letter)


@pytest.mark.parametrize("step", STEPS)
def test_closing_an_open_zone_without_data(image: Path, step: str) -> None:
    def body() -> None:
        server = start_dying(image, step)
        assert server.port.manage(Operation.OPEN, ZONE) is Status.OK
        server.answered(0)
        arm(server, step)
        server.port.manage(Operation.CLOSE, ZONE)

    run_and_die(body)
    with serving(image, go_on=True) as server:
        assert server.port.manage(Operation.CLOSE, ZONE) is Status.OK
        assert server.port.zone(1).cond is Condition.EMPTY


@pytest.mark.parametrize("operation", [Operation.OPEN, Operation.FINISH, Operation.RESET])
@pytest.mark.parametrize("step", STEPS)
def test_management_again_changes_nothing(image: Path, step: str, operation: Operation) -> None:
    def body() -> None:
        server = start_dying(image, step)
        server.write(0, ZONE, pattern("a"))
        server.answered(0)
        arm(server, step)
        server.port.manage(operation, ZONE)

    run_and_die(body)
    expected = {Operation.OPEN: Condition.EXP_OPEN, Operation.FINISH: Condition.FULL, Operation.RESET: Condition.EMPTY}
    with serving(image, go_on=True) as server:
        assert server.port.manage(operation, ZONE) is Status.OK
        assert server.port.zone(1).cond is expected[operation]


@pytest.mark.parametrize("step", STEPS)
def test_reset_all_again(image: Path, step: str) -> None:
    def body() -> None:
        server = start_dying(image, step)
        server.write(0, ZONE, pattern("a"))
        server.answered(0)
        arm(server, step)
        server.port.manage_all(Operation.RESET)

    run_and_die(body)
    with serving(image, go_on=True) as server:
        assert server.port.manage_all(Operation.RESET) is Status.OK
        assert server.port.zone(1).cond is Condition.EMPTY


def test_a_conventional_zone_is_written_again(image: Path) -> None:
    def body() -> None:
        server = start_dying(image, "")
        server.write(0, 0, pattern("a"))
        die()

    run_and_die(body)
    with serving(image, go_on=True) as server:
        # It may be a later write with other bytes that got the same place: those bytes count.
        assert server.write(0, 0, pattern("b")) is Status.OK
        found = bytearray(2048)
        server.port.read(0, 4, [found])
        assert found == pattern("b")


def test_a_record_of_what_was_answered_does_no_harm(image: Path) -> None:
    def body() -> None:
        server = start_dying(image, "")
        server.append(0, 1, pattern("a"))
        server.write(1, 2 * ZONE, pattern("b"))
        die()  # the kernel had both answers, and we had no time to free the records

    run_and_die(body)
    with serving(image, go_on=True) as server:
        assert server.append(0, 1, pattern("c")) == ZONE + 4
        assert server.write(1, 2 * ZONE, pattern("d")) is Status.UNALIGNED_WP
        assert server.port.manage(Operation.RESET, 2 * ZONE) is Status.OK
        assert server.write(1, 2 * ZONE, pattern("b")) is Status.OK
        assert server.contents(2) == pattern("b")


def test_a_refused_request_leaves_no_record(image: Path) -> None:
    with serving(image, go_on=False) as server:
        assert server.write(0, ZONE + 8, pattern("a")) is Status.UNALIGNED_WP
        assert server.port.manage(Operation.CLOSE, ZONE) is Status.BAD_TRANSITION
        assert [server.record.words[at] for at in server.record.slots] == [FREE] * TAGS


def test_prefix_of_a_write_that_grew(image: Path) -> None:
    def body() -> None:
        server = start_dying(image, "")
        server.write(0, ZONE, pattern("a"))
        die()

    run_and_die(body)
    with serving(image, go_on=True) as server:
        assert server.intent_log.prefix(ZONE, 12) == 4
        assert server.intent_log.prefix(ZONE, 4) == 0
        assert server.intent_log.prefix(ZONE + 4, 12) == 0


def die_after_an_append(image: Path) -> None:
    """Leave the image, and the record of one append that was carried out and not answered."""

    def body() -> None:
        server = start_dying(image, "")
        server.append(0, 1, pattern("a"))
        die()

    run_and_die(body)


@pytest.mark.parametrize(("go_on", "device_tag"), [(False, 77), (True, 78)])
def test_records_of_another_device_do_not_count(image: Path, go_on: bool, device_tag: int) -> None:
    die_after_an_append(image)
    with serving(image, go_on=go_on, device_tag=device_tag) as server:
        assert server.record.recoverable == []
        assert server.append(0, 1, pattern("a")) == ZONE + 4


def test_records_expire(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die_after_an_append(image)
    now = [1000.0]
    monkeypatch.setattr("zonefs_emu.inflight.tag_record.time.monotonic", lambda: now[0])
    with serving(image, go_on=True) as server:
        now[0] += 60
        server.record.expire()
        assert len(server.record.recoverable) == 1
        now[0] += 0.001
        assert server.append(0, 1, pattern("a")) == ZONE + 4
        assert server.record.recoverable == []


def test_an_append_of_two_queues_is_recovered_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have a request that the one record may be of, and the other thread is the first to take it."""
    die_after_an_append(image)
    with serving(image, go_on=True) as server:
        logs = [TagIntentLog(server.record, server.port) for _ in range(2)]
        for number, intent_log in enumerate(logs):
            intent_log.number, intent_log.payload = number, (pattern("a"),)
        found: list[Intent | None] = []
        holds = TagIntentLog._holds

        def beside(intent_log: TagIntentLog, sector: int, nr_sectors: int) -> bool:
            if intent_log is logs[0]:
                found.append(logs[1].recover(Operation.APPEND, ZONE, 4))
            return holds(intent_log, sector, nr_sectors)

        monkeypatch.setattr(TagIntentLog, "_holds", beside)
        assert logs[0].recover(Operation.APPEND, ZONE, 4) is None
        assert [intent and intent.sector for intent in found] == [ZONE]


def test_a_tag_has_its_slot_when_none_are_recoverable_any_more(image: Path) -> None:
    """The compiled walker of the queue, on another thread, copies the slots then."""

    def body() -> None:
        server = start_dying(image, "")
        server.append(0, 1, pattern("a"))
        die()

    class Watched(list[int]):
        def remove(self, at: int) -> None:
            assert server.record.slots[2] == at
            super().remove(at)

    run_and_die(body)
    with serving(image, go_on=True) as server:
        server.record.recoverable = Watched(server.record.recoverable)
        assert server.append(2, 1, pattern("a")) == ZONE
        assert server.record.recoverable == []


def test_many_kills_leave_room(image: Path) -> None:
    def body() -> None:
        server = start_dying(image, "", go_on=True)
        for tag in range(TAGS):
            server.append(tag, 1, pattern("x"))
        die()

    for _ in range(4):
        run_and_die(body)
    with serving(image, go_on=True) as server:
        assert len(server.record.slots) == len(set(server.record.slots)) == TAGS
        assert not set(server.record.slots) & set(server.record.recoverable)


def words_of(image: Path) -> list[int]:
    content = image.with_name("records").read_bytes()
    return list(struct.unpack(f"<{len(content) // 8}Q", content))


def test_layout(image: Path) -> None:
    """An emulator of another version may be the next to read the file."""
    with serving(image, go_on=False) as server:
        server.append(0, 1, pattern("a"))
        server.write(2, 2 * ZONE, pattern("b"))
        server.answered(2)
        server.intent_log.number = 1
        server.intent_log.begin(Operation.CLOSE, 3 * ZONE, 0, Condition.EXP_OPEN)
    words = words_of(image)
    assert len(words) == 8 + 2 * TAGS * 4
    assert words[:8] == [0x15A55424C, 77, 2 * TAGS, 0, 0, 0, 0, 0]  # magic and version 1, device, slots
    assert words[8:12] == [2, ZONE, 4 | 2 << 32, 0]  # committed; 4 sectors, append; a condition is noted for close
    assert words[12:16] == [1, 3 * ZONE, 4 << 32 | 3 << 40, 0]  # begun; close, of an explicitly open zone
    assert words[16:18] == [0, 2 * ZONE]  # free; what it was of may stay
    assert not any(words[20:])


def test_slots_that_cannot_be_do_not_count(image: Path) -> None:
    with serving(image, go_on=False) as server:
        server.append(0, 1, pattern("a"))
    content = bytearray(image.with_name("records").read_bytes())
    content[8 * 8 + 2 * 8 + 5] = 99  # the condition in slot 0
    image.with_name("records").write_bytes(content)
    with serving(image, go_on=True) as server:
        assert server.record.recoverable == []
        assert server.append(0, 1, pattern("a")) == ZONE + 4


def test_a_cut_file_begins_anew(image: Path) -> None:
    image.with_name("records").write_bytes(b"\xff" * 100)
    with serving(image, go_on=True) as server:
        assert server.record.recoverable == []
        server.append(0, 1, pattern("a"))


def test_what_is_recovered_is_complete(image: Path) -> None:
    die_after_an_append(image)
    with serving(image, go_on=True) as server:
        server.intent_log.payload = (pattern("a"),)
        assert server.intent_log.recover(Operation.APPEND, ZONE, 4) == Intent(
            Operation.APPEND, ZONE, 4, Condition.NOT_WP, committed=True, all_zones=False
        )
