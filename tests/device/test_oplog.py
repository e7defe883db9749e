import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.oplog import FORMAT, Replayed, pattern, read_lines, record, replay
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZBC, Operation
from zonefs_emu.model.zone import Condition

ZONE = 64


def geometry(zone_size: int = ZONE, capacity: int = 48, limit: int = 3) -> Geometry:
    return Geometry(
        size=zone_size * 16, zone_size=zone_size, zone_capacity=capacity, conventional=((0, 1),), max_append=32,
        max_open_zones=limit, max_active_zones=limit,
    )  # fmt: skip


def fresh(path: Path, shape: Geometry) -> ZonedDevice:
    ZonedDevice.create(path, shape, uuid=UUID(int=1))
    return ZonedDevice.open(path)


@pytest.fixture
def log(tmp_path: Path) -> list[str]:
    """A log with every kind of operation in it, accepted and refused."""
    device = fresh(tmp_path / "source.img", geometry())
    file = io.StringIO()
    record(device, file)
    fuse, scsi = device.port("fuse", VIRTIO), device.port("scsi", ZBC)
    data = (bytes(8 * 512),)
    fuse.write(2 * ZONE, 8, data)
    fuse.write(2 * ZONE, 8, data)  # not at wp
    scsi.append(2 * ZONE, 8, data)
    scsi.append(2 * ZONE + 8, 8, data)  # not a zone start
    fuse.read(2 * ZONE, 16, (bytearray(16 * 512),))
    for zone_no in (3, 4, 5):
        fuse.manage(Operation.OPEN, zone_no * ZONE)  # the last one hits the limit
    scsi.manage(Operation.CLOSE, 6 * ZONE)  # ZBC: succeeds on an empty zone
    fuse.manage(Operation.CLOSE, 6 * ZONE)  # virtio: does not
    fuse.manage_all(Operation.FINISH)
    fuse.set_cond(7, Condition.OFFLINE)
    fuse.read(7 * ZONE, 8, (bytearray(4096),))
    fuse.manage(Operation.RESET, 2 * ZONE, 3)
    fuse.flush()
    device.close()
    return file.getvalue().splitlines(keepends=True)


def replayed(path: Path, shape: Geometry, lines: Iterable[str]) -> Replayed:
    device = fresh(path, shape)
    try:
        return replay(lines, device)
    finally:
        device.close()


def test_a_log_begins_with_format_and_geometry_and_has_every_answer(log: list[str]) -> None:
    entries = [json.loads(line) for line in log]
    assert entries[0]["format"] == FORMAT
    assert entries[0]["geometry"]["zone_size"] == ZONE
    statuses = [entry["status"] for entry in entries[1:]]
    assert statuses == [
        "OK", "UNALIGNED_WP", "OK", "NOT_ZONE_START", "OK", "OK", "OK", "ACTIVE_RESOURCE", "OK", "BAD_TRANSITION", "OK",
        "OK", "ZONE_OFFLINE", "OK", "OK",
    ]  # fmt: skip
    assert entries[3]["landed"] == 2 * ZONE + 8


def test_the_same_geometry_gives_the_same_answers(log: list[str], tmp_path: Path) -> None:
    assert replayed(tmp_path / "again.img", geometry(), log) == Replayed(nr_operations=15, difference=None)


def test_a_larger_zone_size_keeps_zones_apart(log: list[str], tmp_path: Path) -> None:
    outcome = replayed(tmp_path / "again.img", geometry(zone_size=128, capacity=96), log)
    assert outcome.difference is None


def test_the_first_difference_is_named(log: list[str], tmp_path: Path) -> None:
    outcome = replayed(tmp_path / "again.img", geometry(limit=8), log)
    assert outcome.difference is not None
    assert outcome.difference.line_no == 9
    assert (outcome.difference.expected, outcome.difference.found) == ("ACTIVE_RESOURCE", "OK")
    assert outcome.nr_operations == 8


def test_an_append_that_lands_elsewhere_is_a_difference(log: list[str], tmp_path: Path) -> None:
    del log[1:3]
    outcome = replayed(tmp_path / "again.img", geometry(), log)
    assert outcome.difference is not None
    assert outcome.difference.found == f"OK at sector {2 * ZONE}"


def test_replayed_writes_carry_their_sectors_numbers(log: list[str], tmp_path: Path) -> None:
    device = fresh(tmp_path / "again.img", geometry())
    replay(log[:2], device)
    data = bytearray(8 * 512)
    assert device.port("test", VIRTIO).read(2 * ZONE, 8, (data,)) is Status.OK
    device.close()
    assert data == pattern(2 * ZONE, 8)
    assert pattern(-1, 2) == b"\xff" * 512 + bytes(512)
    assert pattern(1 << 70, 1) == bytes(512)
    assert data[512:520] == (2 * ZONE + 1).to_bytes(8, "little")


