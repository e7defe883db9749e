"""What is answered from a record, what is executed, and what is not guessed at: every picture that a kill can leave."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vhost_user.serving import ZONE, create
from zonefs_emu.device.device import ALL_ZONES, Port, ZonedDevice
from zonefs_emu.device.rules import Rule
from zonefs_emu.device.witness import Recalled, Witnessing, has_landed
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

START = 3 * ZONE


class Notes:
    """A witness that writes down what it is told and recalls what it is given."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.recalled: Recalled | None = None
        self.look: Callable[[], object] = lambda: None

    def recall(self, operation: Operation, sector: int, nr_sectors: int) -> Recalled | None:
        return self.recalled

    def intend(self, operation: Operation, sector: int, nr_sectors: int, cond: int) -> None:
        self.told.append(f"intend {operation.name} {sector} {nr_sectors} {cond}: {self.look()}")

    def landed(self) -> None:
        self.told.append(f"landed: {self.look()}")

    def withdraw(self) -> None:
        self.told.append("withdraw")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    device = ZonedDevice.open(create(tmp_path / "image"))
    yield device.port("witnessed", VIRTIO)
    device.close()


@pytest.fixture
def notes(port: Port) -> Notes:
    contested: set[int] = {9}
    port.witnessing = Witnessing(lambda zone_no: bool(contested) if zone_no < 0 else zone_no in contested)
    notes = port.witnessing.current.witness = Notes()
    notes.look = lambda: (
        port.device.image._live[3] // 65521 >> 4,
        "locked" if port.device.lock.locked() else "unlocked",
    )
    return notes


def recalled(operation: Operation, sector: int, nr_sectors: int, *, landed: bool, cond: int = 0) -> Recalled:
    return Recalled(operation, sector, nr_sectors, Condition(cond), landed, all_zones=nr_sectors == ALL_ZONES)


def carry_out(port: Port, operation: Operation, sector: int) -> None:
    """Write to *sector*, or append, which must land there; the zone begins at START."""
    if operation is Operation.WRITE:
        assert port.write(sector, 1, [bytes(512)]) is Status.OK
    else:
        assert port.append(START, 1, [bytes(512)]) == (Status.OK, sector)


def test_a_write_is_witnessed_before_and_after_under_the_lock(port: Port, notes: Notes) -> None:
    assert not port.write(START, 2, [bytes(1024)])
    assert notes.told == [
        f"intend WRITE {START} 2 0: (0, 'locked')",
        "landed: (2, 'locked')",  # what survives the process has the new wp by then
    ]


def test_an_append_is_witnessed_with_where_it_lands(port: Port, notes: Notes) -> None:
    port.append(START, 2, [bytes(1024)])
    notes.told.clear()
    assert port.append(START, 1, [bytes(512)]) == (Status.OK, START + 2)
    assert notes.told[0].startswith(f"intend APPEND {START + 2} 1 0")


def test_management_is_witnessed_with_the_condition_before(port: Port, notes: Notes) -> None:
    port.manage(Operation.OPEN, START)
    port.manage(Operation.CLOSE, START)
    port.manage_all(Operation.RESET)
    assert [text.partition(":")[0] for text in notes.told] == [
        f"intend OPEN {START} 0 1", "landed",
        f"intend CLOSE {START} 0 3", "landed",
        f"intend RESET 0 {ALL_ZONES} 0", "landed",
    ]  # fmt: skip


def test_what_is_refused_leaves_no_record(port: Port, notes: Notes) -> None:
    assert port.write(START + 1, 1, [bytes(512)])
    assert port.append(START + 1, 1, [bytes(512)])[0]
    assert notes.told == []
    assert port.manage(Operation.CLOSE, START)
    assert [text.partition(" ")[0] for text in notes.told] == ["intend", "withdraw"]
    assert port.manage(Operation.CLOSE, 1 << 60)


def test_a_failing_host_leaves_no_record(port: Port, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_buffers: object, _offset: int) -> int:
        raise OSError(5, "broken")

    for name in ("_pwritev", "pwritev"):
        if hasattr(port, name):
            monkeypatch.setattr(port, name, broken)
    assert port.write(START, 1, [bytes(512)]) is Status.IO_ERROR
    assert [text.partition(" ")[0] for text in notes.told] == ["intend", "withdraw"]


def test_reads_and_ports_without_witness_are_left_alone(port: Port, notes: Notes) -> None:
    port.read(0, 1, [bytearray(512)])
    assert port.witnessing is not None
    port.witnessing.current.witness = None
    port.write(START, 1, [bytes(512)])
    assert notes.told == []


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_what_landed_is_answered_and_not_done_again(port: Port, notes: Notes, operation: Operation) -> None:
    notes.recalled = recalled(operation, START + 7, 1, landed=True)
    carry_out(port, operation, START + 7)
    assert port.zone(3).wp == START
    assert notes.told == ["landed: (0, 'unlocked')"]


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_an_intent_whose_wp_has_not_moved_is_executed(port: Port, notes: Notes, operation: Operation) -> None:
    notes.recalled = recalled(operation, START, 1, landed=False)
    carry_out(port, operation, START)
    assert port.zone(3).wp == START + 1


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_an_intent_whose_wp_has_moved_is_done(port: Port, notes: Notes, operation: Operation) -> None:
    port.write(START, 1, [b"1" * 512])
    notes.recalled = recalled(operation, START, 1, landed=False)
    carry_out(port, operation, START)
    assert port.zone(3).wp == START + 1


