"""The device that tests are given, in this process and in real daemons."""

import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonefs_emu.errors import Status, UsageError, ZonedError
from zonefs_emu.model.presets import PRESETS, build_geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.testing.zoned_device import DeviceUnderTest

BLOCK = b"b" * 4096
MIB = 1 << 20
ZONE = 2048  # sectors


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceUnderTest]:
    """8 zones of 1 MiB, the first conventional; 2 may be open."""
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    shape = build_geometry(size=8 * MIB, zone_size=MIB, conventional=((0, 1),), max_open_zones=2)
    device = DeviceUnderTest(tmp_path, shape)
    yield device
    device.close()


def append_file(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_APPEND)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            buffer.write(BLOCK)
            assert os.write(fd, buffer) == 4096
    finally:
        os.close(fd)


def written(device: DeviceUnderTest, zone_no: int) -> int:
    zone = device.report()[zone_no]
    return zone.wp - zone.start


def test_a_power_cut_keeps_what_was_flushed_and_a_beginning_of_the_rest(device: DeviceUnderTest) -> None:
    found = set()
    for seed in range(12):
        assert device.port.manage(Operation.RESET, 3 * ZONE) == 0
        for index in range(4):
            assert device.port.write(3 * ZONE + index * 8, 8, (BLOCK,)) == 0
            if index == 1:
                assert device.port.flush() == 0
        device.power_cut(seed=seed)
        zone = device.report()[3]
        assert zone.cond is Condition.CLOSED
        found.add(zone.wp - zone.start)
        data = bytearray(32 * 512)
        assert device.port.read(3 * ZONE, 32, (data,)) == 0
        assert data.rstrip(b"\0") == BLOCK * ((zone.wp - zone.start) // 8)
    assert found == {16, 24, 32}


def test_the_device_from_before_a_power_cut_is_dead(device: DeviceUnderTest) -> None:
    before = device.port
    device.power_cut()
    assert device.port is not before
    assert before.write(ZONE, 8, (BLOCK,)) is Status.POISONED
    assert before.read(ZONE, 8, (bytearray(4096),)) is Status.IO_ERROR
    assert written(device, 1) == 0


def test_faults_conditions_and_refusals(device: DeviceUnderTest) -> None:
    fault = device.inject("fail", on=("write", "append"), zone=2, nth=2, status=Status.NO_SPACE)
    assert device.port.write(2 * ZONE, 8, (BLOCK,)) == 0
    assert device.port.write(2 * ZONE + 8, 8, (BLOCK,)) is Status.NO_SPACE
    assert "zone 2 is IMP_OPEN" in device.refusals()[0]
    device.remove_fault(fault.id)
    with pytest.raises(UsageError, match="there is no fault"):
        device.remove_fault(fault.id)
    with pytest.raises(UsageError, match="needs the number of sectors"):
        device.inject("partial", on="write")
    device.set_cond(4, Condition.OFFLINE)
    text = device.describe()
    assert "zone      2 at sector       4096  IMP_OPEN   8 of 2048 sectors written\n" in text
    assert "zone      4 at sector       8192  OFFLINE\n" in text
    assert "\nrefused: test: write of 8 sectors at sector 4104 was refused (NO_SPACE)" in text
    device.power_cut()
    assert "refused before the power cut: test: write" in device.describe()


def test_a_description_is_short(tmp_path: Path) -> None:
    device = DeviceUnderTest(tmp_path, build_geometry(preset=PRESETS["small"]))
    assert "\nnone\n" in device.describe()
    assert device.port.manage(Operation.FINISH, device.geometry.zone_start(10), 40) == 0
    assert device.describe().count("FULL") == 32
    assert "... and 8 more" in device.describe()
    device.close()
    assert device.describe().count("\n") > 1  # read from the file
    device.image.unlink()
    assert "cannot be asked" in device.describe()


@pytest.mark.fuse
@pytest.mark.slow
def test_a_mount_is_driven_cut_and_given_back(device: DeviceUnderTest) -> None:
    mountpoint = device.mount("errors=repair")
    append_file(mountpoint / "seq" / "0")
    with pytest.raises(UsageError, match="a daemon has the image"):
        _ = device.port
    assert written(device, 1) == 8
    device.inject("fail", on="write", every=True)
    with pytest.raises(OSError, match="Input/output error"):
        append_file(mountpoint / "seq" / "1")
    assert "a fault was injected" in device.refusals()[0]

    kept = set()
    for seed in range(6):
        before = written(device, 1) - 8
        device.power_cut(seed=seed)
        assert mountpoint.is_mount()
        assert (mountpoint / "seq" / "0").stat().st_size == written(device, 1) * 512
        kept.add(written(device, 1) - before)
        append_file(mountpoint / "seq" / "0")
    assert kept == {0, 8}

    device.stop()
    assert not mountpoint.is_mount()
    assert device.port.write(3 * ZONE, 8, (BLOCK,)) == 0
    assert sorted((device.image.parent / "run" / "zonefs-emu").iterdir()) == []


@pytest.mark.fuse
@pytest.mark.slow
def test_a_daemon_that_fails_is_heard(device: DeviceUnderTest) -> None:
    with pytest.raises(UsageError, match="unknown mount option foo"):
        device.mount("foo")
    # The image is ours again.
    mountpoint = device.mount()
    assert device._daemon is not None
    device._daemon.process.kill()
    with pytest.raises(UsageError, match="the daemon ended with -9"):
        device.stop()
    assert not mountpoint.is_mount()
    assert device.report() != []


def test_a_served_disk_survives_a_power_cut(device: DeviceUnderTest) -> None:
    path = device.serve("blk")
    with Frontend(path) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        assert [driver.append(2 * ZONE, BLOCK)[0] for _ in range(3)] == [0, 0, 0]
    assert written(device, 2) == 24
    device.power_cut(seed=3)
    assert written(device, 2) == 8, "the cut came between two writes"
    with Frontend(path) as frontend:
        frontend.start()
        assert BlkDriver(frontend.queues[0]).write(2 * ZONE + written(device, 2), BLOCK) == 0
    device.close()
    assert not path.parent.exists()


def test_a_snapshot_is_gone_back_to_as_often_as_needed(device: DeviceUnderTest) -> None:
    assert device.port.write(3 * ZONE, 8, (BLOCK,)) == 0
    device.snapshot("one block")
    for _ in range(2):
        assert device.port.manage(Operation.RESET, 3 * ZONE) == 0
        assert device.port.write(4 * ZONE, 8, (BLOCK,)) == 0
        device.rewind("one block")
        assert [written(device, zone_no) for zone_no in (3, 4)] == [8, 0]
        data = bytearray(4096)
        assert device.port.read(3 * ZONE, 8, [data]) == 0
        assert data == BLOCK
    device.snapshot("one block")
    device.rewind("one block")
    with pytest.raises(UsageError, match="no snapshot 'two'"):
        device.rewind("two")
    with pytest.raises(UsageError, match="cannot be the name"):
        device.snapshot("../x")


def test_a_snapshot_that_fails_leaves_the_earlier_one(device: DeviceUnderTest) -> None:
    device.snapshot()
    device.port.append(ZONE, 8, (BLOCK,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises((OSError, ZonedError)):
            device.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    device.rewind()
    assert not written(device, 1)


def test_a_closed_device_says_so(device: DeviceUnderTest) -> None:
    device.close()
    for use in (lambda: device.port, lambda: device.device, device.stop, device.mount, device.serve):
        with pytest.raises(UsageError, match="the device was closed: only report"):
            use()
    assert len(device.report()) == 8
    device.close()


@pytest.mark.fuse
def test_a_mounted_device_goes_back_too(device: DeviceUnderTest) -> None:
    mountpoint = device.mount()
    append_file(mountpoint / "seq/3")
    device.snapshot()
    append_file(mountpoint / "seq/3")
    device.rewind()
    assert (mountpoint / "seq/3").stat().st_size == 4096
    append_file(mountpoint / "seq/3")


def test_a_device_with_a_timing_takes_the_time_of_the_drive_on_its_clock(tmp_path: Path) -> None:
    device = DeviceUnderTest(tmp_path, build_geometry(size=8 * MIB, zone_size=MIB), timing="zn540")
    try:
        assert device.port.append(3 * ZONE, 8, (BLOCK,)) == (0, 3 * ZONE)
        once_ns = device.clock.now_ns
        assert 14_000 < once_ns < 20_000
        many = [device.clock.submit(device.port.append, 3 * ZONE, 8, (BLOCK,)) for _ in range(8)]
        assert device.clock.now_ns == once_ns
        assert "the clock at 0.0" in device.describe()
        assert "8 commands under way" in device.describe()
        device.clock.run_until_idle()
        assert many[7].end_ns == device.clock.now_ns > 50_000
        device.inject("delay", on="append", delay_ns=(10**12, 10**12))
        device.port.append(3 * ZONE, 8, (BLOCK,))
        assert device.clock.now_ns > 10**12, "and the test did not wait for that"
        lines = device.describe().splitlines()
        assert any(line.startswith("append: 10 in ") for line in lines)
        assert lines[-1].startswith("lately: append of 8 sectors, zone 3, at 10000")
        device.power_cut()
        assert device.port.read(3 * ZONE, 8, (bytearray(4096),)) == 0
        assert "read: 1 in " in device.describe()
    finally:
        device.close()
