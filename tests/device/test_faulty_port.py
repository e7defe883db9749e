"""Injected faults through a port: what a front-end meets, what lasts, and what they cost."""

import io
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.device.sectors import Maker
from tests.refused import last_refusal
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import NR_FAULTS_MAX, Effect, Fault, FaultTable
from zonefs_emu.device.oplog import record, replay
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, ZBC, Operation
from zonefs_emu.model.zone import Attribute, Condition

WRITES = frozenset((Operation.WRITE,))

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
    assert "a fault was injected" in EXPLAINER.explain(last_refusal(port), device.geometry)
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
    assert (last_refusal(port).zone_no, last_refusal(port).sector) == (5, 64)
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


def test_the_drive_finishes_a_zone_at_the_nth_operation(make_device: Maker) -> None:
    geometry = Geometry(size=256, zone_size=64, zone_capacity=48, active_excursions=True)
    device = make_device(geometry)
    log = io.StringIO()
    record(device, log)
    device.inject(Fault(effect=Effect.EXCURSION, operations=WRITES, first_zone=1, nr_zones=1, nth=2))
    device.inject(Fault(effect=Effect.EXCURSION, operations=WRITES, first_zone=2, nr_zones=1))
    port = device.port("test", VIRTIO)
    assert [port.write(64 + 8 * at, 8, (bytes(4096),)) for at in range(2)] == [Status.OK, Status.ZONE_FULL]
    zone = port.zone(1)
    assert (zone.cond, zone.wp, zone.attributes) == (
        Condition.FULL, 64 + 8, Attribute.FINISHED_BY_CONTROLLER
    )  # fmt: skip
    assert port.write(128, 8, (bytes(4096),)) is Status.OK, "a zone that is not active stays as it is"
    assert port.zone(2).cond is Condition.IMP_OPEN
    assert '"faults": [{"effect": "excursion", "zone_no": 1}]' in log.getvalue()
    other = make_device(geometry, "b.img")
    replayed = replay(log.getvalue().splitlines(), other)
    assert (replayed.nr_operations, replayed.difference) == (4, None)
    assert other.port("test", VIRTIO).report(0, 4) == port.report(0, 4)


def test_excursions_are_injected_where_the_drive_has_them(device: ZonedDevice) -> None:
    with pytest.raises(UsageError, match="created with --zone-active-excursions"):
        device.inject(Fault(effect=Effect.EXCURSION, operations=WRITES))
    assert not device.faults.entries


def test_listeners_hear_of_recommendations(device: ZonedDevice) -> None:
    told: list[tuple[int, int]] = []
    device.subscribe(lambda zone_no, nr_zones: told.append((zone_no, nr_zones)))
    device.inject(Fault(effect=Effect.LIE, nr_sectors=8))
    assert not told
    fault = device.inject(Fault(effect=Effect.RECOMMEND_FINISH, first_zone=2, nr_zones=1))
    device.remove_fault(fault.id)
    assert told == [(0, device.geometry.nr_zones)] * 2
