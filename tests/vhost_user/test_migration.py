"""Pages that are logged, and zone states that move from daemon to daemon."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vhost_user.serving import GEOMETRY, ZONE, blk_device, create, serving, still_serves
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user import state_transfer
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    DeviceStateTransfer,
    LogBase,
    Nothing,
    Number,
    ProtocolFeature,
    Request,
)
from zonefs_emu.virtio import blk_codec


def test_dirty_pages(path: Path) -> None:
    """Every byte of guest memory that changed lies in a page whose bit is set, rings included."""
    for packed in (False, True):
        with Frontend(path, packed=packed, memory_bytes=1 << 20) as frontend:
            frontend.start()
            driver = BlkDriver(frontend.queues[0])
            driver.read(0, 512)
            log = frontend.begin_log((GUEST_BASE >> 15) + (1 << 20 >> 15) + 64)
            before = bytes(frontend.memory)
            driver.read(0, 65536)
            driver.append(3 * ZONE, bytes(512))
            driver.report(0, 30)
            after = bytes(frontend.memory)
            first = GUEST_BASE >> 12
            dirty = {page for page in range(256) if log[first + page >> 3] >> (first + page & 7) & 1}
            ours = set(range(1 << 20 >> 12))
            changed = {
                page for page in ours if before[page << 12 : page + 1 << 12] != after[page << 12 : page + 1 << 12]
            }
            # What the driver itself wrote (descriptors, available ring, requests) is not ours to mark.
            desc, avail, used = frontend.queues[0].areas
            by_driver = {avail.offset >> 12} | ({desc.offset >> 12} if not packed else set())
            assert used.offset >> 12 in dirty or packed
            assert len(dirty) >= 17  # 64 KiB of data
            data_pages = {page for page in changed if after[page << 12 : page + 1 << 12] == bytes(4096)}
            assert data_pages <= dirty
            assert (changed - by_driver) & {used.offset >> 12} <= dirty
            frontend.end_log()
            log_before = bytes(log)
            driver.read(0, 65536)
            assert bytes(log) == log_before


def test_state_moves_from_one_daemon_to_another(frontend: Frontend, tmp_path: Path) -> None:
    frontend.start()
    driver = BlkDriver(frontend.queues[0])
    driver.write(2 * ZONE, bytes(2048))
    driver.manage(blk_codec.T_ZONE_FINISH, 5 * ZONE)
    expected = driver.report()
    assert frontend.save_state() == (b"", 1), "not while rings run"
    frontend.stop_queue(frontend.queues[0])
    stream, code = frontend.save_state()
    assert code == 0
    target = ZonedDevice.open(create(tmp_path / "target"))
    with serving(target, blk_device(target), tmp_path / "other"), Frontend(tmp_path / "other") as other:
        other.negotiate()
        assert other.load_state(stream) == 0
        other.start_queues()
        assert BlkDriver(other.queues[0]).report() == expected
    target.close()


def test_state_of_another_geometry_is_refused(frontend: Frontend, tmp_path: Path, expect_warning: object) -> None:
    assert callable(expect_warning)
    expect_warning("of a device with another geometry")
    from dataclasses import replace

    frontend.negotiate()
    stream, _ = frontend.save_state()
    target = ZonedDevice.open(create(tmp_path / "target", replace(GEOMETRY, conventional=())))
    with serving(target, blk_device(target), tmp_path / "other"), Frontend(tmp_path / "other") as other:
        other.negotiate()
        assert other.load_state(stream) == 1
        other.start_queues()
        assert BlkDriver(other.queues[0]).report()[1][0].cond == 1
    target.close()


def begin_load(frontend: Frontend, stream: bytes) -> int:
    """Give the device a state without asking whether it has arrived; return the end of the pipe, which is open."""
    reader, writer = os.pipe()
    frontend.send(Request.SET_DEVICE_STATE_FD, DeviceStateTransfer(1, 0), fds=(reader,))
    os.close(reader)
    frontend.receive(Request.SET_DEVICE_STATE_FD)
    os.write(writer, stream)
    return writer


def transfers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "device-state"]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("asks", [True, False])
def test_a_state_whose_connection_is_gone_is_not_taken_over(
    *, frontend: Frontend, path: Path, device: ZonedDevice, tmp_path: Path, is_whole: bool, asks: bool,
    expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    """Its last bytes, or its end, or the question for it may have come before; its thread ends with the connection."""
    source = ZonedDevice.open(create(tmp_path / "source"))
    source.port("test", VIRTIO).manage(Operation.FINISH, 5 * ZONE)
    stream = state_transfer.encode(source)
    source.close()
    frontend.negotiate()
    writer = begin_load(frontend, stream if is_whole else stream[:100])
    if is_whole and not asks:
        os.close(writer)
        while transfers():
            time.sleep(0.01)
    if asks:
        expect_warning(
            "the device state was not transferred: the connection that the device state belongs to has ended"
        )
        frontend.send(Request.CHECK_DEVICE_STATE, Nothing())
    frontend.close()
    still_serves(path)
    assert not transfers()
    assert device.port("look", VIRTIO).zone(5).cond is Condition.EMPTY
    if asks or not is_whole:
        os.close(writer)


def test_a_state_that_is_asked_for_after_rings_were_started_is_refused(
    frontend: Frontend, device: ZonedDevice, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("the device state was not transferred: rings were started before the device state was checked")
    frontend.negotiate()
    os.close(begin_load(frontend, state_transfer.encode(device)))
    frontend.start_queues()
    assert frontend.ask_number(Request.CHECK_DEVICE_STATE) == 1
    assert BlkDriver(frontend.queues[0]).write(2 * ZONE, bytes(512)) == 0


def test_the_end_of_the_server_does_not_wait_for_a_state(
    device: ZonedDevice, tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("the device state was not transferred")
    with serving(device, blk_device(device), tmp_path / "other") as backend, Frontend(tmp_path / "other") as frontend:
        frontend.negotiate()
        writer = begin_load(frontend, b"")
        frontend.send(Request.CHECK_DEVICE_STATE, Nothing())
        backend.stop()
        assert frontend.receive(Request.CHECK_DEVICE_STATE)[0] == Number(1)
        os.close(writer)
    assert not transfers()


def test_check_without_transfer_fails(frontend: Frontend) -> None:
    assert frontend.ask_number(Request.CHECK_DEVICE_STATE) == 1


def test_device_state_with_nonsense(frontend: Frontend) -> None:
    frontend.negotiate()
    for payload, fds in (
        (DeviceStateTransfer(2, 0), [0]),
        (DeviceStateTransfer(0, 1), [0]),
        (DeviceStateTransfer(0, 0), []),
    ):
        frontend.send(Request.SET_DEVICE_STATE_FD, payload, fds=fds)
        answer, _ = frontend.receive(Request.SET_DEVICE_STATE_FD)
        assert isinstance(answer, Number)
        assert answer.value & 0xFF


def test_a_log_that_is_not_answered_is_acknowledged(frontend: Frontend) -> None:
    """Without LOG_SHMFD the message has no answer of its own, so it is one of those that REPLY_ACK is about."""
    frontend.negotiate()
    accepted = frontend.protocol_features & ~ProtocolFeature.LOG_SHMFD.mask
    frontend.send(Request.SET_PROTOCOL_FEATURES, Number(accepted))
    frontend.send(Request.SET_LOG_BASE, LogBase(64, 0), flags=FLAG_NEED_REPLY, fds=(frontend.memory_fd,))
    assert frontend.receive(Request.SET_LOG_BASE)[0] == Number(0)
