"""Messages in, answers and effects out, over a real socket and a real image; served on a thread."""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.vhost_user.serving import GEOMETRY, ZONE, blk_device, create, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.testing.vhost_frontend import GUEST_BASE, USER_BASE, BlkDriver, Frontend, FrontendQueue, Style
from zonefs_emu.vhost_user import state_transfer
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    BackendRequest,
    ConfigSpace,
    DeviceStateTransfer,
    Inflight,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Number,
    Payload,
    ProtocolFeature,
    Request,
    Unknown,
    VringAddress,
    VringState,
    encode_header,
    encode_payload,
)
from zonefs_emu.vhost_user.session import MEM_SLOTS_MAX
from zonefs_emu.virtio import blk, features as bits


@pytest.fixture
def path(device: ZonedDevice, tmp_path: Path) -> Iterator[Path]:
    with serving(device, blk_device(device, nr_queues=4), tmp_path / "socket"):
        yield tmp_path / "socket"


@pytest.fixture
def frontend(path: Path) -> Iterator[Frontend]:
    with Frontend(path) as frontend:
        yield frontend


def still_serves(path: Path) -> None:
    """The next front-end finds the device as it was."""
    with Frontend(path) as frontend:
        frontend.start()
        assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0


def test_what_is_offered(frontend: Frontend) -> None:
    features = frontend.ask_number(Request.GET_FEATURES)
    assert features & blk.F_ZONED
    assert features & bits.LOG_ALL
    assert features & bits.PROTOCOL_FEATURES
    offered = frontend.ask_number(Request.GET_PROTOCOL_FEATURES)
    names = {feature.name for feature in ProtocolFeature if offered & feature.mask}
    assert names == {
        "MQ", "LOG_SHMFD", "REPLY_ACK", "BACKEND_REQ", "CONFIG", "INFLIGHT_SHMFD", "RESET_DEVICE",
        "CONFIGURE_MEM_SLOTS", "STATUS", "DEVICE_STATE",
    }  # fmt: skip
    assert not offered >> len(ProtocolFeature)
    assert frontend.ask_number(Request.GET_QUEUE_NUM) == 4
    assert frontend.ask_number(Request.GET_MAX_MEM_SLOTS) == MEM_SLOTS_MAX