def test_a_write_that_filled_its_zone_is_seen(port: Port) -> None:
    port.write(START, ZONE, [bytes(512 * ZONE)])
    assert port.zone(3).cond is Condition.FULL
    assert has_landed(port, recalled(Operation.WRITE, START + ZONE - 1, 1, landed=False))


def test_a_finished_zone_was_not_written(port: Port) -> None:
    port.manage(Operation.FINISH, START)
    assert not has_landed(port, recalled(Operation.WRITE, START, 1, landed=False))


def test_conventional_writes_are_executed_again(port: Port, notes: Notes) -> None:
    notes.recalled = recalled(Operation.WRITE, 5, 1, landed=False)
    assert port.write(5, 1, [b"c" * 512]) is Status.OK
    data = bytearray(512)
    port.read(5, 1, [data])
    assert data == b"c" * 512


@pytest.mark.parametrize("cond", [Condition.IMP_OPEN, Condition.EXP_OPEN])
def test_a_close_that_emptied_its_zone_is_done(port: Port, notes: Notes, cond: Condition) -> None:
    notes.recalled = recalled(Operation.CLOSE, START, 0, landed=False, cond=cond)
    assert port.manage(Operation.CLOSE, START) is Status.OK
    assert port.zone(3).cond is Condition.EMPTY


def test_a_close_of_an_empty_zone_is_still_refused(port: Port, notes: Notes) -> None:
    notes.recalled = recalled(Operation.CLOSE, START, 0, landed=False, cond=Condition.EMPTY)
    assert port.manage(Operation.CLOSE, START) is Status.BAD_TRANSITION


@pytest.mark.parametrize("operation", [Operation.OPEN, Operation.FINISH, Operation.RESET])
def test_other_management_is_executed_again(port: Port, notes: Notes, operation: Operation) -> None:
    port.manage(operation, START)
    before = port.zone(3)
    notes.recalled = recalled(operation, START, 0, landed=False)
    assert port.manage(operation, START) is Status.OK
    assert port.zone(3) == before


def test_reset_all_is_executed_again(port: Port, notes: Notes) -> None:
    port.write(4 * ZONE, 1, [bytes(512)])
    assert port.witnessing is not None
    port.witnessing = Witnessing(lambda _: False)
    port.witnessing.current.witness = notes
    notes.recalled = recalled(Operation.RESET, 0, ALL_ZONES, landed=False)
    assert port.manage_all(Operation.RESET) is Status.OK
    assert port.zone(4).cond is Condition.EMPTY


def test_contested_zones_are_not_guessed_at(port: Port, notes: Notes) -> None:
    nine = 9 * ZONE
    notes.recalled = recalled(Operation.APPEND, nine, 1, landed=False)
    assert port.append(nine, 1, [bytes(512)])[0] is Status.IO_ERROR
    notes.recalled = recalled(Operation.RESET, nine, 0, landed=False)
    assert port.manage(Operation.RESET, nine) is Status.IO_ERROR
    notes.recalled = recalled(Operation.RESET, 0, ALL_ZONES, landed=False)
    assert port.manage_all(Operation.RESET) is Status.IO_ERROR
    assert port.last_refusal is not None
    assert port.last_refusal.rule is Rule.CONTESTED
    notes.recalled = recalled(Operation.APPEND, nine, 1, landed=True)
    assert port.append(nine, 1, [bytes(512)]) == (Status.OK, nine), "what is marked needs no guess"


def test_conventional_writes_are_never_contested(port: Port, notes: Notes) -> None:
    port.witnessing = Witnessing(lambda _: True)
    port.witnessing.current.witness = notes
    notes.recalled = recalled(Operation.WRITE, 5, 1, landed=False)
    assert port.write(5, 1, [bytes(512)]) is Status.OK


def test_a_record_of_another_zone_than_the_request_is_of_is_no_answer(port: Port, notes: Notes) -> None:
    notes.recalled = recalled(Operation.APPEND, START, 1, landed=True)
    assert port.append(START + ZONE, 1, [bytes(512)]) == (Status.OK, START + ZONE)
    assert port.zone(4).wp == START + ZONE + 1


def test_a_record_of_a_zone_behind_the_end_is_no_answer(port: Port, notes: Notes) -> None:
    end = port.geometry.size
    notes.recalled = recalled(Operation.APPEND, end, 1, landed=True)
    assert port.append(end, 1, [bytes(512)])[0] is not Status.OK
    assert notes.told == []


def test_a_write_to_a_contested_sequential_zone_is_not_guessed_at(port: Port, notes: Notes) -> None:
    nine = 9 * ZONE
    notes.recalled = recalled(Operation.WRITE, nine, 1, landed=False)
    assert port.write(nine, 1, [bytes(512)]) is Status.IO_ERROR
    assert port.last_refusal is not None
    assert port.last_refusal.rule is Rule.CONTESTED
    assert port.zone(9).wp == nine
