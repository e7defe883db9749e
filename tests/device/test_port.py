"""The commands of a port on a real image: each one's answer and effect, failures of the host, threads."""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.device.sectors import CLOSE, FINISH, OPEN, RESET, UUID_HERE, Maker, pattern, read, write
from tests.refused import last_refusal
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import FAULTY, Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import RULE_OF_STATUS, DeviceRule
from zonefs_emu.errors import PoisonedError, Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import DIALECTS, MANAGEMENT, VIRTIO, ZBC, ZNS, Dialect, Operation
from zonefs_emu.model.zone import Condition


def test_data_and_conditions_last(make_device: Maker) -> None:
    device = make_device()
    port = device.port("test", VIRTIO)
    assert write(port, 10, 100) == Status.OK  # across two conventional zones
    assert write(port, 128, 20) == Status.OK
    assert write(port, 148, 28) == Status.OK
    assert port.manage(OPEN, 192) == Status.OK
    device.close()

    device = make_device()
    port = device.port("test", VIRTIO)
    assert [zone.cond.name for zone in port.report(0, 8)] == [
        "NOT_WP", "NOT_WP", "FULL", "EXP_OPEN", "NOT_WP", "EMPTY", "EMPTY", "EMPTY",
    ]  # fmt: skip
    assert read(port, 10, 54) == pattern(10, 54)
    assert read(port, 0, 10) == bytes(5120)
    assert read(port, 128, 64) == pattern(128, 48) + bytes(16 * 512)
    assert (device.nr_open, device.nr_active) == (1, 1)


def test_append_says_where_the_data_landed(port: Port) -> None:
    assert port.append(128, 3, [pattern(128, 3)]) == (Status.OK, 128)
    assert port.append(128, 2, [pattern(131, 2)]) == (Status.OK, 131)
    assert read(port, 128, 6) == pattern(128, 5) + bytes(512)
    assert port.append(128, 17, [bytes(17 * 512)]) == (Status.APPEND_LIMIT, 128)
    assert port.append(129, 1, [bytes(512)]) == (Status.NOT_ZONE_START, 129)
    assert port.append(0, 1, [bytes(512)]) == (Status.CONVENTIONAL, 0)
    assert port.zone(2).wp == 133


@pytest.mark.parametrize(
    ("status", "command"),
    [
        (Status.OUT_OF_RANGE, lambda port: write(port, 480, 1)),
        (Status.OUT_OF_RANGE, lambda port: port.read(479, 2, [bytearray(1024)])),
        (Status.OUT_OF_RANGE, lambda port: port.read(1 << 70, 1, [bytearray(512)])),
        (Status.OUT_OF_RANGE, lambda port: port.manage(RESET, 1 << 70)),
        (Status.OUT_OF_RANGE, lambda port: port.manage(RESET, 64, 1 << 70)),
        (Status.OUT_OF_RANGE, lambda port: port.set_cond(1 << 70, Condition.OFFLINE)),
        (Status.OUT_OF_RANGE, lambda port: port.append(-64, 1, [bytes(512)])[0]),
        (Status.UNALIGNED_WP, lambda port: write(port, 129, 1)),
        (Status.ZONE_BOUNDARY, lambda port: write(port, 128, 49)),
        (Status.READ_BOUNDARY, lambda port: port.read(191, 2, [bytearray(1024)])),
        (Status.NOT_ZONE_START, lambda port: port.manage(OPEN, 129)),
        (Status.CONVENTIONAL, lambda port: port.manage(RESET, 0)),
        (Status.BAD_TRANSITION, lambda port: port.manage(CLOSE, 128)),
        (Status.OPEN_RESOURCE, lambda port: port.manage(OPEN, 320, 3)),
        (Status.CONVENTIONAL, lambda port: port.set_cond(0, Condition.EMPTY)),
    ],
)
def test_a_refused_command_returns_its_status_and_changes_nothing(
    device: ZonedDevice, port: Port, status: Status, command: Callable[[Port], Status]
) -> None:
    before = port.report(0, 8)
    assert command(port) == status
    assert port.report(0, 8) == before
    assert not any(device.image.old_extents)
    refusal = last_refusal(port)
    assert refusal is not None
    assert (refusal.status, refusal.rule, refusal.front_end) == (status, RULE_OF_STATUS[status], "test")
    (logged,) = device.refusals.last(10)
    assert (logged.seq, logged.status, logged.zone_no) == (1, status, refusal.zone_no)
    assert EXPLAINER.explain(logged, device.geometry).startswith("test: ")
    assert device.statistics()["refused"] == 1


