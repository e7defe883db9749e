"""The SCSI host over a socket: what Linux asks at boot, and control requests."""

import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.vhost_user.serving import ZONE, create, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.messages import ConfigSpace, ProtocolFeature, Request
from zonefs_emu.virtqueue.scsi_host import ScsiHost

DISK = b"\x01\x00\x40\x00\x00\x00\x00\x00"


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[Frontend]:
    device = ZonedDevice.open(create(tmp_path / "image"))
    with (
        serving(device, ScsiHost(device, serial="serial", nr_request_queues=2), tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=4) as frontend,
    ):
        frontend.start()
        yield frontend
    device.close()


def command(frontend: Frontend, cdb: bytes, out: bytes = b"", room: int = 0, queue: int = 2) -> tuple[int, bytes]:
    frame = DISK + bytes(11) + cdb.ljust(32, b"\0")
    _, parts = frontend.queues[queue].request([frame, *([out] if out else [])], [108, *([room] if room else [])])
    assert parts[0][11] == 0  # response
    return parts[0][10], b"".join(parts[1:])


def rw(opcode: int, lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQIBB", opcode, 0, lba, blocks, 0, 0)


def test_a_disk_at_work(frontend: Frontend) -> None:
    for number in range(10):
        assert command(frontend, rw(0x8A, 2 * ZONE + number, 1), bytes([number]) * 512, queue=2 + number % 2) == (
            0,
            b"",
        )
    assert command(frontend, rw(0x88, 2 * ZONE, 10), room=5120) == (
        0,
        b"".join(bytes([number]) * 512 for number in range(10)),
    )
    assert command(frontend, rw(0x91, 0, 0)) == (0, b"")  # SYNCHRONIZE CACHE(16)
    assert command(frontend, rw(0x8A, 2 * ZONE, 1), bytes(512))[0] == 2  # not at wp
    reset = struct.pack(">BBQ6x", 0x94, 4, 2 * ZONE)
    assert command(frontend, reset) == (0, b"")
    assert command(frontend, rw(0x8A, 2 * ZONE, 1), bytes(512)) == (0, b"")
    report = struct.pack(">BBQIBB", 0x95, 0, 0, 4096, 0, 0)
    status, data = command(frontend, report, room=4096)
    assert status == 0
    assert int.from_bytes(data[64 + 2 * 64 + 24 : 64 + 2 * 64 + 32], "big") == 2 * ZONE + 1


def test_task_management(frontend: Frontend) -> None:
    request = struct.pack("<II8sQ", 0, 5, DISK, 0)  # LOGICAL UNIT RESET
    assert frontend.queues[0].request([request], [1])[1] == [b"\0"]
    assert command(frontend, bytes(6))[0] == 2, "a reset is told once, as a unit attention"
    assert command(frontend, bytes(6))[0] == 0


def test_answers_that_a_timed_drive_holds_come_before_that_of_a_reset(tmp_path: Path) -> None:
    """A driver takes no answer after it to what it has sent before."""
    device = ZonedDevice.open(create(tmp_path / "image"))
    device.start_timing("zn540", scale=1e9)
    with (
        serving(device, ScsiHost(device, serial="serial", nr_request_queues=2), tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=4) as frontend,
    ):
        frontend.start()
        held = []
        for queue in frontend.queues[2:]:
            held.append(queue.submit([DISK + bytes(11) + rw(0x88, 0, 1).ljust(32, b"\0")], [108, 512]))
            assert command(frontend, bytes(6), queue=queue.index)[0] == 0, "which is answered at once, and carried out"
            queue.reap()
            assert held[-1] not in queue.order
        request = struct.pack("<II8sQ", 0, 5, DISK, 0)  # LOGICAL UNIT RESET
        assert frontend.queues[0].request([request], [1])[1] == [b"\0"]
        for number, queue in zip(held, frontend.queues[2:], strict=True):
            queue.reap()
            assert queue.order[-1] == number
    device.close()


def test_the_front_end_has_the_configuration_space(frontend: Frontend) -> None:
    assert not frontend.protocol_features & ProtocolFeature.CONFIG.mask
    answer = frontend.ask(Request.GET_CONFIG, ConfigSpace(0, 36, 0, bytes(36)))
    assert answer == ConfigSpace(0, 0, 0, b"")


def test_each_queue_is_for_control_events_or_requests(tmp_path: Path) -> None:
    with closing(ZonedDevice.open(create(tmp_path / "image"))) as device:
        host = ScsiHost(device, serial="serial", nr_request_queues=2)
        assert host.nr_queues == 4
        control, events, *requests, behind = (host.handler(index) for index in range(5))
        assert control is not None
        assert events is None
        assert requests[0] is requests[1] is not None
        assert requests[0] is not control
        assert behind is None
        assert [host.events(index) is not None for index in range(5)] == [False, True, False, False, False]


def test_a_reset_forgets_events(tmp_path: Path) -> None:
    with closing(ZonedDevice.open(create(tmp_path / "image"))) as device:
        host = ScsiHost(device, serial="serial", nr_request_queues=2)
        host.accept(host.offered)
        events = host.events(1)
        assert events is not None
        assert not host.zones_changed(), "it is an event, and no change of the configuration space"
        host.reset()
        assert events.next_event() is None
        host.zones_changed()
        assert events.next_event() is not None


def test_a_host_has_one_request_queue_unless_more_are_asked_for(tmp_path: Path) -> None:
    with closing(ZonedDevice.open(create(tmp_path / "image"))) as device:
        assert ScsiHost(device, serial="serial").nr_queues == 3
