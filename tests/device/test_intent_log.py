"""What is answered from a record, what is executed, and what is not guessed at: every picture that a kill can leave."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.refused import last_refusal
from tests.vhost_user.serving import ZONE, create
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import ALL_ZONES, Intent, Intents, is_done
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zone import Condition

START = 3 * ZONE


class Notes:
    """An intent log that writes down what it is told and recalls what it is given."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.intent: Intent | None = None
        #: The changes that were looked for.
        self.asked: list[tuple[Operation, int, int]] = []
        self.look: Callable[[], object] = lambda: None

    def recover(self, operation: Operation, sector: int, nr_sectors: int) -> Intent | None:
        self.asked.append((operation, sector, nr_sectors))
        return self.intent

    def begin(self, operation: Operation, sector: int, nr_sectors: int, cond: int) -> None:
        self.notes.append(f"begin {operation.name} {sector} {nr_sectors} {cond}: {self.look()}")

    def commit(self) -> None:
        self.notes.append(f"committed: {self.look()}")

    def abort(self) -> None:
        self.notes.append("abort")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    device = ZonedDevice.open(create(tmp_path / "image"))
    yield device.port("logged", VIRTIO)
    device.close()


@pytest.fixture
def notes(port: Port) -> Notes:
    contested: set[int] = {9}
    port.intents = Intents(lambda zone_no: bool(contested) if zone_no < 0 else zone_no in contested)
    notes = port.intents.current.log = Notes()
    notes.look = lambda: (
        port.device.image._live[3] // 65521 >> 4,
        "locked" if port.device.lock.locked() else "unlocked",
    )
    return notes


def intent(operation: Operation, sector: int, nr_sectors: int, *, committed: bool, cond: int = 0) -> Intent:
    return Intent(operation, sector, nr_sectors, Condition(cond), committed, all_zones=nr_sectors == ALL_ZONES)


def carry_out(port: Port, operation: Operation, sector: int) -> None:
    """Write to *sector*, or append, which must land there; the zone begins at START."""
    if operation is Operation.WRITE:
        assert port.write(sector, 1, [bytes(512)]) is Status.OK
    else:
        assert port.append(START, 1, [bytes(512)]) == (Status.OK, sector)


def test_a_write_is_logged_before_and_after_under_the_lock(port: Port, notes: Notes) -> None:
    assert not port.write(START, 2, [bytes(1024)])
    assert notes.notes == [
        f"begin WRITE {START} 2 0: (0, 'locked')",
        "committed: (2, 'locked')",  # what survives the process has the new wp by then
    ]


def test_an_append_is_logged_with_where_it_lands(port: Port, notes: Notes) -> None:
    port.append(START, 2, [bytes(1024)])
    notes.notes.clear()
    assert port.append(START, 1, [bytes(512)]) == (Status.OK, START + 2)
    assert notes.notes[0].startswith(f"begin APPEND {START + 2} 1 0")


def test_management_is_logged_with_the_condition_before(port: Port, notes: Notes) -> None:
    port.manage(Operation.OPEN, START)
    port.manage(Operation.CLOSE, START)
    port.manage_all(Operation.RESET)
    assert [text.partition(":")[0] for text in notes.notes] == [
        f"begin OPEN {START} 0 1", "committed",
        f"begin CLOSE {START} 0 3", "committed",
        f"begin RESET 0 {ALL_ZONES} 0", "committed",
    ]  # fmt: skip


def test_what_is_refused_leaves_no_record(port: Port, notes: Notes) -> None:
    assert port.write(START + 1, 1, [bytes(512)])
    assert port.append(START + 1, 1, [bytes(512)])[0]
    assert notes.notes == []
    assert port.manage(Operation.CLOSE, START)
    assert [text.partition(" ")[0] for text in notes.notes] == ["begin", "abort"]
    assert port.manage(Operation.CLOSE, 1 << 60)