def recorded(path: Path, do: Callable[[ZonedDevice, Port], None]) -> list[str]:
    device = fresh(path, geometry())
    file = io.StringIO()
    record(device, file)
    do(device, device.port("fuse", VIRTIO))
    device.close()
    return file.getvalue().splitlines(keepends=True)


def strike(device: ZonedDevice, port: Port) -> None:
    """Let every kind of fault strike."""
    data = (bytes(8 * 512),)
    writes, both = frozenset((Operation.WRITE,)), frozenset((Operation.WRITE, Operation.APPEND))
    device.inject(Fault(effect=Effect.FAIL, operations=writes, nth=2, status=Status.NO_SPACE))
    device.inject(Fault(effect=Effect.PARTIAL, operations=both, nth=3, nr_sectors=3))
    device.inject(Fault(effect=Effect.COND, operations=both, nth=5, cond=Condition.READONLY))
    device.inject(Fault(effect=Effect.DELAY, operations=both, every=True, delay_max_ns=1))
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.FLUSH, Operation.RESET)), every=True))
    assert port.write(2 * ZONE, 8, data) is Status.OK
    assert port.write(2 * ZONE + 8, 8, data) is Status.NO_SPACE
    assert port.append(2 * ZONE, 8, data)[0] is Status.IO_ERROR  # three sectors of it are there
    assert port.append(2 * ZONE, 8, data) == (Status.OK, 2 * ZONE + 11)
    assert port.append(2 * ZONE, 8, data)[0] is Status.ZONE_READONLY
    assert port.flush() is Status.IO_ERROR
    assert port.manage_all(Operation.RESET) is Status.IO_ERROR
    for fault in device.faults.faults[:]:
        device.remove_fault(fault.id)
    assert port.manage(Operation.RESET, 3 * ZONE) is Status.OK


def test_faults_strike_again(tmp_path: Path) -> None:
    log = recorded(tmp_path / "source.img", strike)
    entries = [json.loads(line) for line in log[1:]]
    struck = [[fault["effect"] for fault in entry.get("faults", [])] for entry in entries]
    delay = "delay"
    assert struck == [
        [delay],
        ["fail", delay],
        ["partial", delay],
        [delay],
        [],
        ["cond", delay],
        ["fail"],
        ["fail"],
        [],
    ]
    assert entries[1]["faults"][0] == {"effect": "fail", "zone_no": 2, "status": "NO_SPACE"}
    assert entries[4]["op"] == "set-cond"
    assert replayed(tmp_path / "again.img", geometry(), log) == Replayed(nr_operations=9, difference=None)
    # In another place and out of context as well.
    assert replayed(tmp_path / "other.img", geometry(128, 96), [log[0], *log[2:4]]) == Replayed(
        nr_operations=2, difference=None
    )


def test_a_replay_leaves_no_faults_and_gives_the_ports_back(tmp_path: Path) -> None:
    log = recorded(tmp_path / "source.img", strike)
    device = fresh(tmp_path / "again.img", geometry())
    factory = device.port_factory
    assert replay(log[:3], device).difference is None
    assert device.port_factory is factory
    assert not device.faults
    device.close()


def test_faults_of_the_image_itself_make_a_difference(log: list[str], tmp_path: Path) -> None:
    device = fresh(tmp_path / "again.img", geometry())
    device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.READ,))))
    outcome = replay(log, device)
    device.close()
    assert outcome.difference is not None
    assert (outcome.difference.expected, outcome.difference.found) == ("OK", "IO_ERROR")


def test_a_power_cycle_is_an_operation(tmp_path: Path) -> None:
    def cycle(_device: ZonedDevice, port: Port) -> None:
        assert port.manage(Operation.OPEN, 2 * ZONE) is Status.OK
        port.power_cycle()
        assert port.manage(Operation.CLOSE, 2 * ZONE) is Status.BAD_TRANSITION  # it is EMPTY

    log = recorded(tmp_path / "source.img", cycle)
    assert replayed(tmp_path / "again.img", geometry(), log) == Replayed(nr_operations=3, difference=None)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [], "empty"),
        (lambda lines: ["{}\n"], "not an operation log"),
        (lambda lines: [json.dumps({"format": "of another kind", "geometry": {}})], "not an operation log"),
        (lambda lines: [json.dumps({"format": FORMAT, "geometry": []})], "not an operation log"),
        (lambda lines: [json.dumps({"format": FORMAT, "geometry": {}})], "geometry is damaged"),
        (lambda lines: [lines[0], "garbage\n"], "line 2 of the log is not a JSON"),
        (lambda lines: [lines[0], "[]\n"], "line 2 of the log is not a JSON"),
        (lambda lines: [lines[0], lines[1].replace("write", "explode")], "line 2 of the log is not an operation"),
        (lambda lines: [lines[0], lines[1].replace('"virtio"', '"latin"')], "line 2 of the log is not an operation"),
        (lambda lines: [lines[0], lines[1].replace('"nr_sectors": 8', '"nr_sectors": -8')], "line 2"),
        (lambda lines: [lines[0], lines[1].replace('"nr_sectors": 8', '"nr_sectors": "8"')], "line 2"),
        (lambda lines: [lines[0], lines[1].replace('"op"', '"faults": 3, "op"')], "line 2"),
        (lambda lines: [lines[0], lines[1].replace('"op"', '"faults": [3], "op"')], "line 2"),
        (lambda lines: [lines[0], lines[1].replace('"op"', '"faults": [{"effect": "fail"}], "op"')], "line 2"),
        (
            lambda lines: [lines[0], lines[1].replace('"op"', '"faults": [{"effect": "fail", "status": 1}], "op"')],
            "line 2 of the log: a fault's 'status' cannot be 1",
        ),
        (lambda lines: [*lines[:3], lines[3][:40]], "line 4 .* on one line; the operations before it, 2, were carried"),
        (
            lambda lines: [*lines[:2], "{}"],
            "line 3 of .* not an operation .*; the operations before it, 1, were carried",
        ),
    ],
)
def test_a_damaged_log_is_refused_in_a_sentence(log: list[str], tmp_path: Path, damage: object, sentence: str) -> None:
    assert callable(damage)
    with pytest.raises(UsageError, match=sentence):
        replayed(tmp_path / "again.img", geometry(), damage(log))