@pytest.mark.parametrize("style", ["qemu", "libblkio"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
def test_a_disk_at_work(path: Path, style: Style, packed: bool, indirect: bool, event_idx: bool) -> None:
    with Frontend(
        path,
        style=style,
        packed=packed,
        indirect=indirect,
        event_idx=event_idx,
        regions=3,
    ) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        for number in range(60):
            assert driver.write(2 * ZONE + 8 * number, bytes([number]) * 4096) == 0
        assert driver.write(2 * ZONE, bytes(512)) == blk.S_ZONE_UNALIGNED_WP
        status, data = driver.read(2 * ZONE + 8 * 7, 8192)
        assert (status, data) == (0, b"\7" * 4096 + b"\10" * 4096)
        assert driver.append(3 * ZONE, bytes(1024)) == (0, 3 * ZONE)
        assert driver.append(3 * ZONE, bytes(1024)) == (0, 3 * ZONE + 2)
        assert driver.flush() == 0
        assert driver.manage(blk.T_ZONE_RESET, 2 * ZONE) == 0
        assert driver.write(2 * ZONE, bytes(512)) == 0  # after a reset a write first waits for a sync
        assert driver.manage(blk.T_ZONE_FINISH, 3 * ZONE) == 0
        status, zones = driver.report(2 * ZONE, 2)
        assert [(zone.cond, zone.wp) for zone in zones] == [(2, 2 * ZONE + 1), (14, 4 * ZONE)]
        assert driver.identity().rstrip(b"\0") == b"serial-of-tests"


def test_several_queues_and_requests_in_flight(path: Path) -> None:
    with Frontend(path, nr_queues=4, queue_size=64) as frontend:
        frontend.start()
        numbers: list[tuple[FrontendQueue, int]] = []
        for round_no in range(10):
            for queue in frontend.queues:
                data = bytes([queue.index]) * 512
                sector = (2 + queue.index) * ZONE + round_no
                numbers.append((queue, queue.submit([BlkDriver.header(blk.T_OUT, sector), data], [1], kick=False)))
        for queue in frontend.queues:
            queue.kick()
        for queue, number in numbers:
            assert queue.wait(number)[1] == [b"\0"]
        for queue in frontend.queues:
            assert BlkDriver(queue).read((2 + queue.index) * ZONE, 5120) == (0, bytes([queue.index]) * 5120)
            assert queue.order == sorted(queue.order, key=queue.order.index)


def test_configuration_in_any_piece(frontend: Frontend) -> None:
    frontend.negotiate()
    whole = frontend.config(96)
    assert frontend.config(57) == whole[:57]
    assert frontend.config(60) == whole[:60]
    assert frontend.config(8, 90) == whole[90:] + bytes(2)
    assert frontend.config(256) == whole.ljust(256, b"\0")
    frontend.tell(Request.SET_CONFIG, ConfigSpace(32, 1, 0, b"\0"))
    assert frontend.config(1, 32) == b"\0"
    frontend.tell(Request.SET_CONFIG, ConfigSpace(0, 96, 0, whole))
    assert frontend.config() == whole


def test_firmware_first(path: Path) -> None:
    """Start without ZONED, read a sector, stop, reset, start with everything: what SeaBIOS and then Linux do."""
    with Frontend(path, features=(1 << 64) - 1 - blk.F_ZONED) as frontend:
        frontend.start()
        queue = frontend.queues[0]
        assert BlkDriver(queue).read(0, 512)[0] == 0
        assert BlkDriver(queue).report()[0] == blk.S_UNSUPP
        assert frontend.stop_queue(queue) == queue.ring.base
        frontend.tell(Request.SET_STATUS, Number(0), ack=False)
        frontend.features |= blk.F_ZONED & frontend.offered
        frontend.start_queues()
        assert BlkDriver(queue).report()[0] == 0
        frontend.tell(Request.RESET_DEVICE, Nothing())
        assert frontend.ask_number(Request.GET_STATUS) == 0


def test_strict_refuses_a_driver_without_zoned(
    device: ZonedDevice, tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("a driver that does not accept zones is refused")
    with serving(device, blk_device(device, strict=True), tmp_path / "strict"):
        with (
            Frontend(tmp_path / "strict", features=(1 << 64) - 1 - blk.F_ZONED) as frontend,
            pytest.raises((PeerError, OSError)),
        ):
            frontend.start()
        still_serves(tmp_path / "strict")


def test_stop_and_go_on(frontend: Frontend) -> None:
    frontend.start()
    queue = frontend.queues[0]
    for round_no in range(4):
        assert BlkDriver(queue).write(2 * ZONE + round_no, bytes(512)) == 0
        assert frontend.stop_queue(queue) == queue.ring.base
        # What is made available while nobody serves is served later.
        number = queue.submit([BlkDriver.header(blk.T_IN, 0)], [512, 1])
        frontend.start_queues()
        assert queue.wait(number)[1][1] == b"\0"


def test_a_disabled_queue_rests(frontend: Frontend) -> None:
    frontend.start()
    queue = frontend.queues[0]
    frontend.tell(Request.SET_VRING_ENABLE, VringState(0, 0))
    number = queue.submit([BlkDriver.header(blk.T_IN, 0)], [512, 1])
    with pytest.raises(TimeoutError):
        queue.wait(number, timeout=0.2)
    frontend.tell(Request.SET_VRING_ENABLE, VringState(0, 1))
    assert queue.wait(number)[1][1] == b"\0"


def test_memory_comes_and_goes(path: Path) -> None:
    with Frontend(path, style="libblkio", regions=12) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        assert driver.read(0, 512)[0] == 0
        last = frontend.memory_regions()[-1]
        frontend.tell(Request.REM_MEM_REG, last)
        assert driver.read(0, 512)[0] == 0
        frontend.tell(Request.ADD_MEM_REG, last, fds=(frontend.memory_fd,))
        assert driver.read(0, 512)[0] == 0
    still_serves(path)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_memory_that_moves_while_the_rings_rest(
    device: ZonedDevice, tmp_path: Path, *, packed: bool, event_idx: bool
) -> None:
    with (
        serving(device, blk_device(device), tmp_path / "socket") as backend,
        Frontend(tmp_path / "socket", packed=packed, event_idx=event_idx) as frontend,
    ):
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        regions = tuple(frontend.memory_regions())
        for _ in range(3):
            assert driver.read(0, 512)[0] == 0
            while backend._server._active:
                time.sleep(0.001)
            frontend.tell(Request.SET_MEM_TABLE, MemoryTable(regions), fds=[frontend.memory_fd] * len(regions))


def test_a_broken_ring_is_the_only_one(path: Path, expect_warning: object) -> None:
    assert callable(expect_warning)
    expect_warning("queue 1 is broken: a request with a header of 3 bytes")
    with Frontend(path, nr_queues=2) as frontend:
        frontend.start()
        first, second = frontend.queues
        second.submit([b"abc"], [1])
        assert select.select([second.err_fd], [], [], 10)[0]
        assert second.is_broken
        assert not first.is_broken
        assert BlkDriver(first).read(0, 512)[0] == 0
        frontend.stop_queue(second)


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


def test_the_guest_is_told_of_changes_behind_its_back(device: ZonedDevice, frontend: Frontend) -> None:
    frontend.start()
    assert frontend.backend_requests is not None
    other = device.port("command line", VIRTIO)
    for zone_no in range(2, 12):
        assert not other.manage(Operation.FINISH, zone_no * ZONE)
    frontend.backend_requests.settimeout(10)
    assert frontend.backend_requests.recv(100) == encode_header(BackendRequest.CONFIG_CHANGE_MSG, 0, 0)
    frontend.backend_requests.settimeout(0.2)
    BlkDriver(frontend.queues[0]).write(20 * ZONE, bytes(512))  # its own changes are no news
    with pytest.raises(TimeoutError):
        frontend.backend_requests.recv(100)


def test_reconnect_after_the_front_end_went_away(path: Path) -> None:
    with Frontend(path) as frontend:
        frontend.start()
        queue = frontend.queues[0]
        for round_no in range(5):
            numbers = [
                queue.submit([BlkDriver.header(blk.T_ZONE_APPEND, 2 * ZONE), bytes(512)], [8, 1]) for _ in range(20)
            ]
            frontend.reconnect()
            for number in numbers:
                assert queue.wait(number)[1][1] == b"\0"
            assert BlkDriver(queue).report(2 * ZONE, 1)[1][0].wp == 2 * ZONE + 20 * (round_no + 1)


def test_state_moves_from_one_daemon_to_another(frontend: Frontend, tmp_path: Path) -> None:
    frontend.start()
    driver = BlkDriver(frontend.queues[0])
    driver.write(2 * ZONE, bytes(2048))
    driver.manage(blk.T_ZONE_FINISH, 5 * ZONE)
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
        expect_warning("the device state was not moved: the connection that the device state belongs to has ended")
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
    expect_warning("the device state was not moved: rings were started before it was checked")
    frontend.negotiate()
    os.close(begin_load(frontend, state_transfer.encode(device)))
    frontend.start_queues()
    assert frontend.ask_number(Request.CHECK_DEVICE_STATE) == 1
    assert BlkDriver(frontend.queues[0]).write(2 * ZONE, bytes(512)) == 0


def test_the_end_of_the_server_does_not_wait_for_a_state(
    device: ZonedDevice, tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("the device state was not moved")
    with serving(device, blk_device(device), tmp_path / "other") as backend, Frontend(tmp_path / "other") as frontend:
        frontend.negotiate()
        writer = begin_load(frontend, b"")
        frontend.send(Request.CHECK_DEVICE_STATE, Nothing())
        backend.stop()
        assert frontend.receive(Request.CHECK_DEVICE_STATE)[0] == Number(1)
        os.close(writer)
    assert not transfers()


def test_a_back_end_that_took_over_calls_once_more(frontend: Frontend) -> None:
    """The one before it may have given requests back and died before it told the driver."""
    frontend.start()
    for queue in frontend.queues:
        BlkDriver(queue).read(0, 512)
        with suppress(BlockingIOError):
            os.eventfd_read(queue.call_fd)
        frontend.send(Request.SET_VRING_CALL, Number(queue.index), fds=(queue.call_fd,))
    frontend.ask_number(Request.GET_QUEUE_NUM)
    for queue in frontend.queues:
        assert os.eventfd_read(queue.call_fd) == 1


def test_check_without_transfer_fails(frontend: Frontend) -> None:
    assert frontend.ask_number(Request.CHECK_DEVICE_STATE) == 1


MEMORY = MemoryRegion(GUEST_BASE, 4096, USER_BASE, 0)


@pytest.mark.parametrize(
    ("request_no", "payload", "nr_fds"),
    [
        (Request.SET_FEATURES, Number(1 << 63), 0),
        (Request.SET_PROTOCOL_FEATURES, Number(1 << 40), 0),
        (Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), 0),
        (Request.SET_MEM_TABLE, MemoryTable((MEMORY, MEMORY)), 2),
        (Request.ADD_MEM_REG, MEMORY._replace(size=1 << 40), 1),
        (Request.ADD_MEM_REG, MEMORY._replace(size=0), 1),
        (Request.REM_MEM_REG, MEMORY, 0),
        (Request.SET_VRING_NUM, VringState(0, 0), 0),
        (Request.SET_VRING_NUM, VringState(0, 1 << 20), 0),
        (Request.SET_VRING_NUM, VringState(99, 128), 0),
        (Request.SET_VRING_BASE, VringState(4, 0), 0),
        (Request.GET_VRING_BASE, VringState(1 << 31, 0), 0),
        (Request.SET_VRING_KICK, Number(0), 0),
        (Request.SET_VRING_KICK, Number(0x100), 0),
        (Request.SET_VRING_KICK, Number(0), 1),  # nothing is known of the ring yet
        (Request.SET_VRING_CALL, Number(0), 2),
        (Request.SET_VRING_ENABLE, VringState(0, 7), 0),
        (Request.GET_INFLIGHT_FD, Inflight(0, 0, 0, 128), 0),
        (Request.GET_INFLIGHT_FD, Inflight(0, 0, 1, 40000), 0),
        (Request.SET_INFLIGHT_FD, Inflight(10, 0, 1, 128), 1),
        (Request.SET_LOG_BASE, LogBase(1 << 40, 0), 1),
        (Request.SET_LOG_BASE, LogBase(64, 0), 0),
        (Request.GET_CONFIG, ConfigSpace(250, 100, 0, b""), 0),
        (Request.SET_BACKEND_REQ_FD, Nothing(), 0),
        (Request.SET_STATUS, Unknown(b"x"), 0),
        (99, Unknown(b""), 0),
    ],
)
def test_a_front_end_that_breaks_the_protocol_loses_its_connection(
    path: Path, request_no: int, payload: Payload, nr_fds: int
) -> None:
    with Frontend(path) as frontend:
        frontend.send(request_no, payload, fds=[frontend.memory_fd] * nr_fds)
        with pytest.raises((PeerError, ConnectionError)):
            frontend.ask(Request.GET_FEATURES)
    still_serves(path)


@pytest.mark.parametrize("request_no", [Request.NET_SET_MTU, Request.POSTCOPY_ADVISE, Request.GPU_SET_SOCKET, 77])
def test_what_we_do_not_know_is_refused_politely_if_asked_politely(frontend: Frontend, request_no: int) -> None:
    frontend.negotiate()
    frontend.send(request_no, Unknown(bytes(8)), flags=FLAG_NEED_REPLY)
    assert frontend.receive(request_no)[0] == Number(1)


def test_a_running_ring_is_not_moved(frontend: Frontend) -> None:
    frontend.start()
    frontend.send(Request.SET_VRING_ADDR, VringAddress(0, 0, USER_BASE, USER_BASE, USER_BASE, 0))
    with pytest.raises((PeerError, ConnectionError)):
        frontend.ask(Request.GET_FEATURES)


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


@given(
    messages=st.lists(
        st.tuples(st.integers(0, 48), st.sampled_from([1, 9, 0, 5]), st.binary(max_size=64), st.integers(0, 2)),
        max_size=8,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_messages_leave_the_device_alone(path: Path, messages: list[tuple[int, int, bytes, int]]) -> None:
    with Frontend(path) as frontend:
        try:
            for request_no, flags, data, nr_fds in messages:
                import array

                header = struct.pack("<III", request_no, flags, len(data))
                fds = array.array("i", [frontend.memory_fd] * nr_fds)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if nr_fds else []
                frontend._socket.sendmsg([header + data], ancillary)
        except (BrokenPipeError, ConnectionResetError):
            pass
    still_serves(path)


def test_half_a_message_delays_nobody(path: Path, device: ZonedDevice) -> None:
    """A front-end that stops in the middle of a message is waited for without a thread being lost to it."""
    with Frontend(path) as frontend:
        frontend.start()
        frontend._socket.send(encode_header(Request.SET_FEATURES, 0, 8)[:7])
        assert BlkDriver(frontend.queues[0]).read(0, 512)[0] == 0
        frontend._socket.send(encode_header(Request.SET_FEATURES, 0, 8)[7:])
        frontend._socket.send(encode_payload(Number(frontend.features | bits.PROTOCOL_FEATURES)))
        assert frontend.ask_number(Request.GET_QUEUE_NUM) == 4
