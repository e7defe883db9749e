import errno
import json
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import NR_FAULTS_MAX, Effect, Fault, FaultTable
from zonefs_emu.errors import NoSpaceError, Status, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Attribute, Condition, Zone, ZoneType
from zonefs_emu.persist.check import check_image
from zonefs_emu.persist.image import Image

WRITES = frozenset((Operation.WRITE,))
GEOMETRY = Geometry(size=64 * 16, zone_size=64, zone_capacity=48, conventional=((0, 1),), max_append=32)


def zone(zone_no: int, nr_written: int = 8) -> Zone:
    start = zone_no * 64
    return Zone(zone_no, start, 64, 48, start + nr_written, Condition.IMP_OPEN, ZoneType.SWR)


def firings(fault: Fault, count: int, operation: Operation = Operation.WRITE, zone_no: int = 0) -> list[int]:
    return [n for n in range(1, count + 1) if fault.fires(operation, zone_no) == zone_no]


def test_fires_once_at_the_nth_match() -> None:
    assert firings(Fault(effect=Effect.FAIL, operations=WRITES, nth=3), 6) == [3]


def test_fires_at_every_match_from_the_nth_on() -> None:
    assert firings(Fault(effect=Effect.FAIL, operations=WRITES, nth=3, every=True), 6) == [3, 4, 5, 6]


def test_a_long_history_costs_nothing() -> None:
    """The delays of the past are not drawn again when an image is opened."""
    fault = Fault(effect=Effect.DELAY, operations=WRITES, every=True, delay_max_ns=9, seen=10**30)
    assert fault.fires(Operation.WRITE, 0) == 0
    assert 0 <= fault.delay_ns() <= 9


def test_other_operations_and_zones_do_not_count() -> None:
    fault = Fault(effect=Effect.FAIL, operations=WRITES, first_zone=2, nr_zones=3)
    assert firings(fault, 5, Operation.READ, 2) == []
    assert firings(fault, 5, Operation.WRITE, 1) == []
    assert firings(fault, 5, Operation.WRITE, 5) == []
    assert fault.seen == 0
    assert firings(fault, 5, Operation.WRITE, 4) == [1]


def test_an_operation_on_several_zones_matches_once_if_one_of_them_is_the_faults() -> None:
    resets = frozenset((Operation.RESET,))
    fault = Fault(effect=Effect.FAIL, operations=resets, first_zone=5, nr_zones=3, every=True)
    places = [fault.fires(Operation.RESET, first, count) for first, count in ((0, 5), (8, 9), (0, 6), (6, 9), (0, 99))]
    assert places == [-1, -1, 5, 6, 5]
    assert fault.seen == 3
    everywhere = Fault(effect=Effect.FAIL, operations=resets, nth=2)
    assert [everywhere.fires(Operation.RESET, 4, 1 << 40) for _ in range(3)] == [-1, 4, -1]