def test_lines_carry_the_time_since_the_log_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [5_000]
    monkeypatch.setattr("zonefs_emu.device.oplog.time.monotonic_ns", lambda: now_ns[0])
    device = fresh(tmp_path / "timed.img", geometry())
    file = io.StringIO()
    record(device, file)
    port = device.port("fuse", VIRTIO)
    for at in (5_000, 5_007):
        now_ns[0] = at
        port.flush()
    device.close()
    assert [json.loads(line)["ns"] for line in file.getvalue().splitlines()[1:]] == [0, 7]


def test_a_replayed_read_has_room_for_its_sectors(
    log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[tuple[int, int]] = []
    read = FaultyPort.read

    def reading(port: FaultyPort, sector: int, nr_sectors: int, buffers: Sequence[bytearray]) -> Status:
        rooms.append((nr_sectors * 512, sum(map(len, buffers))))
        return read(port, sector, nr_sectors, buffers)

    monkeypatch.setattr(FaultyPort, "read", reading)
    replayed(tmp_path / "again.img", geometry(), log)
    assert rooms == [(16 * 512, 16 * 512), (4096, 4096)]


def test_the_first_line_may_be_long_and_others_come_in_pieces() -> None:
    file = io.StringIO("x" * 5000 + "\n" + "y" * 5000)
    assert [len(line) for line in read_lines(file)] == [5001, 4097, 903]


@pytest.mark.parametrize("nr_sectors", [1 << 21, (1 << 21) + 1])
def test_a_line_has_at_most_a_gibibyte(
    log: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nr_sectors: int
) -> None:
    """A length of any size would take the memory for it."""
    asked: list[int] = []

    def pattern(_sector: int, nr_sectors: int) -> bytes:
        asked.append(nr_sectors)
        return b""

    monkeypatch.setattr("zonefs_emu.device.oplog.pattern", pattern)
    lines = [log[0], log[1].replace('"nr_sectors": 8', f'"nr_sectors": {nr_sectors}')]
    if nr_sectors == 1 << 21:
        replayed(tmp_path / "again.img", geometry(), lines)
        assert asked == [nr_sectors]
    else:
        with pytest.raises(UsageError, match="line 2"):
            replayed(tmp_path / "again.img", geometry(), lines)
        assert not asked


@pytest.mark.parametrize("nr_characters", [4096, 4097])
def test_a_line_has_a_greatest_length(log: list[str], tmp_path: Path, nr_characters: int) -> None:
    lines = [log[0], log[-1].rstrip("\n").ljust(nr_characters)]
    if nr_characters == 4096:
        assert replayed(tmp_path / "again.img", geometry(), lines).nr_operations == 1
    else:
        with pytest.raises(UsageError, match="line 2 of the log is not a JSON object on one line"):
            replayed(tmp_path / "again.img", geometry(), lines)


def test_the_first_line_may_be_longer_as_it_has_the_geometry(log: list[str], tmp_path: Path) -> None:
    lines = [log[0].rstrip("\n").ljust(5000), log[-1]]
    assert replayed(tmp_path / "again.img", geometry(), lines) == Replayed(nr_operations=1, difference=None)


def test_a_log_without_ends_of_lines_is_read_in_pieces(log: list[str], tmp_path: Path) -> None:
    assert list(read_lines(io.StringIO("".join(log)))) == log
    endless = io.StringIO(log[0] + 10_000_000 * "x")
    with pytest.raises(UsageError, match="line 2 of the log is not a JSON object on one line"):
        replayed(tmp_path / "again.img", geometry(), read_lines(endless))
    assert endless.tell() < 100_000
