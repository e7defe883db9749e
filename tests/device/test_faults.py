import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.daemon.answers import EXPLAINER
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import NR_FAULTS_MAX, Effect, Fault, FaultTable
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZBC, Operation
from zonefs_emu.model.zone import Condition, Zone, ZoneType
from zonefs_emu.persist.check import check_image
from zonefs_emu.persist.image import Image

WRITES = frozenset((Operation.WRITE,))


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
        ({"effect": Effect.FAIL, "operations": WRITES, "nth": 0}, "counts from 1"),
        ({"effect": Effect.FAIL, "operations": frozenset((Operation.SET_COND,))}, "what a host asks for: read, write"),
        ({"effect": Effect.FAIL, "operations": WRITES, "status": Status.OK}, "other than OK"),
        ({"effect": Effect.FAIL, "operations": WRITES, "delay_max_ns": 5}, "takes a time"),
        ({"effect": Effect.PARTIAL, "operations": WRITES}, "number of sectors"),
        ({"effect": Effect.PARTIAL, "operations": frozenset((Operation.READ,)), "nr_sectors": 1}, "writes or appends"),
        ({"effect": Effect.COND, "operations": WRITES, "cond": Condition.EMPTY}, "READONLY or OFFLINE"),
        ({"effect": Effect.DELAY, "operations": WRITES}, "takes a time"),
        ({"effect": Effect.DELAY, "operations": WRITES, "delay_min_ns": 9, "delay_max_ns": 5}, "takes a time"),
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
        b"{", b"[1]", b"[[1]]", b"[[1,2],{}]", b"[{},]", b"[{}] x", b'{"version":2}', b"\xff\xfe", b"7", b"[" * 30_000,
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
    with pytest.raises(UsageError, match="another version, which a new fault would destroy: remove it first"):
        table.add(Fault(effect=Effect.RECOMMEND_RESET))
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
    with pytest.raises(UsageError, match="the image holds"):
        device.inject(Fault(effect=Effect.FAIL, operations=WRITES))
    assert not device.faults
    device.save_faults()


# -- through a port ---------------------------------------------------------------------------------------------------

GEOMETRY = Geometry(size=64 * 16, zone_size=64, zone_capacity=48, conventional=((0, 1),), max_append=32)
ZONE = 64 * 2


@pytest.fixture
def device(tmp_path: Path) -> Iterator[ZonedDevice]:
    ZonedDevice.create(tmp_path / "z.img", GEOMETRY, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "z.img")
    yield device
    device.close()


def reopened(device: ZonedDevice, path: Path) -> ZonedDevice:
    device.close()
    return ZonedDevice.open(path)


def test_a_write_fails_without_advance_and_the_next_succeeds(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=2, status=Status.IO_ERROR))
    assert port.write(ZONE, 8, (bytes(4096),)) is Status.OK
    assert port.write(ZONE + 8, 8, (bytes(4096),)) is Status.IO_ERROR
    assert port.zone(2).wp == ZONE + 8
    assert port.last_refusal is not None
    assert "a fault was injected" in EXPLAINER.explain(port.last_refusal, device.geometry)
    assert port.write(ZONE + 8, 8, (bytes(4096),)) is Status.OK


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_a_partial_write_advances_wp_and_fails(device: ZonedDevice, operation: Operation) -> None:
    port = device.port("test", VIRTIO)
    device.inject(
        Fault(effect=Effect.PARTIAL, operations=frozenset((operation,)), nr_sectors=3, status=Status.IO_ERROR)
    )  # fmt: skip
    data = (b"a" * 2048, b"b" * 2048)
    status = port.write(ZONE, 8, data) if operation is Operation.WRITE else port.append(ZONE, 8, data)[0]
    assert status is Status.IO_ERROR
    assert port.zone(2).wp == ZONE + 3
    back = bytearray(4096)
    assert port.read(ZONE, 8, (back,)) is Status.OK
    assert back == b"a" * 1536 + bytes(2560)


@pytest.mark.parametrize("cond", [Condition.READONLY, Condition.OFFLINE])
def test_a_zone_fails_after_the_nth_operation(device: ZonedDevice, cond: Condition) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.COND, operations=WRITES, nth=2, cond=cond, first_zone=2, nr_zones=1))
    assert port.write(ZONE, 8, (bytes(4096),)) is Status.OK
    assert port.write(ZONE + 8, 8, (bytes(4096),)) in (Status.ZONE_READONLY, Status.ZONE_OFFLINE)
    assert port.zone(2).cond is cond