def test_a_delay_is_drawn_from_its_seed_and_goes_on_after_being_saved() -> None:
    def made() -> Fault:
        return Fault(
            effect=Effect.DELAY, operations=WRITES, every=True, delay_min_ns=10, delay_max_ns=10_000, seed=7
        )  # fmt: skip

    fault = made()
    drawn = []
    for _ in range(6):
        assert fault.fires(Operation.WRITE, 0) == 0
        drawn.append(fault.delay_ns())
    assert all(10 <= delay <= 10_000 for delay in drawn)
    assert len(set(drawn)) > 1
    again = made()
    for _ in range(3):
        assert again.fires(Operation.WRITE, 0) == 0
        again.delay_ns()
    (saved,) = FaultTable.decode(FaultTable([again]).encode()).faults
    rest = []
    for _ in range(3):
        assert saved.fires(Operation.WRITE, 0) == 0
        rest.append(saved.delay_ns())
    assert rest == drawn[3:]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"effect": Effect.FAIL}, "needs the operations"),
        ({"effect": Effect.FAIL, "operations": WRITES, "nth": 0}, "counts operations from 1"),
        ({"effect": Effect.FAIL, "operations": frozenset((Operation.SET_COND,))}, "operations of a host: read, write"),
        ({"effect": Effect.FAIL, "operations": WRITES, "status": Status.OK}, "other than OK"),
        ({"effect": Effect.FAIL, "operations": WRITES, "delay_max_ns": 5}, "a time is needed"),
        ({"effect": Effect.PARTIAL, "operations": WRITES}, "number of sectors"),
        ({"effect": Effect.PARTIAL, "operations": frozenset((Operation.READ,)), "nr_sectors": 1}, "writes or appends"),
        ({"effect": Effect.COND, "operations": WRITES, "cond": Condition.EMPTY}, "READONLY or OFFLINE"),
        ({"effect": Effect.DELAY, "operations": WRITES}, "a time is needed"),
        ({"effect": Effect.DELAY, "operations": WRITES, "delay_min_ns": 9, "delay_max_ns": 5}, "a time is needed"),
        ({"effect": Effect.DELAY, "operations": WRITES, "delay_max_ns": 3601 * 10**9}, "at most 3600 seconds"),
        ({"effect": Effect.LIE, "operations": WRITES}, "every report"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(parts: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Fault(**parts)  # type: ignore[arg-type]  # wrong parts are the point


def test_reports_lie_within_the_zone_and_recommend_a_reset() -> None:
    table = FaultTable()
    table.add(Fault(effect=Effect.LIE, first_zone=1, nr_zones=1, nr_sectors=-4))
    assert table.reported(zone(0)) == zone(0)
    assert table.reported(zone(1)).wp == 64 + 4
    table.add(Fault(effect=Effect.LIE, first_zone=1, nr_zones=1, nr_sectors=1000))
    assert table.reported(zone(1)).wp == 64 + 48
    table.add(Fault(effect=Effect.RECOMMEND_RESET))
    assert table.reported(zone(0)).reset_recommended


def test_ids_are_given_and_taken_back() -> None:
    table = FaultTable()
    assert not table
    first = table.add(Fault(effect=Effect.FAIL, operations=WRITES))
    second = table.add(Fault(effect=Effect.FAIL, operations=WRITES, every=True))
    assert (first.id, second.id) == (1, 2)
    assert table
    assert [fault.id for fault, _ in table.fired(Operation.WRITE, 9)] == [1, 2]
    assert [fault.id for fault, _ in table.fired(Operation.WRITE, 9)] == [2]
    table.remove(1)
    with pytest.raises(UsageError, match="no fault 1"):
        table.remove(1)


def test_the_table_is_bounded() -> None:
    table = FaultTable(Fault(effect=Effect.FAIL, operations=WRITES) for _ in range(NR_FAULTS_MAX))
    with pytest.raises(UsageError, match="remove one first"):
        table.add(Fault(effect=Effect.FAIL, operations=WRITES))


def test_encoding_goes_both_ways() -> None:
    table = FaultTable()
    table.add(Fault(effect=Effect.PARTIAL, operations=frozenset((Operation.APPEND,)), nr_sectors=3, nth=4, seen=2))
    table.add(Fault(effect=Effect.COND, operations=WRITES, cond=Condition.OFFLINE, first_zone=3, nr_zones=2))
    assert FaultTable.decode(table.encode()).faults == table.faults
    plain = json.dumps([fault.as_dict() for fault in table.faults])
    assert FaultTable.decode(plain.encode()).faults == table.faults
    assert FaultTable.decode(b"").faults == []


KNOWN = '{"id":1,"effect":"recommend-reset"}'
FAIL = '{"id":5,"effect":"fail","operations":["write"],"nth":2}'


@pytest.mark.parametrize(
    "entry",
    [
        '{"effect":"explode"}',
        '{ "effect" : "fail", "operations":["write"],\t"size":3.0e+2 ,"size":4}',
        '{"effect":"fail","operations":["levitate"]}',
        '{"effect":"fail","operations":"write"}',
        '{"effect":"fail","operations":["write"],"nth":true}',
        '{"effect":"fail","operations":["write"],"every":1}',
        "{}",
        '{"name":"\\ud800 é"}',
    ],
)
def test_an_entry_of_a_later_version_stays_and_does_nothing(entry: str) -> None:
    text = f"[[7, 3 ,0],{KNOWN}, {entry} ,{FAIL}]".encode()
    table = FaultTable.decode(text)
    assert [entry.id for entry in table.entries] == [1, 2, 5]
    assert [fault.id for fault in table.faults] == [1, 5]
    assert table.entries[1].as_dict() == {"id": 2, "unknown": entry}
    assert not table.fired(Operation.WRITE, 0)
    assert table.fired(Operation.WRITE, 0) == [(table.faults[1], 0)]
    again = FaultTable.decode(table.encode())
    assert f",{entry},".encode() in again.encode() == table.encode()
    assert again.entries == table.entries
    again.add(Fault(effect=Effect.RECOMMEND_RESET))
    assert [entry.id for entry in again.entries] == [1, 2, 5, 6]
    assert f",{entry},".encode() in again.encode()
    again.remove(2)
    assert [entry.id for entry in FaultTable.decode(again.encode()).entries] == [1, 5, 6]


def test_its_own_id_and_a_count_that_is_none_are_kept() -> None:
    table = FaultTable.decode(b'[[{"from":3},2],{"id":9,"new":1},{"effect":"recommend-reset","id":9}]')
    assert [entry.id for entry in table.entries] == [9, 9]
    assert b'{"from":3}' in table.encode()
    old = FaultTable.decode(b'[{"effect":"explode","seen":4}]')
    assert FaultTable.decode(old.encode()).entries == old.entries
    assert FaultTable.decode(b"").encode() == b"[]"


@pytest.mark.parametrize(
    "data",
    [
        b"{", b"[1]", b"[[1]]", b"[[1,2],{}]", b"[{},]", b"[{}] x", b"[{}]7", b"[]]", b'{"version":2}', b"\xff\xfe",
        b"7", b"[" * 30_000,
        b"[[" + b"1" * 5000 + b"],{}]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [0, 1])
def test_a_table_that_means_nothing_stays_until_it_is_removed(data: bytes, version: int) -> None:
    table = FaultTable.decode(data, version)
    assert (table.encode(), table.version, table.faults) == (data, version, [])
    assert not table
    (entry,) = table.entries
    assert entry.as_dict() == {"id": 1, "unknown": data.decode(errors="backslashreplace")}
    with pytest.raises(UsageError, match="another version, which a new fault would destroy: remove it first") as raised:
        table.add(Fault(effect=Effect.RECOMMEND_RESET))
    assert raised.value.exit_code == 1
    table.remove(1)
    assert (table.encode(), table.version) == (b"[]", 0)


def test_an_image_with_faults_of_a_later_version_opens(tmp_path: Path) -> None:
    path = tmp_path / "z.img"
    ZonedDevice.create(path, GEOMETRY, uuid=UUID(int=1))
    image = Image.open(path)
    image.faults_version = 3
    image.save_faults(b"a later text", durably=True)
    image.close()
    device = ZonedDevice.open(path)
    assert not device.faults
    device.save_faults()
    device.close()
    assert check_image(path) == []
    image = Image.open(path)
    assert (image.load_faults(), image.faults_version) == (b"a later text", 3)
    image.close()
    device = ZonedDevice.open(path)
    device.remove_fault(1)
    device.inject(Fault(effect=Effect.RECOMMEND_RESET))
    device.close()
    device = ZonedDevice.open(path)
    assert (device.image.faults_version, len(device.faults.faults)) == (0, 1)
    device.close()


def test_a_fault_that_does_not_fit_beside_later_ones_is_refused_and_forgotten(device: ZonedDevice) -> None:
    device.faults = FaultTable.decode(f'[[0],{{"text":"{"x" * 32_500}"}}]'.encode())
    device.save_faults()
    with pytest.raises(UsageError, match="the image has"):
        device.inject(Fault(effect=Effect.FAIL, operations=WRITES))
    assert not device.faults
    device.save_faults()


def test_a_full_host_adds_and_removes_no_fault(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=nth)) for nth in (1, 2, 3)]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as host:
        host.setattr(device.image.backing, "pwrite", full)
        with pytest.raises(NoSpaceError):
            device.inject(Fault(effect=Effect.RECOMMEND_RESET))
        with pytest.raises(NoSpaceError):
            device.remove_fault(2)
    assert device.faults.entries == device.faults.faults == faults
    device.remove_fault(2)
    assert [fault.id for fault in device.faults.faults] == [1, 3]


def test_a_table_that_cannot_be_read_is_put_back_as_it_was() -> None:
    table = FaultTable.decode(b"a later text", 3)
    put_back = table.remove(1)
    assert (table.encode(), table.version) == (b"[]", 0)
    put_back()
    assert (table.encode(), table.version) == (b"a later text", 3)


def test_a_delay_is_at_most_an_hour_long() -> None:
    hour_ns = 3_600_000_000_000
    fault = Fault(effect=Effect.DELAY, operations=frozenset((Operation.READ,)), delay_max_ns=hour_ns)
    assert fault.delay_max_ns == hour_ns
    with pytest.raises(UsageError, match="a delay is at most 3600 seconds long"):
        Fault(effect=Effect.DELAY, operations=frozenset((Operation.READ,)), delay_max_ns=hour_ns + 1)


def test_reports_recommend_to_finish_active_zones() -> None:
    table = FaultTable()
    table.add(Fault(effect=Effect.RECOMMEND_FINISH, first_zone=1, nr_zones=1))
    assert table.reported(zone(1)._replace(cond=Condition.CLOSED)).attributes == Attribute.FINISH_RECOMMENDED
    assert table.reported(zone(1)._replace(cond=Condition.FULL)).attributes == 0
    assert table.reported(zone(0)._replace(cond=Condition.CLOSED)).attributes == 0


def test_a_poisoned_image_is_closed_without_its_faults(device: ZonedDevice) -> None:
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.WRITE,)), status=Status.IO_ERROR))
    device.image.fail(OSError(5, "a test"), "a test")
    device.close()
