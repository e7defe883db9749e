"""The thread that serves a device, on a socket that plays the kernel: it keeps messages apart, and knows no ioctl."""

import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.requires import requires
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.testing.driver_rings import Heap, SplitDriver
from zonefs_emu.vduse.driver_memory import VduseMemory
from zonefs_emu.vduse.protocol import (
    MESSAGE_BYTES,
    RESULT_FAILED,
    RESULT_OK,
    Mapping,
    Message,
    encode_request,
)
from zonefs_emu.vduse.vduse_device import QUEUE_SIZE, _Loop, _VduseBlkDevice
from zonefs_emu.virtio import features as bits, split
from zonefs_emu.virtio.blk_config import F_FLUSH, F_ZONED, BlkOptions
from zonefs_emu.virtio.features import STATUS_DRIVER_OK
from zonefs_emu.virtqueue.virtqueue import RingAddresses


class Kernel:
    def __init__(self, device: ZonedDevice) -> None:
        self.ended = threading.Event()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        theirs.setblocking(False)
        self._theirs = theirs
        records = [memoryview(bytearray(record_bytes(QUEUE_SIZE)))]
        virtio_device = _VduseBlkDevice(device, BlkOptions(serial="0", nr_queues=1))
        self.loop = _Loop(theirs.fileno(), virtio_device, records, self.ended.set)

    def ask(self, kind: int, payload: bytes = b"") -> int:
        """Send a message and have it answered; returns the result."""
        self._ours.send(encode_request(kind, 7, payload))
        self.loop._step()
        request_id, result = struct.unpack_from("<II", self._ours.recv(MESSAGE_BYTES))
        assert request_id == 7
        return int(result)

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def kernel(device: ZonedDevice) -> Iterator[Kernel]:
    made = Kernel(device)
    yield made
    made.close()


def test_an_unforeseen_error_costs_its_message(
    kernel: Kernel, device: ZonedDevice, expect_warning: Callable[[str], None]
) -> None:
    """A socket refuses what the kernel is asked when a driver comes."""
    expect_warning("internal error in vduse, message 1 of the kernel: OSError")
    assert kernel.ask(Message.SET_STATUS, bytes([STATUS_DRIVER_OK])) == RESULT_FAILED
    assert device.statistics()["internal_errors"] == 1
    assert all(queue.ring is None and not queue.enabled for queue in kernel.loop.queues)
    assert kernel.ask(Message.SET_STATUS, bytes([0])) == RESULT_OK
    assert kernel.ask(Message.UPDATE_IOTLB, struct.pack("<QQ", 0, 4095)) == RESULT_OK
    assert kernel.ask(Message.GET_VQ_STATE, bytes(4)) == RESULT_OK
    end(kernel, expect_warning)