def test_a_failing_host_leaves_no_record(port: Port, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_buffers: object, _offset: int) -> int:
        raise OSError(5, "broken")

    monkeypatch.setattr(port.device.access, "pwritev", broken)
    assert port.write(START, 1, [bytes(512)]) is Status.IO_ERROR
    assert [text.partition(" ")[0] for text in notes.notes] == ["begin", "abort"]


def test_reads_and_ports_without_log_are_left_alone(port: Port, notes: Notes) -> None:
    port.read(0, 1, [bytearray(512)])
    assert port.intents is not None
    port.intents.current.log = None
    port.write(START, 1, [bytes(512)])
    assert notes.notes == []


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_what_is_committed_is_answered_and_not_done_again(port: Port, notes: Notes, operation: Operation) -> None:
    notes.intent = intent(operation, START + 7, 1, committed=True)
    carry_out(port, operation, START + 7)
    assert port.zone(3).wp == START
    assert notes.notes == ["committed: (0, 'unlocked')"]


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_an_intent_whose_wp_has_not_moved_is_executed(port: Port, notes: Notes, operation: Operation) -> None:
    notes.intent = intent(operation, START, 1, committed=False)
    carry_out(port, operation, START)
    assert port.zone(3).wp == START + 1


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_an_intent_whose_wp_has_moved_is_done(port: Port, notes: Notes, operation: Operation) -> None:
    port.write(START, 1, [b"1" * 512])
    notes.intent = intent(operation, START, 1, committed=False)
    carry_out(port, operation, START)
    assert port.zone(3).wp == START + 1


def test_a_write_that_filled_its_zone_is_seen(port: Port) -> None:
    port.write(START, ZONE, [bytes(512 * ZONE)])
    assert port.zone(3).cond is Condition.FULL
    assert is_done(port.device, intent(Operation.WRITE, START + ZONE - 1, 1, committed=False))


def test_a_finished_zone_was_not_written(port: Port) -> None:
    port.manage(Operation.FINISH, START)
    assert not is_done(port.device, intent(Operation.WRITE, START, 1, committed=False))


def test_conventional_writes_are_executed_again(port: Port, notes: Notes) -> None:
    notes.intent = intent(Operation.WRITE, 5, 1, committed=False)
    assert port.write(5, 1, [b"c" * 512]) is Status.OK
    data = bytearray(512)
    port.read(5, 1, [data])
    assert data == b"c" * 512


@pytest.mark.parametrize("cond", [Condition.IMP_OPEN, Condition.EXP_OPEN])
def test_a_close_that_emptied_its_zone_is_done(port: Port, notes: Notes, cond: Condition) -> None:
    notes.intent = intent(Operation.CLOSE, START, 0, committed=False, cond=cond)
    assert port.manage(Operation.CLOSE, START) is Status.OK
    assert port.zone(3).cond is Condition.EMPTY


def test_a_close_of_an_empty_zone_is_still_refused(port: Port, notes: Notes) -> None:
    notes.intent = intent(Operation.CLOSE, START, 0, committed=False, cond=Condition.EMPTY)
    assert port.manage(Operation.CLOSE, START) is Status.BAD_TRANSITION


@pytest.mark.parametrize("operation", [Operation.OPEN, Operation.FINISH, Operation.RESET])
def test_other_management_is_executed_again(port: Port, notes: Notes, operation: Operation) -> None:
    port.manage(operation, START)
    before = port.zone(3)
    notes.intent = intent(operation, START, 0, committed=False)
    assert port.manage(operation, START) is Status.OK
    assert port.zone(3) == before


def test_reset_all_is_executed_again(port: Port, notes: Notes) -> None:
    port.write(4 * ZONE, 1, [bytes(512)])
    assert port.intents is not None
    port.intents = Intents(lambda _: False)
    port.intents.current.log = notes
    notes.intent = intent(Operation.RESET, 0, ALL_ZONES, committed=False)
    assert port.manage_all(Operation.RESET) is Status.OK
    assert port.zone(4).cond is Condition.EMPTY