def test_conditions_set_by_hand(port: Port) -> None:
    assert write(port, 128, 4) == Status.OK
    assert port.set_cond(2, Condition.READONLY) == Status.OK
    assert write(port, 132, 1) == Status.ZONE_READONLY
    assert read(port, 128, 4) == pattern(128, 4)
    assert port.set_cond(2, Condition.OFFLINE) == Status.OK
    assert port.read(128, 1, [bytearray(512)]) == Status.ZONE_OFFLINE
    assert port.set_cond(2, Condition.EXP_OPEN) == Status.BAD_TRANSITION
    assert last_refusal(port).operation is Operation.SET_COND
    assert port.set_cond(2, Condition.CLOSED) == Status.OK
    assert write(port, 132, 1) == Status.OK


def test_reports_by_range_and_condition(port: Port) -> None:
    write(port, 128, 4)
    write(port, 320, 4)
    assert [zone.zone_no for zone in port.report(2, 3)] == [2, 3, 4]
    assert [zone.zone_no for zone in port.report(6, 100)] == [6, 7]
    assert port.report(8, 100) == []
    assert port.report(0, 0) == []
    assert [zone.zone_no for zone in port.report(0, 100, frozenset((Condition.IMP_OPEN,)))] == [2, 5]
    assert [zone.zone_no for zone in port.report(3, 100, frozenset((Condition.IMP_OPEN,)))] == [5]
    assert [zone.zone_no for zone in port.report(0, 1, frozenset((Condition.IMP_OPEN,)))] == [2]
    assert port.report(0, 100, frozenset()) == []
    assert port.count(0, frozenset((Condition.IMP_OPEN, Condition.NOT_WP))) == 5
    assert port.count(3, frozenset((Condition.IMP_OPEN, Condition.NOT_WP))) == 2


def test_a_refusal_names_its_sectors_and_is_counted_where_it_was_met(device: ZonedDevice, port: Port) -> None:
    def refusal(status: Status) -> tuple[int, int, int]:
        assert status
        assert last_refusal(port).status is status
        return last_refusal(port).zone_no, last_refusal(port).sector, last_refusal(port).nr_sectors

    assert refusal(port.manage(OPEN, 0)) == (0, 0, 0)
    assert refusal(port.manage(OPEN, 129)) == (2, 129, 0)
    assert refusal(port.set_cond(1, Condition.FULL)) == (1, 64, 0)
    assert refusal(port.set_cond(7, Condition.IMP_OPEN)) == (7, 448, 0)
    assert refusal(write(port, 130, 3)) == (2, 130, 3)
    assert refusal(port.read(479, 2, [bytearray(1024)])) == (-1, 479, 2)
    assert refusal(port.append(129, 2, [bytes(1024)])[0]) == (2, 129, 2)
    counted = {zone_no: device.counters.zone(zone_no)["refused"] for zone_no in range(8)}
    assert counted == {0: 1, 1: 1, 2: 3, 3: 0, 4: 0, 5: 0, 6: 0, 7: 1}
    assert device.statistics()["refused"] == 7


@pytest.mark.parametrize("operation", [OPEN, CLOSE, FINISH, RESET])
def test_a_fault_refuses_management_with_the_zone_that_it_fired_at(
    device: ZonedDevice, port: Port, operation: Operation
) -> None:
    device.inject(Fault(operations=frozenset((operation,)), effect=Effect.FAIL, first_zone=3, nr_zones=1, every=True))
    assert port.manage(operation, 128, 2) is Status.IO_ERROR
    assert (last_refusal(port).zone_no, last_refusal(port).sector, last_refusal(port).nr_sectors) == (3, 128, 0)
    assert port.manage_all(operation) is Status.IO_ERROR
    assert (last_refusal(port).zone_no, last_refusal(port).sector, last_refusal(port).nr_sectors) == (3, 0, 0)