def test_no_ring_starts_while_the_disk_keeps_a_request_from_before(
    kernel: Kernel, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be executed a second time; nothing is asked of the kernel, which the socket would refuse."""
    expect_warning("no queue is started: an earlier request still waits for the host's disk")
    (queue,) = kernel.loop.queues
    queue.busy = True
    kernel.loop._drop_rings()
    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.virtqueue.worker._WAIT_S", 0)
        assert kernel.ask(Message.SET_STATUS, bytes([STATUS_DRIVER_OK])) == RESULT_OK
    assert queue.ring is None
    queue._take_back(0, 1)
    assert kernel.loop._server.wait_abandoned()
    end(kernel, expect_warning)


def test_a_message_that_cannot_be_decoded_is_answered(
    kernel: Kernel, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives a device up that leaves a message unanswered."""
    expect_warning("internal error in vduse, message 2 of the kernel: ZeroDivisionError")
    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.vduse.protocol.decode_request", lambda _: 1 // 0)
        assert kernel.ask(Message.UPDATE_IOTLB, struct.pack("<QQ", 0, 4095)) == RESULT_FAILED
    assert kernel.ask(Message.UPDATE_IOTLB, struct.pack("<QQ", 0, 4095)) == RESULT_OK
    end(kernel, expect_warning)


def test_a_reset_that_fails_leaves_no_record(
    kernel: Kernel, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver begins anew: what an earlier ring had under way must not be carried out in the next."""
    expect_warning("internal error in vduse, message 1 of the kernel: ZeroDivisionError")
    (record,) = kernel.loop._records
    record[:] = b"\xff" * len(record)
    with monkeypatch.context() as patch:
        patch.setattr(kernel.loop, "_stop_queues", lambda: 1 // 0)
        assert kernel.ask(Message.SET_STATUS, bytes([0])) == RESULT_FAILED
    assert not any(record)
    end(kernel, expect_warning)


def test_rings_that_cannot_go_on_after_a_move_go_on_in_the_next_step(
    kernel: Kernel, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("internal error in vduse, a step of the loop: ZeroDivisionError")
    started: list[int] = []

    def start_queues() -> None:
        started.append(len(started))
        assert 1 // started[-1] == 1

    monkeypatch.setattr(kernel.loop, "_start_queues", start_queues)
    kernel.loop._moved = True
    kernel.loop._server.wake()
    kernel.loop._step()
    kernel.loop._step()  # does not sleep
    assert started == [0, 1]
    monkeypatch.undo()
    end(kernel, expect_warning)


def end(kernel: Kernel, expect_warning: Callable[[str], None]) -> None:
    """Have the thread end, which closes everything: a socket is no device of the kernel."""
    expect_warning("the VDUSE device is not served any more")
    kernel.loop.start()
    kernel.loop.join()


def test_a_loop_that_dies_says_so(kernel: Kernel, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the VDUSE device is not served any more")
    kernel.loop.start()
    assert kernel.ended.wait(60)
    kernel.loop.join()
    assert isinstance(kernel.loop.failure, OSError)
    assert kernel.loop.queues[0].kick_fd < 0, "closed"


def test_a_message_that_is_not_known_is_refused(kernel: Kernel, expect_warning: Callable[[str], None]) -> None:
    expect_warning("an unknown message: 99")
    assert kernel.ask(99) == RESULT_FAILED
    end(kernel, expect_warning)


def test_memory_that_is_cut_costs_the_rings(
    kernel: Kernel, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may be a virtual machine, whose memory is a file: see tests/vhost_user/test_lost_memory.py."""
    loop = kernel.loop
    (queue,) = loop.queues
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 1 << 16)
    mapping = Mapping(offset=0, start=0, last=(1 << 16) - 1, access=3)

    def start_queues() -> None:
        memory = VduseMemory(lambda start, _last: (mapping, os.dup(fd)) if not start else None, loop._shared)
        queue.size, queue.address = 64, RingAddresses(0, 4096, 8192)
        queue.start(memory, 0, None, None)
        queue.enabled = True
        loop._server.activate(queue)
        os.ftruncate(fd, 0)

    dropped = threading.Event()
    give_up = loop._give_up_memory

    def give_up_memory() -> None:
        give_up()
        dropped.set()

    monkeypatch.setattr(loop, "_start_queues", start_queues)
    monkeypatch.setattr(loop, "_give_up_memory", give_up_memory)
    expect_warning("rings are not served until it sets the device up again: a file of the memory that it shares was")
    loop.start()
    assert dropped.wait(60)
    assert (queue.ring, queue.enabled, loop._shared.is_lost) == (None, False, False)
    assert queue.shared is loop._shared
    loop.stop()
    assert loop.failure is None
    os.close(fd)


def test_its_queues_have_the_compiled_walker(
    kernel: Kernel, device: ZonedDevice, expect_warning: Callable[[str], None]
) -> None:
    """With the buffer of which the kernel says where it is when a request names it, and with the record."""
    requires("walker")
    sector = device.geometry.zone_start(3)
    content = os.urandom(4096)
    assert not device.port("test", VIRTIO).write(sector, 8, [content])
    loop, rings, bounce = kernel.loop, os.memfd_create("rings"), os.memfd_create("bounce")
    for fd in (rings, bounce):
        os.ftruncate(fd, 1 << 16)
    named = [Mapping(offset=0, start=0, last=(1 << 16) - 1, access=3)]
    fds = {0: rings, 1 << 20: bounce}

    def find(start: int, last: int) -> tuple[Mapping, int] | None:
        found = next((mapping for mapping in named if start <= mapping.start <= last), None)
        return None if found is None else (found, os.dup(fds[found.start]))

    view, data = memoryview(mmap.mmap(rings, 1 << 16)), memoryview(mmap.mmap(bounce, 1 << 16))
    heap = Heap(0, 1 << 16)
    areas = tuple(heap.take(length, 4096) for length in split.sizes(64, event_idx=False))
    driver = SplitDriver(64, view, areas, event_idx=False)  # type: ignore[arg-type]  # three of them
    (queue,) = loop.queues
    features = bits.VERSION_1 | F_ZONED | F_FLUSH
    loop._virtio_device.accept(features)
    queue.size, queue.address = 64, RingAddresses(*(area.offset for area in areas))
    queue.start(VduseMemory(find, loop._shared), features, loop._records[0], None)
    queue.enabled = True
    data[:16] = struct.pack("<IIQ", 0, 0, sector)
    at = 1 << 20
    named.append(Mapping(offset=0, start=at, last=at + (1 << 16) - 1, access=3))
    for _ in range(queue.size + 2):  # the record counts as one of another process for a whole ring
        driver.add([(at, 16, False), (at + 4096, 4096, True), (at + 8192, 1, True)], None)
        assert queue.run()
        assert len(list(driver.reap())) == 1
    assert bytes(data[4096:8192]) == content
    assert queue._walker is not None
    assert queue._walker.nr_taken > 0
    end(kernel, expect_warning)
    for fd in (rings, bounce):
        os.close(fd)