@pytest.mark.parametrize("operation", [Operation.OPEN, Operation.CLOSE, Operation.FINISH, Operation.RESET])
def test_management_fails_in_all_its_forms(device: ZonedDevice, operation: Operation) -> None:
    port = device.port("test", VIRTIO)
    assert port.write(ZONE, 8, (bytes(4096),)) is Status.OK
    before = port.report(0, 16)
    device.inject(
        Fault(effect=Effect.FAIL, operations=frozenset((operation,)), every=True, status=Status.BAD_TRANSITION)
    )  # fmt: skip
    assert port.manage(operation, ZONE) is Status.BAD_TRANSITION
    assert port.manage(operation, ZONE, 3) is Status.BAD_TRANSITION
    assert port.manage_all(operation) is Status.BAD_TRANSITION
    assert port.report(0, 16) == before
    device.remove_fault(1)
    assert port.manage(operation, ZONE) is Status.OK


def test_a_command_on_several_zones_meets_the_fault_of_one(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    resets = frozenset((Operation.RESET,))
    device.inject(Fault(effect=Effect.FAIL, operations=resets, first_zone=5, nr_zones=1, every=True))
    assert port.manage(Operation.RESET, 64, 4) is Status.OK
    assert port.manage(Operation.RESET, 64, 5) is Status.IO_ERROR
    assert port.last_refusal is not None
    assert (port.last_refusal.zone_no, port.last_refusal.sector) == (5, 64)
    assert port.manage_all(Operation.RESET) is Status.IO_ERROR
    device.remove_fault(1)
    device.inject(Fault(effect=Effect.COND, operations=resets, first_zone=5, nr_zones=2, cond=Condition.OFFLINE))
    assert port.manage(Operation.RESET, 64, 6) is Status.ZONE_OFFLINE
    assert [zone.zone_no for zone in port.report(0, 16) if zone.cond is Condition.OFFLINE] == [5]


def test_the_cost_does_not_grow_with_the_zones_of_a_command(
    device: ZonedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.RESET,)), nth=9))
    calls: list[int] = []
    fires = Fault.fires

    def counted(fault: Fault, operation: Operation, zone_no: int, nr_zones: int = 1) -> int:
        calls.append(nr_zones)
        return fires(fault, operation, zone_no, nr_zones)

    monkeypatch.setattr(Fault, "fires", counted)
    assert port.manage(Operation.RESET, 64, 15) is Status.OK
    assert port.manage_all(Operation.RESET) is Status.OK
    assert port.flush() is Status.OK
    assert calls == [15, 16, 16]


def test_a_read_across_zones_is_one_read(device: ZonedDevice) -> None:
    port = device.port("test", ZBC)
    for zone_no in (2, 3):
        assert port.write(zone_no * 64, 48, (bytes(48 * 512),)) is Status.OK
    reads = frozenset((Operation.READ,))
    device.inject(Fault(effect=Effect.FAIL, operations=reads, first_zone=3, nr_zones=1, nth=2))
    answers = [port.read(ZONE, 64 + 8, (bytearray(72 * 512),)) for _ in range(3)]
    assert answers == [Status.OK, Status.IO_ERROR, Status.OK]
    assert device.faults.faults[0].seen == 3


def test_a_zone_fails_at_a_flush(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    flushes = frozenset((Operation.FLUSH,))
    device.inject(
        Fault(effect=Effect.COND, operations=flushes, nth=2, cond=Condition.OFFLINE, first_zone=6, nr_zones=1)
    )
    assert [port.flush(), port.zone(6).cond] == [Status.OK, Condition.EMPTY]
    assert [port.flush(), port.zone(6).cond] == [Status.OK, Condition.OFFLINE]


def test_a_request_beyond_the_device_fails_no_zone(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.COND, operations=WRITES, every=True, cond=Condition.OFFLINE))
    assert port.write(64 * 999, 8, (bytes(4096),)) is Status.OUT_OF_RANGE
    assert all(zone.cond is not Condition.OFFLINE for zone in port.report(0, 16))


@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.APPEND])
def test_half_of_a_request_beyond_the_device_that_has_no_data(device: ZonedDevice, operation: Operation) -> None:
    """A front-end that leaves the refusal to the device passes what buffers there are."""
    device.inject(Fault(effect=Effect.PARTIAL, operations=frozenset((operation,)), nr_sectors=8, every=True))
    port = device.port("test", VIRTIO)
    start, size = 4 * device.geometry.zone_size, device.geometry.size
    if operation is Operation.WRITE:
        assert port.write(start, size, []) is Status.IO_ERROR
    else:
        assert port.append(start, size, [])[0] is Status.IO_ERROR
    assert port.zone(4).wp == start


def test_reads_and_flushes_fail(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.READ, Operation.FLUSH)), nth=1))
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.FLUSH,)), status=Status.NO_SPACE))
    assert port.read(0, 8, (bytearray(4096),)) is Status.IO_ERROR
    assert port.read(0, 8, (bytearray(4096),)) is Status.OK
    assert port.flush() is Status.NO_SPACE
    assert port.flush() is Status.OK