def test_contested_zones_are_not_guessed_at(port: Port, notes: Notes) -> None:
    nine = 9 * ZONE
    notes.intent = intent(Operation.APPEND, nine, 1, committed=False)
    assert port.append(nine, 1, [bytes(512)])[0] is Status.IO_ERROR
    notes.intent = intent(Operation.RESET, nine, 0, committed=False)
    assert port.manage(Operation.RESET, nine) is Status.IO_ERROR
    notes.intent = intent(Operation.RESET, 0, ALL_ZONES, committed=False)
    assert port.manage_all(Operation.RESET) is Status.IO_ERROR
    assert last_refusal(port).rule == DeviceRule.CONTESTED
    notes.intent = intent(Operation.APPEND, nine, 1, committed=True)
    assert port.append(nine, 1, [bytes(512)]) == (Status.OK, nine), "what is marked needs no guess"


def test_conventional_writes_are_never_contested(port: Port, notes: Notes) -> None:
    port.intents = Intents(lambda _: True)
    port.intents.current.log = notes
    notes.intent = intent(Operation.WRITE, 5, 1, committed=False)
    assert port.write(5, 1, [bytes(512)]) is Status.OK


def test_a_record_of_another_zone_than_the_request_is_of_is_no_answer(port: Port, notes: Notes) -> None:
    notes.intent = intent(Operation.APPEND, START, 1, committed=True)
    assert port.append(START + ZONE, 1, [bytes(512)]) == (Status.OK, START + ZONE)
    assert port.zone(4).wp == START + ZONE + 1


def test_a_record_of_a_zone_behind_the_end_is_no_answer(port: Port, notes: Notes) -> None:
    end = port.geometry.size
    notes.intent = intent(Operation.APPEND, end, 1, committed=True)
    assert port.append(end, 1, [bytes(512)])[0] is not Status.OK
    assert notes.notes == []


def test_a_write_to_a_contested_sequential_zone_is_not_guessed_at(port: Port, notes: Notes) -> None:
    nine = 9 * ZONE
    notes.intent = intent(Operation.WRITE, nine, 1, committed=False)
    assert port.write(nine, 1, [bytes(512)]) is Status.IO_ERROR
    assert last_refusal(port).rule == DeviceRule.CONTESTED
    assert port.zone(9).wp == nine


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_a_long_write_is_logged_as_a_short_one_is(port: Port, notes: Notes, operation: Operation) -> None:
    port.device.access.short_sectors = 1
    if operation is Operation.WRITE:
        assert not port.write(START, 2, [bytes(1024)])
    else:
        assert port.append(START, 2, [bytes(1024)]) == (Status.OK, START)
    assert notes.notes == [f"begin {operation.name} {START} 2 0: (0, 'locked')", "committed: (2, 'locked')"]


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_a_long_write_that_the_host_fails_leaves_no_record(port: Port, notes: Notes, operation: Operation) -> None:
    def broken(_buffers: object, _offset: int) -> int:
        raise OSError(5, "broken")

    port.device.access.short_sectors = 1
    port.device.access.pwritev = broken
    if operation is Operation.WRITE:
        assert port.write(START, 2, [bytes(1024)]) is Status.IO_ERROR
    else:
        assert port.append(START, 2, [bytes(1024)]) == (Status.IO_ERROR, START)
    assert [text.partition(" ")[0] for text in notes.notes] == ["begin", "abort"]


def test_management_of_the_first_zone_is_logged_and_of_what_lies_outside_is_not(tmp_path: Path) -> None:
    geometry = Geometry(size=2500 * 64, zone_size=64, zone_capacity=64)
    device = ZonedDevice.open(create(tmp_path / "image", geometry))
    port = device.port("logged", VIRTIO)
    port.intents = Intents(lambda _: False)
    log = port.intents.current.log = Notes()
    assert port.manage(Operation.OPEN, 0) is Status.OK
    assert port.manage(Operation.RESET, 64, 2400) is Status.OK, "in several portions"
    assert port.manage(Operation.RESET, 2499 * 64) is Status.OK
    assert [text.partition(":")[0] for text in log.notes] == [
        "begin OPEN 0 0 1", "committed",
        "begin RESET 64 0 1", "committed",
        f"begin RESET {2499 * 64} 0 1", "committed",
    ]  # fmt: skip
    log.notes.clear()
    for sector in (-64, 2500 * 64):
        assert port.manage(Operation.OPEN, sector) is Status.OUT_OF_RANGE
    assert [text for text in log.notes if text != "abort"] == []
    device.close()