def test_a_fault_refuses_a_flush_which_is_of_no_zone_and_no_sectors(device: ZonedDevice, port: Port) -> None:
    device.inject(Fault(operations=frozenset((Operation.FLUSH,)), effect=Effect.FAIL, first_zone=3, nr_zones=1))
    assert port.flush() is Status.IO_ERROR
    assert (last_refusal(port).zone_no, last_refusal(port).sector, last_refusal(port).nr_sectors) == (-1, 0, 0)


def test_limits_of_resources_name_their_holders(device: ZonedDevice, port: Port) -> None:
    port.manage(OPEN, 320)
    write(port, 128, 1)
    port.manage(CLOSE, 128)
    port.manage(OPEN, 192)
    assert port.manage(OPEN, 128) == Status.OPEN_RESOURCE
    assert list(last_refusal(port).holders) == [3, 5]
    assert port.manage(OPEN, 384) == Status.ACTIVE_RESOURCE
    assert list(last_refusal(port).holders) == [2, 3, 5]
    assert EXPLAINER.explain(last_refusal(port), device.geometry).count("3 zones are active: 2, 3, 5") == 1


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [ZBC, ZNS], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("pieces", [[512 * 480], [1, 511, 70_000, 512 * 480 - 70_512], [512] * 480, [256] * 960])
def test_a_read_across_zones(device: ZonedDevice, dialect: Dialect, pieces: list[int]) -> None:
    port = device.port("reader", dialect)
    write(port, 0, 128)
    write(port, 128, 48)
    write(port, 192, 5)
    write(port, 256, 64)
    write(port, 448, 32)
    expected = b"".join(
        (pattern(0, 176), bytes(16 * 512), pattern(192, 5), bytes(59 * 512), pattern(256, 64), bytes(128 * 512),
         pattern(448, 32))
    )  # fmt: skip
    buffers = [bytearray(b"\xee" * size) for size in pieces]
    assert port.read(0, 480, buffers) == Status.OK
    assert b"".join(buffers) == expected
    port.set_cond(5, Condition.OFFLINE)
    assert port.read(0, 480, buffers) == Status.ZONE_OFFLINE
    assert (last_refusal(port).zone_no, last_refusal(port).nr_sectors) == (5, 480)


def test_a_read_across_zones_counts_each_sector_once(device: ZonedDevice) -> None:
    port = device.port("reader", ZNS)
    write(port, 128, 48)
    read(port, 128, 128)
    assert device.statistics()["read_sectors"] == 128
    assert (device.counters.zone(2)["read_sectors"], device.counters.zone(3)["read_sectors"]) == (64, 64)


def test_zeros_beyond_wp_in_any_pieces(port: Port) -> None:
    write(port, 128, 3)
    for sizes in ([4096], [512] * 8, [700, 900, 2496], [1536, 2560], [0, 1535, 1, 0, 2560]):
        buffers = [bytearray(b"\xee" * size) for size in sizes]
        assert port.read(128, 8, buffers) == Status.OK
        assert b"".join(buffers) == pattern(128, 3) + bytes(5 * 512)


def test_what_a_reset_left_behind_is_never_read(port: Port) -> None:
    write(port, 128, 8)
    port.flush()
    port.manage(RESET, 128)
    assert read(port, 128, 8) == bytes(4096)
    write(port, 128, 2, generation=1)
    assert read(port, 128, 8) == pattern(128, 2, generation=1) + bytes(6 * 512)