def test_delays_wait_on_the_devices_clock(device: ZonedDevice) -> None:
    slept: list[int] = []
    device.sleep_ns = slept.append
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.DELAY, operations=WRITES, every=True, delay_min_ns=5, delay_max_ns=5))
    assert port.write(0, 8, (bytes(4096),)) is Status.OK
    assert port.append(ZONE, 8, (bytes(4096),))[0] is Status.OK
    assert port.write(8, 8, (bytes(4096),)) is Status.OK
    assert slept == [5, 5]


def test_delays_are_cut_short_before_the_end(device: ZonedDevice) -> None:
    hour = 3600 * 1_000_000_000
    port = device.port("test", VIRTIO)
    device.inject(
        Fault(
            effect=Effect.DELAY,
            operations=frozenset((Operation.READ,)),
            every=True,
            delay_min_ns=hour,
            delay_max_ns=hour,
        )
    )
    answers: list[Status] = []
    thread = threading.Thread(target=lambda: answers.append(port.read(0, 8, (bytearray(4096),))), daemon=True)
    thread.start()
    device.stop_waiting()
    thread.join(60)
    assert answers == [Status.OK]
    # And none begins any more.
    assert port.read(0, 8, (bytearray(4096),)) is Status.OK


def test_reports_are_changed_and_the_machine_is_not(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    assert port.write(ZONE, 8, (bytes(4096),)) is Status.OK
    device.inject(Fault(effect=Effect.LIE, first_zone=2, nr_zones=1, nr_sectors=4))
    assert port.zone(2).wp == ZONE + 12
    assert port.report(2, 1, frozenset((Condition.IMP_OPEN,)))[0].wp == ZONE + 12
    assert port.write(ZONE + 12, 8, (bytes(4096),)) is Status.UNALIGNED_WP
    assert port.write(ZONE + 8, 8, (bytes(4096),)) is Status.OK


def test_faults_and_their_counts_last(device: ZonedDevice, tmp_path: Path) -> None:
    device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=3))
    port = device.port("test", VIRTIO)
    assert port.write(0, 8, (bytes(4096),)) is Status.OK
    again = reopened(device, tmp_path / "z.img")
    port = again.port("test", VIRTIO)
    assert [port.write(0, 8, (bytes(4096),)) for _ in range(3)] == [Status.OK, Status.IO_ERROR, Status.OK]
    again.close()


#: Opens the image, writes a sector so many times, says what came of it, and dies.
KILLED = """
import os, signal, sys
from pathlib import Path
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.transitions import VIRTIO
port = ZonedDevice.open(Path(sys.argv[1])).port("killed", VIRTIO)
for _ in range(int(sys.argv[2])):
    print(port.write(0, 1, (bytes(512),)).name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_fault_fires_at_the_nth_whoever_was_killed_meanwhile(device: ZonedDevice, tmp_path: Path) -> None:
    device.inject(Fault(effect=Effect.RECOMMEND_RESET))
    device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=6))
    device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=8, every=True, status=Status.NO_SPACE))
    device.close()
    answers: list[str] = []
    for count in (2, 1, 3, 1, 2, 2):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "z.img"), str(count)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        answers += done.stdout.split()
    assert answers == ["OK"] * 5 + ["IO_ERROR", "OK"] + ["NO_SPACE"] * 4


def test_counting_costs_no_sync(device: ZonedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    port = device.port("test", VIRTIO)
    device.inject(Fault(effect=Effect.DELAY, operations=WRITES, nth=3, every=True, delay_max_ns=1))
    device.sleep_ns = lambda _: None
    written: list[int] = []
    syncs: list[int] = []
    monkeypatch.setattr(device.image.backing, "sync", lambda: syncs.append(len(written)))
    while len(written) < 6:
        assert port.write(0, 8, (bytes(4096),)) is Status.OK
        written.append(8)
    monkeypatch.undo()
    # When it fired for the first time.
    assert set(syncs) == {2}


def test_threads_count_each_operation_once(device: ZonedDevice, tmp_path: Path) -> None:
    """What the thread that counted first has to save must not come after what the second had."""
    device.inject(Fault(effect=Effect.FAIL, operations=WRITES, nth=1000))
    saved: list[int] = []
    save = device.image.save_faults

    def watched(data: bytes, *, durably: bool) -> None:
        saved.append(FaultTable.decode(data).faults[0].seen)
        save(data, durably=durably)

    device.image.save_faults = watched  # type: ignore[method-assign]

    def write() -> None:
        port = device.port("test", VIRTIO)
        for _ in range(100):
            assert port.write(0, 1, (bytes(512),)) is Status.OK

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert saved == sorted(saved)
    assert saved[-1] == 400


def test_too_many_faults_for_the_image_are_refused(device: ZonedDevice) -> None:
    for _ in range(NR_FAULTS_MAX):
        device.inject(Fault(effect=Effect.RECOMMEND_RESET))
    with pytest.raises(UsageError, match="remove one first"):
        device.inject(Fault(effect=Effect.RECOMMEND_RESET))
