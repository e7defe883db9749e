"""Messages in, answers and effects out, over a real socket and a real image; served on a thread."""

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.vhost_user.serving import ZONE, still_serves
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.vhost_frontend import USER_BASE, Frontend, FrontendQueue, Style
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    ConfigSpace,
    Inflight,
    LogBase,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Number,
    Payload,
    Request,
    Unknown,
    VringState,
    encode_header,
    encode_payload,
)
from zonefs_emu.virtio import blk_codec, features as bits


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
        assert driver.write(2 * ZONE, bytes(512)) == blk_codec.S_ZONE_UNALIGNED_WP
        status, data = driver.read(2 * ZONE + 8 * 7, 8192)
        assert (status, data) == (0, b"\7" * 4096 + b"\10" * 4096)
        assert driver.append(3 * ZONE, bytes(1024)) == (0, 3 * ZONE)
        assert driver.append(3 * ZONE, bytes(1024)) == (0, 3 * ZONE + 2)
        assert driver.flush() == 0
        assert driver.manage(blk_codec.T_ZONE_RESET, 2 * ZONE) == 0
        assert driver.write(2 * ZONE, bytes(512)) == 0  # after a reset a write first waits for a sync
        assert driver.manage(blk_codec.T_ZONE_FINISH, 3 * ZONE) == 0
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
                numbers.append(
                    (queue, queue.submit([BlkDriver.header(blk_codec.T_OUT, sector), data], [1], kick=False))
                )
        for queue in frontend.queues:
            queue.kick()
        for queue, number in numbers:
            assert queue.wait(number)[1] == [b"\0"]
        for queue in frontend.queues:
            assert BlkDriver(queue).read((2 + queue.index) * ZONE, 5120) == (0, bytes([queue.index]) * 5120)
            assert queue.order == sorted(queue.order, key=queue.order.index)


def test_reconnect_after_the_front_end_went_away(path: Path) -> None:
    with Frontend(path) as frontend:
        frontend.start()
        queue = frontend.queues[0]
        for round_no in range(5):
            numbers = [
                queue.submit([BlkDriver.header(blk_codec.T_ZONE_APPEND, 2 * ZONE), bytes(512)], [8, 1])
                for _ in range(20)
            ]
            frontend.reconnect()
            for number in numbers:
                assert queue.wait(number)[1][1] == b"\0"
            assert BlkDriver(queue).report(2 * ZONE, 1)[1][0].wp == 2 * ZONE + 20 * (round_no + 1)


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