@pytest.mark.parametrize("size", [100, 512, 4000])
def test_short_reads_are_continued(port: Port, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    write(port, 128, 20)
    whole = port.device.access.preadv

    def short(buffers: Sequence[Any], offset: int) -> int:
        return whole([memoryview(buffers[0])[:size]], offset)

    monkeypatch.setattr(port.device.access, "preadv", short)
    assert read(port, 128, 20) == pattern(128, 20)


def test_a_read_that_the_host_fails(device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    write(port, 128, 20)

    def broken(buffers: Sequence[Any], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(device.access, "preadv", broken)
        assert port.read(128, 1, [bytearray(512)]) == Status.IO_ERROR
        patch.setattr(device.access, "preadv", lambda buffers, offset: 0)
        assert port.read(128, 1, [bytearray(512)]) == Status.IO_ERROR
    assert device.image.poison is None
    assert write(port, 148, 1) == Status.OK


# -- many buffers ---------------------------------------------------------------------------------------------------

#: 3,000 sectors in one conventional and one sequential zone: more buffers than the host takes at once.


WIDE: Final = Geometry(size=8192, zone_size=4096, zone_capacity=4096, conventional=((0, 1),), max_append=4096)


@pytest.mark.parametrize("nr_buffers", [1023, 1024, 1025, 2049, 3000])
@pytest.mark.parametrize("start", [0, 4096], ids=["conventional", "sequential"])
def test_more_buffers_than_the_host_takes_at_once(make_device: Maker, start: int, nr_buffers: int) -> None:
    port = make_device(WIDE).port("test", VIRTIO)
    data = pattern(start, nr_buffers)
    pieces = [data[n : n + 512] for n in range(0, len(data), 512)]
    assert port.write(start, nr_buffers, pieces) == Status.OK
    buffers = [bytearray(512) for _ in pieces]
    assert port.read(start, nr_buffers, buffers) == Status.OK
    assert b"".join(buffers) == data
    if start:
        assert port.zone(1).wp == start + nr_buffers
        assert port.append(start, 1030, [b"\xaa" * 256] * 2060) == (Status.OK, start + nr_buffers)
        assert read(port, start + nr_buffers, 1030) == b"\xaa" * (1030 * 512)


@pytest.mark.parametrize("size", [1, 511, 4096])
def test_short_writes_are_continued(port: Port, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = port.device.access.pwritev

    def short(buffers: Sequence[Any], offset: int) -> int:
        return whole([memoryview(buffers[0])[:size]], offset)

    monkeypatch.setattr(port.device.access, "pwritev", short)
    data = pattern(128, 20)
    assert port.write(128, 20, [data[:700], bytearray(data[700:5000]), memoryview(data)[5000:]]) == Status.OK
    assert read(port, 128, 20) == data


@pytest.mark.parametrize("size", [0, 511, 1023, 1025, 4096])
def test_buffers_of_the_wrong_size_are_a_bug(port: Port, size: int) -> None:
    with pytest.raises(AssertionError, match=f"{size} bytes given for 2 sectors"):
        port.write(128, 2, [bytes(size)])
    assert port.zone(2).wp == 128


# -- failures of the host -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True], ids=["at once", "half way"])
def test_a_write_that_the_host_fails_poisons_the_image(
    make_device: Maker, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    device = make_device()
    port = device.port("test", VIRTIO)
    write(port, 128, 4)
    port.manage(RESET, 320)
    whole = port.device.access.pwritev
    calls = 0

    def broken(buffers: Sequence[Any], offset: int) -> int:
        nonlocal calls
        calls += 1
        if half and calls == 1:
            return whole([memoryview(buffers[0])[:700]], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(port.device.access, "pwritev", broken)
    assert write(port, 132, 4) == Status.IO_ERROR
    assert port.zone(2).wp == 132
    monkeypatch.undo()
    commands: list[Callable[[], Status]] = [
        lambda: write(port, 132, 4),
        lambda: write(port, 0, 4),
        lambda: port.append(128, 1, [bytes(512)])[0],
        lambda: port.manage(FINISH, 128),
        lambda: port.manage(FINISH, 1 << 70),
        lambda: port.manage_all(RESET),
        lambda: port.set_cond(2, Condition.OFFLINE),
        lambda: port.set_cond(1 << 70, Condition.OFFLINE),
        port.flush,
    ]
    assert [command() for command in commands] == [Status.POISONED] * len(commands)
    assert write(port, 133, 4) == Status.UNALIGNED_WP  # what the host did wrong comes first
    with pytest.raises(PoisonedError):
        device.power_cycle()
    assert read(port, 128, 8) == pattern(128, 4) + bytes(4 * 512)
    device.close()

    port = make_device().port("test", VIRTIO)
    assert read(port, 128, 8) == pattern(128, 4) + bytes(4 * 512)
    assert write(port, 132, 4) == Status.OK


@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("start", [0, 2 * 64], ids=["conventional", "sequential"])
def test_buffers_that_are_gone_fail_the_command_and_leave_the_image_alone(
    device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch, is_long: bool, start: int
) -> None:
    """The kernel moves what is there and answers EFAULT for the rest."""
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 8 * 4096)
    gone = mmap.mmap(fd, 8 * 4096)
    os.ftruncate(fd, 4096)
    if is_long:
        monkeypatch.setattr(device.access, "short_sectors", 0)
    assert port.write(start, 8, [b"a" * 4096]) == Status.OK
    at = 0 if not start else start + 8
    assert port.write(at, 16, [memoryview(gone)[: 2 * 4096]]) == Status.IO_ERROR
    assert port.write(at, 8, [memoryview(gone)[4096 : 2 * 4096]]) == Status.IO_ERROR
    if start:
        # A refused append has landed nowhere: it names the zone.
        assert port.append(start, 8, [memoryview(gone)[4096 : 2 * 4096]]) == (Status.IO_ERROR, start)
        assert port.zone(2).wp == start + 8
        assert device.image.backing.pread(4096, (start + 8) * 512) == bytes(4096), "given back"
    assert port.read(start, 8, [memoryview(gone)[4096 : 2 * 4096]]) == Status.IO_ERROR
    assert {refusal.rule for refusal in device.refusals.last(9)} == {DeviceRule.LOST_BUFFER}
    assert device.image.poison is None
    assert port.write(at, 8, [b"b" * 4096]) == Status.OK
    os.close(fd)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("half", [False, True], ids=["at once", "half way"])
def test_a_write_to_a_full_host_changes_nothing(
    make_device: Maker, monkeypatch: pytest.MonkeyPatch, code: int, half: bool
) -> None:
    device = make_device()
    port = device.port("test", VIRTIO)
    write(port, 128, 4)
    whole = port.device.access.pwritev
    calls = 0

    def full(buffers: Sequence[Any], offset: int) -> int:
        nonlocal calls
        calls += 1
        if half and calls % 2:
            return whole([memoryview(buffers[0])[:512]], offset)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(port.device.access, "pwritev", full)
    before = [tuple(zone) for zone in port.report(0, 100)]
    assert write(port, 132, 4, generation=1) == Status.NO_SPACE
    assert port.append(128, 4, [pattern(132, 4, generation=1)]) == (Status.NO_SPACE, 128)
    assert write(port, 320, 4, generation=1) == Status.NO_SPACE
    assert [tuple(zone) for zone in port.report(0, 100)] == before
    assert "reset zones and flush" in EXPLAINER.explain(last_refusal(port), device.geometry)
    assert port.flush() == Status.OK
    assert port.manage(FINISH, 128) == Status.OK
    assert read(port, 128, 8) == pattern(128, 4) + bytes(4 * 512)
    # Nor does it stay behind in the file: resetting an EMPTY zone would never give it back.
    for sector in (132, 320):
        assert device.image.backing.pread(4 * 512, sector * 512) == bytes(4 * 512)
    monkeypatch.undo()
    assert write(port, 320, 4) == Status.OK
    assert read(port, 320, 4) == pattern(320, 4)


def test_a_host_that_writes_nothing_is_an_error_and_not_a_loop(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port.device.access, "pwritev", lambda buffers, offset: 0)
    assert write(port, 128, 4) == Status.IO_ERROR


def test_a_flush_that_the_host_fails(device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    write(port, 128, 4)

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(device.image.backing, "sync", broken)
    assert port.flush() == Status.IO_ERROR
    assert port.flush() == Status.POISONED
    assert write(port, 132, 4) == Status.POISONED


def test_a_device_that_is_open_for_reading(make_device: Maker) -> None:
    first = make_device()
    port = first.port("test", VIRTIO)
    write(port, 128, 4)
    write(port, 133, 4)
    first.close()
    device = make_device(readonly=True)
    port = device.port("reader", VIRTIO)
    assert read(port, 128, 4) == pattern(128, 4)
    assert write(port, 132, 4) == Status.POISONED
    assert port.manage(RESET, 128) == Status.POISONED
    with port.refusals.collect() as refused:
        assert port.set_cond(2, Condition.OFFLINE) == Status.POISONED
    assert port.flush() == Status.OK
    # The refusals of the past can be read; those of a reader are kept for itself.
    assert [refusal.status for refusal in device.refusals.last(10)] == [Status.UNALIGNED_WP]
    assert "the image is open read-only" in EXPLAINER.explain(refused[-1], device.geometry)


# -- settling -------------------------------------------------------------------------------------------------------


def test_a_write_to_a_zone_that_was_reset_waits_for_the_reset(device: ZonedDevice, port: Port) -> None:
    commands: list[Callable[[], Status]] = [
        lambda: write(port, 128, 8, generation=1),
        lambda: port.append(128, 8, [pattern(128, 8, generation=1)])[0],
    ]
    for command in commands:
        write(port, 128, 4)
        port.flush()
        port.manage(RESET, 128)
        assert port.has_pending_reset(2)
        assert not port.has_pending_reset(3)
        assert command() == Status.OK
        assert not port.has_pending_reset(2)
        assert read(port, 128, 8) == pattern(128, 8, generation=1)
        port.manage(RESET, 128)
        port.flush()
        assert not port.has_pending_reset(2)


def test_settling_that_the_host_fails(device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    write(port, 128, 4)
    port.flush()
    port.manage(RESET, 128)

    def broken() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(device.image.backing, "sync", broken)
    # A host that takes data and has no room for it when it is synced has lost it.
    assert write(port, 128, 4) == Status.IO_ERROR
    assert port.append(128, 4, [bytes(2048)]) == (Status.POISONED, 128)
    assert "unmount it and mount it" in EXPLAINER.explain(last_refusal(port), device.geometry)
    assert port.zone(2).wp == 128


def test_settling_that_fails_for_an_append(device: ZonedDevice, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    port.append(128, 4, [bytes(2048)])
    port.flush()
    port.manage(RESET, 128)

    def broken() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(device.image.backing, "sync", broken)
    assert port.append(128, 4, [bytes(2048)]) == (Status.IO_ERROR, 128)


# -- threads --------------------------------------------------------------------------------------------------------


def run_threads(*targets: Callable[[], None]) -> None:
    """Run all at once; an exception in one of them is raised here."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(targets))

    def run(target: Callable[[], None]) -> None:
        barrier.wait()
        try:
            target()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_that_write_different_zones(make_device: Maker) -> None:
    """With flushes, resets and readers in between; each sector is what its thread wrote last."""
    geometry = Geometry(size=4 * 256, zone_size=256, zone_capacity=256, max_open_zones=2)
    device = make_device(geometry)

    def writer(zone_no: int) -> None:
        port = device.port(f"writer {zone_no}", VIRTIO)
        start = zone_no * 256
        for generation in range(4):
            if generation:
                assert port.manage(RESET, start) == Status.OK
            for sector in range(start, start + 256, 4):
                assert write(port, sector, 4, generation) == Status.OK
            assert port.read(start, 256, [check := bytearray(256 * 512)]) == Status.OK
            assert check == pattern(start, 256, generation)

    def flusher() -> None:
        port = device.port("flusher", VIRTIO)
        for _ in range(10):
            assert port.flush() == Status.OK
            port.report(0, 4)

    run_threads(*(lambda n=n: writer(n) for n in range(4)), flusher)
    assert device.statistics()["written_sectors"] == 4 * 4 * 256
    assert [zone.cond.name for zone in device.port("check", VIRTIO).report(0, 4)] == ["FULL"] * 4


def test_threads_that_append_to_one_zone(make_device: Maker) -> None:
    """No sector is lost or given out twice, and each holds what its thread was told lies there."""
    device = make_device(Geometry(size=4096, zone_size=4096, zone_capacity=2048, max_append=8))
    landed: list[list[tuple[int, int, bytes]]] = [[] for _ in range(4)]

    def appender(number: int) -> None:
        port = device.port(f"appender {number}", ZNS)
        for turn in range(10_000):
            nr_sectors = turn % 3 + 1
            data = pattern(number * 100_000 + turn, nr_sectors)
            status, sector = port.append(0, nr_sectors, [data])
            if status:
                assert status in (Status.ZONE_BOUNDARY, Status.ZONE_FULL)
                if status is Status.ZONE_FULL:
                    return
            else:
                landed[number].append((sector, nr_sectors, data))

    run_threads(*(lambda n=n: appender(n) for n in range(4)))
    pieces = sorted(piece for pieces in landed for piece in pieces)
    end = 0
    for sector, nr_sectors, _ in pieces:
        assert sector == end
        end += nr_sectors
    assert end == 2048
    assert read(device.port("check", ZNS), 0, 2048) == b"".join(data for _, _, data in pieces)
    assert sum(bool(pieces) for pieces in landed) > 1, "the threads did not run together"


def test_threads_that_are_refused_together(device: ZonedDevice) -> None:
    def reader() -> None:
        port = device.port("reader", VIRTIO)
        for _ in range(200):
            assert port.read(480, 1, [bytearray(512)]) == Status.OUT_OF_RANGE

    def writer() -> None:
        port = device.port("writer", VIRTIO)
        for _ in range(200):
            assert write(port, 129, 1) == Status.UNALIGNED_WP

    run_threads(reader, writer, reader, writer)
    assert device.refusals.last_seq == 800
    assert [refusal.seq for refusal in device.refusals.last(200)] == list(range(601, 801))


# -- any numbers ----------------------------------------------------------------------------------------------------


NUMBERED = Geometry(
    size=8 * 64, zone_size=64, zone_capacity=48, conventional=((0, 2),), max_open_zones=2, max_active_zones=3
)


#: All that fits into 64 bits, with a sign or without, and near what the device has.
ANY_NUMBERS = st.one_of(
    st.integers(-2, 8 * 64 + 2),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.builds(lambda power, more: (1 << power) + more, st.integers(0, 63), st.integers(-1, 1)),
    st.integers(0, 8).map(lambda zone_no: zone_no * 64),
)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZonedDevice]:
    path = tmp_path_factory.mktemp("numbers") / "image"
    ZonedDevice.create(path, NUMBERED, uuid=UUID_HERE)
    device = ZonedDevice.open(path)
    yield device
    device.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dialect=st.sampled_from(DIALECTS),
    operation=st.sampled_from(Operation),
    sector=ANY_NUMBERS,
    number=ANY_NUMBERS,
    cond=st.sampled_from(Condition),
    faulty=st.booleans(),
)
@example(DIALECTS[0], Operation.WRITE, (1 << 64) - 1, (1 << 64) - 1, Condition.EMPTY, True)
@example(DIALECTS[1], Operation.READ, -1, 1 << 63, Condition.EMPTY, True)
@example(DIALECTS[0], Operation.FINISH, 2 * 64, 1 << 63, Condition.EMPTY, True)
def test_every_command_ends_in_a_status(  # noqa: PLR0917  (all are drawn)
    numbered: ZonedDevice,
    dialect: object,
    operation: Operation,
    sector: int,
    number: int,
    cond: Condition,
    faulty: bool,
) -> None:
    port = numbered.port("numbers", dialect)  # type: ignore[arg-type]  # one of DIALECTS
    rare = Fault(effect=Effect.FAIL, operations=frozenset(FAULTY), first_zone=3, nr_zones=2, nth=1 << 30)
    fault = numbered.inject(rare) if faulty else None
    try:
        status = carry_out(port, operation, sector, number, cond)
        assert isinstance(status, Status)
        if status and operation is not Operation.FLUSH:
            refusal = last_refusal(port)
            assert EXPLAINER.explain(refusal, numbered.geometry)
            assert refusal.status is status
        assert isinstance(port.has_pending_reset(abs(sector) // 64), bool)
        assert len(port.report(abs(sector), number)) <= 8
        assert port.count(abs(sector), frozenset(Condition)) <= 8
    finally:
        if fault is not None:
            numbered.remove_fault(fault.id)
    assert not numbered.holds.held


def carry_out(port: Port, operation: Operation, sector: int, number: int, cond: Condition) -> Status:
    # A front-end has buffers for what it asks for; what is beyond the device is refused before they count.
    data = bytearray(512 * number if 0 <= number <= NUMBERED.size else 0)
    if operation is Operation.READ:
        return port.read(sector, number, [data])
    if operation is Operation.WRITE:
        return port.write(sector, number, [data])
    if operation is Operation.APPEND:
        return port.append(sector, number, [data])[0]
    if operation in MANAGEMENT:
        return port.manage(operation, sector, number) or port.manage_all(operation)
    if operation is Operation.SET_COND:
        return port.set_cond(sector, cond)
    return port.flush()


def test_the_pattern_fills_its_sectors() -> None:
    assert len(pattern(3, 4)) == 2048
    assert pattern(3, 4)[512:1024] == pattern(4, 1) != pattern(4, 1, generation=1)