def test_a_refused_reset_of_all_zones_leaves_no_record(port: Port, notes: Notes) -> None:
    assert port.manage_all(Operation.OPEN) is Status.OK, "of the CLOSED zones, of which there are none"
    notes.notes.clear()
    for zone_no in range(3, 10):
        assert port.write(zone_no * ZONE, 1, [bytes(512)]) is Status.OK
        assert port.manage(Operation.CLOSE, zone_no * ZONE) is Status.OK
    notes.notes.clear()
    assert port.manage_all(Operation.OPEN) is Status.OPEN_RESOURCE
    assert [text.partition(" ")[0] for text in notes.notes] == ["begin", "abort"]
    assert (last_refusal(port).sector, last_refusal(port).nr_sectors) == (0, 0)


def test_each_change_is_looked_for_as_it_was_logged(port: Port, notes: Notes) -> None:
    port.write(START, 2, [bytes(1024)])
    port.append(START, 1, [bytes(512)])
    port.manage(Operation.CLOSE, START)
    port.manage_all(Operation.RESET)
    assert notes.asked == [
        (Operation.WRITE, START, 2),
        (Operation.APPEND, START, 1),
        (Operation.CLOSE, START, 0),
        (Operation.RESET, 0, ALL_ZONES),
    ]


def test_what_became_of_commands_on_areas(tmp_path: Path) -> None:
    geometry = Geometry(size=64, zone_size=32, zone_capacity=24, zrwa_size=8, zrwa_granularity=4)
    ZonedDevice.create(tmp_path / "z.img", geometry, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "z.img")
    port = device.port("test", ZNS)
    port.intents = Intents(lambda _: False)
    notes = port.intents.current.log = Notes()

    def done(operation: Operation, sector: int, nr_sectors: int = 0) -> bool:
        return is_done(device, intent(operation, sector, nr_sectors, committed=False))

    assert not done(Operation.ALLOCATE_ZRWA, 0)
    assert not port.allocate_zrwa(0)
    assert notes.notes == ["begin ALLOCATE_ZRWA 0 0 0: None", "committed: None"]
    assert done(Operation.ALLOCATE_ZRWA, 0)
    notes.intent = intent(Operation.ALLOCATE_ZRWA, 0, 0, committed=False)
    assert port.allocate_zrwa(0) is Status.OK, "it comes again after a kill"
    notes.intent = None
    # In the area a write can be done again, and leaves no trace in wp.
    assert not port.write(4, 4, (bytes(2048),))
    assert not done(Operation.WRITE, 4, 4)
    # Behind it a write moves wp: beyond its beginning, or not so far.
    assert not port.write(2, 8, (bytes(4096),))
    assert done(Operation.WRITE, 2, 8)
    assert not port.write(8, 6, (bytes(3072),))
    assert port.zone(0).wp == 8
    assert not done(Operation.WRITE, 8, 6)
    assert not port.write(8, 6, (bytes(3072),))
    notes.notes.clear()
    assert not done(Operation.FLUSH_ZRWA, 11)
    assert not port.flush_zrwa(11)
    assert notes.notes == ["begin FLUSH_ZRWA 11 0 0: None", "committed: None"]
    assert done(Operation.FLUSH_ZRWA, 11)
    notes.intent = intent(Operation.FLUSH_ZRWA, 11, 0, committed=False)
    assert port.flush_zrwa(11) is Status.OK
    notes.intent = None
    notes.notes.clear()
    assert port.flush_zrwa(11) is Status.ZRWA_RANGE
    assert notes.notes == []
    device.close()
