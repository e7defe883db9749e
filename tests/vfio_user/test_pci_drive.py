"""The controller behind registers, as a guest's driver uses it and as no driver should."""

import errno
import random
import struct
import sys
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.at_rest import assert_at_rest, threads_of
from tests.memory_budget import memory_budget
from tests.nvme.conftest import BLOCK, CAPACITY, NR_ZONES, ZONE
from tests.vfio_user.conftest import Served, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.inflight.ring_record import RingRecord
from zonefs_emu.model.transitions import VIRTIO, ZNS, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.answer import SUCCESS, Answer
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode, SendAction
from zonefs_emu.nvme.controller import CAPABILITIES, Feature, Register
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.polling import AdaptivePolling
from zonefs_emu.testing.vfio_client import MEMORY_START, NvmeGuest, PciQueue, VfioClient
from zonefs_emu.vfio_user import queue_set
from zonefs_emu.vfio_user.drive_memory import MEMORY_BYTES as DRIVE_BYTES, DriveMemory
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord
from zonefs_emu.vfio_user.pci_config import NR_VECTORS
from zonefs_emu.vfio_user.pci_drive import PciDrive

READY = 1
FATAL = 2


def drive_of(served: Served) -> PciDrive:
    client = served.server._client
    assert client is not None
    return client.drive


def pattern(nr_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(nr_bytes)


def test_registers(served: Served) -> None:
    with VfioClient(served.path) as client:
        assert client.register(Register.CAP, 8) == CAPABILITIES
        assert client.register(Register.VS) == 0x20000
        assert client.register(Register.CSTS) == 0
        NvmeGuest(client)
        assert client.register(Register.CSTS) == READY


@pytest.mark.slow
def test_a_drive_of_many_images(device: ZonedDevice) -> None:
    """What it notes for the next process has a place of a fixed size."""
    subsystem = Subsystem([device] * 500, nqn="nqn." + "ü" * 109)
    memory, record = DriveMemory(bytearray(DRIVE_BYTES)), DriveRecord(bytearray(RECORD_BYTES))
    PciDrive(subsystem, memory, record, device.unforeseen).close()
    with pytest.raises(UsageError, match="of other images"):
        PciDrive(Subsystem([device] * 499, nqn=subsystem.nqn), memory, record, device.unforeseen)


def test_identify_says_that_it_is_no_fabric(guest: NvmeGuest) -> None:
    found = guest.identify(1).data
    assert struct.unpack_from("<H", found, 256)[0] >> 8 & 1, "doorbells in memory"
    assert struct.unpack_from("<I", found, 1792) == (0,)
    assert struct.unpack_from("<I", found, 536) == (0,), "no SGL, so PRP entries are the only data pointer"
    (effects,) = struct.unpack_from("<I", guest.log(Log.EFFECTS).data, 4 * AdminOpcode.CREATE_SQ)
    assert effects & 1


@pytest.mark.parametrize("offset", [0, 512, 4092])
def test_data_comes_and_goes_whole(guest: NvmeGuest, offset: int) -> None:
    queue = guest.queue(1)
    slba = 0
    for nr_blocks in (1, 2, 29, 32, 33, 64, 31):
        data = pattern(nr_blocks * BLOCK, nr_blocks)
        cdws = (slba, 0, nr_blocks - 1)
        assert queue.call(IoOpcode.WRITE, nsid=1, cdws=cdws, data=data, offset=offset).status == 0
        assert queue.call(IoOpcode.READ, nsid=1, cdws=cdws, room=len(data), offset=offset).data == data
        slba += nr_blocks
    assert queue.append(1, ZONE, pattern(BLOCK), BLOCK).result == ZONE
    assert queue.append(1, ZONE, pattern(20 * BLOCK), BLOCK).result == ZONE + 1
    assert list(guest.zones(queue, 1, 2)) == [(14, CAPACITY, 0, (1 << 64) - 1), (2, CAPACITY, ZONE, ZONE + 21)]
    assert [queue.flush(nsid).status for nsid in (1, 0xFFFFFFFF, 2)] == [0, 0, 0x00B]


def test_queues_go_round_many_times(guest: NvmeGuest) -> None:
    queues = [guest.queue(number, size=4) for number in (1, 2)]
    for number in range(50):
        for queue in queues:
            assert queue.append(1, ZONE * queue.number, bytes((number,)) * BLOCK, BLOCK).status == 0
    for queue in queues:
        expected = b"".join(bytes((number,)) * BLOCK for number in range(50))
        assert queue.read(1, ZONE * queue.number, 50, BLOCK).data == expected


def test_commands_at_once_are_answered_in_their_order(guest: NvmeGuest) -> None:
    queue = guest.queue(1, size=128)
    for number in range(100):
        command = queue.entry(IoOpcode.WRITE, nsid=1, cdws=(number, 0, 0), nr_bytes=BLOCK)
        queue.push(command, ring=False)
    queue.ring(2, queue.tail)
    replies = [queue.wait() for _ in range(100)]
    assert [(reply.status, reply.cid, reply.sq_head) for reply in replies] == [(0, n, n) for n in range(1, 101)]


def test_a_full_completion_queue_waits_for_the_guest(guest: NvmeGuest) -> None:
    client = guest.client
    queue = PciQueue(client, 1, 16)
    assert guest.create(AdminOpcode.CREATE_CQ, 1, 4, queue.cq, 1 << 16 | 3).status == 0
    assert guest.create(AdminOpcode.CREATE_SQ, 1, 16, queue.sq, 1 << 16 | 1).status == 0
    for _ in range(10):
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1), ring=False)
    queue.ring(2, queue.tail)
    queue.size, entries = 4, 16  # of the completion queue
    assert [queue.wait().cid for _ in range(10)] == list(range(1, 11))
    assert entries > queue.size


def test_doorbells_in_memory(guest: NvmeGuest) -> None:
    queue = guest.queue(1)
    assert guest.set_shadow([queue]).status == 0
    for number in range(100):
        assert queue.append(1, 0, bytes((number,)) * BLOCK, BLOCK).status == 0
    other = guest.queue(2, size=4)
    for number in range(10):
        assert other.read(1, number, 1, BLOCK).data == bytes((number,)) * BLOCK
    # Heads of completion queues are rung when they come round only, tails where the drive is asleep.
    assert queue.nr_rings < 110
    assert other.nr_rings < 15


def test_a_look_finds_commands_without_doorbells(guest: NvmeGuest, served: Served) -> None:
    queue, other = guest.queue(1), guest.queue(2)
    assert guest.set_shadow([queue, other]).status == 0
    drive = drive_of(served)
    drive.polling = AdaptivePolling(max_ns=2_000_000_000, soon_ns=60_000_000_000, nr_processors=2)
    # The first doorbell of a queue is rung; the drive looks from then on.
    assert queue.read(1, 0, 1, BLOCK).status == other.read(1, 0, 1, BLOCK).status == 0
    before = queue.nr_rings + other.nr_rings
    for _ in range(50):
        assert queue.read(1, 0, 1, BLOCK).status == 0
        assert other.read(1, 0, 1, BLOCK).status == 0
    assert queue.nr_rings + other.nr_rings == before
    # Nothing comes any more, so it asks for doorbells, and sleeps.
    drive.polling.look_ns = 0  # from the next look on
    doorbells, event_index = queue.shadow or pytest.fail("it has none")
    while (event_index[2], event_index[4]) != (doorbells[2], doorbells[4]):
        time.sleep(0.01)
    assert queue.read(1, 0, 1, BLOCK).status == 0
    assert queue.nr_rings + other.nr_rings == before + 1


def test_commands_gather_where_several_are_under_way(
    guest: NvmeGuest, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drive would find them one by one otherwise, and send an interrupt for each."""
    queue = guest.queue(1)
    assert guest.set_shadow([queue]).status == 0
    drive = drive_of(served)
    drive.polling = AdaptivePolling(max_ns=2_000_000_000, soon_ns=60_000_000_000, nr_processors=2)
    nr_interrupts, nr_halves, at_begin = 0, 0, 0
    gathered = threading.Event()

    def signal(vector: int) -> None:
        nonlocal nr_interrupts
        nr_interrupts += 1

    def send() -> None:
        queue.push(queue.entry(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), nr_bytes=BLOCK))

    def sleep(seconds: float) -> None:
        nonlocal nr_halves, at_begin
        nr_halves += 1
        if nr_halves <= 2:
            at_begin = at_begin or nr_interrupts
            for _ in range(3):
                send()
        elif nr_halves == 4:
            gathered.set()

    monkeypatch.setattr(queue_set, "time", SimpleNamespace(sleep=sleep, monotonic_ns=time.monotonic_ns))
    monkeypatch.setattr(drive.interrupts, "signal", signal)
    for _ in range(20):
        assert queue.read(1, 0, 1, BLOCK).status == 0
    assert nr_halves == 0, "one command after the other"
    # A command that comes right after another may be found without a look. No completion is taken.
    nr_sent = 0
    while not nr_halves and nr_sent < 50:
        nr_commands = drive.nr_commands
        send()
        nr_sent += 1
        while drive.nr_commands == nr_commands:
            time.sleep(0.001)
        time.sleep(0.01)
    assert gathered.wait(10)
    assert [queue.wait().status for _ in range(nr_sent + 6)] == [0] * (nr_sent + 6)
    assert nr_interrupts == at_begin + 1
    assert queue.read(1, 0, 1, BLOCK).status == 0, (
        "nothing came in the last pause, so the drive has asked for a doorbell"
    )


def test_a_look_lets_other_threads_run(guest: NvmeGuest, served: Served) -> None:
    """The interpreter changes threads at system calls only here, so a look without one would last to its end."""
    queue = guest.queue(1)
    assert guest.set_shadow([queue]).status == 0
    assert queue.read(1, 0, 1, BLOCK).status == 0
    drive_of(served).polling = AdaptivePolling(max_ns=2_000_000_000, soon_ns=60_000_000_000, nr_processors=2)
    assert queue.read(1, 0, 1, BLOCK).status == 0
    before, interval = queue.nr_rings, sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        for _ in range(5):
            assert queue.read(1, 0, 1, BLOCK).status == 0
    finally:
        sys.setswitchinterval(interval)
    assert queue.nr_rings == before


def test_a_queue_that_cannot_go_on_ends_no_look(guest: NvmeGuest, served: Served) -> None:
    """Otherwise the drive would look again and again, without a rest, until the guest takes completions."""
    client = guest.client
    queue = PciQueue(client, 1, 16)
    assert guest.create(AdminOpcode.CREATE_CQ, 1, 4, queue.cq, 1 << 16 | 3).status == 0
    assert guest.create(AdminOpcode.CREATE_SQ, 1, 16, queue.sq, 1 << 16 | 1).status == 0
    assert guest.set_shadow([queue]).status == 0
    for _ in range(10):
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1), ring=False)
    queue.ring(2, queue.tail)
    assert_at_rest(threads_of() - {Path(f"/proc/self/task/{threading.get_native_id()}")})
    assert drive_of(served).nr_commands >= 3
    queue.size = 4  # of the completion queue
    assert [queue.wait().cid for _ in range(10)] == list(range(1, 11))


def test_refusals_have_their_status_and_are_not_to_be_retried(guest: NvmeGuest, served: Served) -> None:
    queue = guest.queue(1)
    refused = queue.write(1, 5, bytes(BLOCK), BLOCK)
    assert (refused.status, refused.do_not_retry) == (0x1BC, True)
    assert queue.read(1, NR_ZONES * ZONE, 1, BLOCK).status == 0x080
    assert queue.call(0xC1, nsid=1).status == 0x001
    assert queue.call(IoOpcode.READ, nsid=1, cdws=(0, 0, 0xFFFF), room=BLOCK).status == 0x002
    for changes, status in (
        ({"prp1": 2}, 0x013), ({"prp1": 0}, 0x004), ({"flags": 0x40}, 0x002), ({"flags": 1}, 0x002),
        ({"prp1": MEMORY_START - 4096}, 0x004), ({"nsid": 7}, 0x00B),
    ):  # fmt: skip
        command = queue.entry(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), nr_bytes=BLOCK)
        queue.push(command._replace(**changes))
        assert queue.wait().status == status
    entries = guest.log(Log.ERROR, room=4032).data
    assert struct.unpack_from("<QHHH", entries)[1] == 1, "the queue of the last refusal"
    answers = [EXPLAINER.answers(refusal)["nvme"] for refusal in served.device.refusals.last(6)]
    assert [int(answer[:3], 16) for answer in answers] == [0x013, 0x004, 0x002, 0x002, 0x004, 0x00B]


def test_admin_commands_have_prp_entries(guest: NvmeGuest) -> None:
    for flags in (0x40, 0x80, 0xC0, 0x01):
        guest.admin.push(guest.admin.entry(AdminOpcode.IDENTIFY, cdws=(1,), nr_bytes=4096)._replace(flags=flags))
        assert guest.admin.wait().status == 0x002
    assert guest.identify(1).status == 0


def test_zone_management(guest: NvmeGuest) -> None:
    queue = guest.queue(1)
    assert queue.manage(1, SendAction.OPEN, ZONE).status == 0
    assert queue.manage(1, SendAction.CLOSE, ZONE * 2).status == 0x1BF
    assert queue.manage(1, SendAction.RESET, select_all=True).status == 0
    assert [zone[0] for zone in guest.zones(queue, 1, NR_ZONES)] == [1] * NR_ZONES


@pytest.mark.parametrize(
    ("opcode", "cdw10", "cdw11", "status"),
    [
        (AdminOpcode.CREATE_CQ, 0 | 7 << 16, 0b11, 0x101),
        (AdminOpcode.CREATE_CQ, 1 | 7 << 16, 0b11, 0x101),
        (AdminOpcode.CREATE_CQ, 17 | 7 << 16, 0b11, 0x101),
        (AdminOpcode.CREATE_CQ, 2 | 0 << 16, 0b11, 0x102),
        (AdminOpcode.CREATE_CQ, 2 | 128 << 16, 0b11, 0x102),
        (AdminOpcode.CREATE_CQ, 2 | 7 << 16, 0b10, 0x002),
        (AdminOpcode.CREATE_CQ, 2 | 7 << 16, NR_VECTORS << 16 | 0b11, 0x108),
        (AdminOpcode.CREATE_SQ, 2 | 7 << 16, 5 << 16 | 1, 0x100),
        (AdminOpcode.CREATE_SQ, 2 | 7 << 16, 0 << 16 | 1, 0x100),
        (AdminOpcode.CREATE_SQ, 1 | 7 << 16, 1 << 16 | 1, 0x101),
        (AdminOpcode.DELETE_CQ, 1, 0, 0x10C),
        (AdminOpcode.DELETE_CQ, 0, 0, 0x101),
        (AdminOpcode.DELETE_CQ, 3, 0, 0x101),
        (AdminOpcode.DELETE_SQ, 0, 0, 0x101),
        (AdminOpcode.DELETE_SQ, 3, 0, 0x101),
        (0xC0, 0, 0, 0x001),
    ],
)
def test_queues_that_cannot_be(guest: NvmeGuest, opcode: int, cdw10: int, cdw11: int, status: int) -> None:
    guest.queue(1)
    page = guest.client.allocate(1)
    admin = guest.admin
    admin.push(admin.entry(opcode, cdws=(cdw10, cdw11))._replace(prp1=page))
    assert admin.wait().status == status


@pytest.mark.parametrize("opcode", [AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ, AdminOpcode.DOORBELL_BUFFER])
def test_queues_that_are_not_in_memory(guest: NvmeGuest, opcode: int) -> None:
    guest.queue(1)
    admin = guest.admin
    for address, status in ((64, 0x013), (1 << 40, 0x004)):
        admin.push(admin.entry(opcode, cdws=(2 | 7 << 16, 1 << 16 | 1))._replace(prp1=address, prp2=address))
        assert admin.wait().status == status


def test_queues_are_deleted_and_made_again(guest: NvmeGuest) -> None:
    for _ in range(3):
        queue = guest.queue(1)
        assert queue.flush(1).status == 0
        assert guest.ask(AdminOpcode.DELETE_SQ, cdws=(1,)).status == 0
        assert guest.ask(AdminOpcode.DELETE_CQ, cdws=(1,)).status == 0
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
        assert queue.take() is None


def test_disabling_the_controller_drops_queues_and_keeps_zones(guest: NvmeGuest) -> None:
    """As firmware leaves it to the kernel."""
    queue = guest.queue(1)
    assert guest.set_shadow([queue]).status == 0
    assert queue.write(1, 0, bytes(BLOCK), BLOCK).status == 0
    guest.disable()
    guest._shadow = None
    guest.enable()
    queue = guest.queue(1)
    assert list(guest.zones(queue, 1, 1)) == [(2, CAPACITY, 0, 1)]
    guest.client.reset()
    assert guest.client.register(Register.CSTS) == 0
    assert guest.client.register(Register.CAP, 8) == CAPABILITIES
    guest.disable()
    guest.enable()
    assert list(guest.zones(guest.queue(1), 1, 1)) == [(2, CAPACITY, 0, 1)]


def test_a_shutdown_is_done_at_once(guest: NvmeGuest) -> None:
    queue = guest.queue(1)
    guest.client.set_register(Register.CC, 0x464061)
    assert guest.wait_for(Register.CSTS, 0b1100, 0b1000) == 0b1001
    queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
    assert guest.client.register(Register.CSTS) == 0b1001
    assert queue.take() is None
    guest.disable()
    guest.enable()
    assert guest.queue(1).flush(1).status == 0


@pytest.mark.parametrize(
    ("register", "value", "nr_bytes"),
    [(0x24, 0, 4), (0x28, 1 << 40, 8), (0x30, 64, 8), (Register.CC, 0x460061 | 1 << 7, 4)],
    ids=["no entries", "no memory", "not a page", "another page size"],
)
def test_an_admin_queue_that_cannot_be_is_fatal(served: Served, register: int, value: int, nr_bytes: int) -> None:
    with VfioClient(served.path) as client:
        guest = NvmeGuest(client)
        guest.disable()
        client.set_register(register, value, nr_bytes)
        if register != Register.CC:
            client.set_register(Register.CC, 0x460061)
        assert guest.wait_for(Register.CSTS, FATAL, FATAL) == FATAL
        guest.disable()
        guest.enable()
        assert client.register(Register.CSTS) == READY


@pytest.mark.parametrize("index", [0, 2, 3])
def test_a_doorbell_beyond_its_queue_is_fatal_until_the_controller_is_reset(guest: NvmeGuest, index: int) -> None:
    queue = guest.queue(1, size=4)
    guest.client.set_register(0x1000 + 4 * index, 0xFFFF)
    if index == 3:
        for _ in range(3):  # the head is looked at when the queue is full
            queue.push(queue.entry(IoOpcode.FLUSH, nsid=1), ring=False)
        queue.ring(2, queue.tail)
        while not guest.client.view(queue.cq + 2 * 16 + 14, 1)[0] & 1:
            pass
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
    assert guest.wait_for(Register.CSTS, FATAL, FATAL) == FATAL | READY
    guest.disable()
    assert guest.client.register(Register.CSTS) == 0
    guest.enable()
    assert guest.queue(1).flush(1).status == 0


def test_memory_that_goes_away_under_a_queue_is_fatal(guest: NvmeGuest) -> None:
    guest.queue(1)
    guest.client.unmap()
    assert guest.client.register(Register.CSTS) == FATAL | READY
    guest.client.map()
    guest.disable()
    guest.enable()
    assert guest.queue(1).flush(1).status == 0


def let_it_look(guest: NvmeGuest, served: Served) -> None:
    """Return when the drive has looked at everything that happened before."""
    client, nr_looks = served.server._client, 0
    assert client is not None
    serve = client.drive.serve

    def counted(ready: Container[int]) -> bool:
        nonlocal nr_looks
        is_busy = serve(ready)
        nr_looks += 1
        return is_busy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.drive, "serve", counted)
        while nr_looks < 2:  # the first may have begun before
            guest.client.register(Register.CSTS)


def test_memory_that_went_away_is_left_alone(guest: NvmeGuest, served: Served) -> None:
    """Neither is an event posted there, nor a doorbell asked for: the guest uses that memory for something else."""
    assert guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 27)).status == 0
    guest.admin.push(guest.admin.entry(AdminOpcode.ASYNC_EVENT))
    guest.set_shadow([guest.queue(1)])
    client = guest.client
    client.unmap()
    assert client.register(Register.CSTS) == FATAL | READY
    let_it_look(guest, served)
    client.memory[:] = b"\xff" * len(client.memory)
    served.device.port("other", VIRTIO).set_cond(3, Condition.OFFLINE)
    let_it_look(guest, served)
    assert bytes(client.memory).count(0xFF) == len(client.memory)


def test_an_event_waits_for_room_in_the_completion_queue(guest: NvmeGuest, served: Served) -> None:
    assert guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 27)).status == 0
    admin = guest.admin
    waiting = admin.entry(AdminOpcode.ASYNC_EVENT)
    admin.push(waiting)
    commands = [admin.entry(AdminOpcode.KEEP_ALIVE) for _ in range(admin.size)]
    for command in commands[:-1]:
        admin.push(command)
        let_it_look(guest, served)
    served.device.port("other", VIRTIO).set_cond(3, Condition.OFFLINE)
    let_it_look(guest, served)
    admin.push(commands[-1])
    let_it_look(guest, served)
    found = [admin.wait().cid for _ in range(admin.size + 1)]
    assert sorted(found) == sorted(command.cid for command in [waiting, *commands])
    assert found[0] == commands[0].cid


def test_an_interrupt_without_a_descriptor_is_kept(guest: NvmeGuest) -> None:
    """The client takes all away before it sets one more."""
    queue = guest.queue(1)
    guest.client.set_interrupts(enabled=False)
    queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
    while queue.take() is None:
        pass
    assert not guest.client.take_interrupt(1, 0)
    guest.client.set_interrupts()
    assert guest.client.take_interrupt(1)


def test_a_queue_without_interrupts(guest: NvmeGuest) -> None:
    queue = PciQueue(guest.client, 1, 8)
    assert guest.create(AdminOpcode.CREATE_CQ, 1, 8, queue.cq, 1).status == 0
    assert guest.create(AdminOpcode.CREATE_SQ, 1, 8, queue.sq, 1 << 16 | 1).status == 0
    queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
    while queue.take() is None:
        pass
    assert not guest.client.take_interrupt(1, 0)


def test_a_zone_that_fails_is_an_event(guest: NvmeGuest, served: Served) -> None:
    assert guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 27)).status == 0
    admin = guest.admin
    waiting = admin.entry(AdminOpcode.ASYNC_EVENT)
    admin.push(waiting)
    assert guest.identify(1).status == 0
    served.device.port("other", VIRTIO).set_cond(3, Condition.OFFLINE)
    event = admin.wait()
    assert (event.cid, event.result) == (waiting.cid, 1 << 32 | 0xBFEF02)
    assert struct.unpack_from("<H6xQ", guest.log(Log.CHANGED_ZONES, nsid=1).data) == (1, 3 * ZONE)


def test_a_namespace_that_fails_is_an_event(guest: NvmeGuest, served: Served) -> None:
    guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 8))
    waiting = guest.admin.entry(AdminOpcode.ASYNC_EVENT)
    guest.admin.push(waiting)
    assert guest.identify(0, nsid=1).data[99] == 0
    served.device.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")
    event = guest.admin.wait()
    assert (event.cid, event.result) == (waiting.cid, 0x040002)
    assert struct.unpack_from("<2I", guest.log(Log.CHANGED_NAMESPACES).data) == (1, 0)
    assert guest.identify(0, nsid=1).data[99] == 1


def test_features_with_data(guest: NvmeGuest) -> None:
    assert guest.ask(AdminOpcode.SET_FEATURES, cdws=(Feature.HOST_ID,), data=bytes(range(16))).status == 0
    assert guest.ask(AdminOpcode.GET_FEATURES, cdws=(Feature.HOST_ID,), room=16).data == bytes(range(16))
    assert guest.ask(AdminOpcode.GET_LOG_PAGE, cdws=(2 | 0xFFFF << 16, 0xFF)).status == 0x002, "longer than MDTS"


def delay(duration_ns: int) -> Fault:
    return Fault(
        effect=Effect.DELAY, operations=frozenset((Operation.READ,)), nr_zones=1, every=True,
        delay_min_ns=duration_ns, delay_max_ns=duration_ns,
    )  # fmt: skip


def test_a_delay_holds_up_one_queue_only(guest: NvmeGuest, served: Served) -> None:
    served.device.inject(delay(3_600_000_000_000))
    slow, other = guest.queue(1), guest.queue(2)
    slow.push(slow.entry(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), nr_bytes=BLOCK))
    assert other.flush(1).status == 0
    assert slow.take() is None
    guest.disable()  # does not wait for an hour


def test_a_timed_drive_holds_up_one_queue_only(device: ZonedDevice) -> None:
    """A reset takes the drive 1.6 ms, and 27 minutes here."""
    timing = device.start_timing("zn540", scale=1_000_000)
    assert timing is not None
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1)
        slow = queue.entry(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, SendAction.RESET))
        queue.push(slow)
        assert queue.flush(1).status == 0
        assert queue.take() is None
        guest.disable()  # does not wait for its time
    assert timing.statistics()["answers"] == 0, "a controller that was reset answers nothing"


def test_a_timed_drive_answers_what_is_due_first_first(device: ZonedDevice) -> None:
    """A finish of a zone takes longer than a write, which comes after it."""
    timing = device.start_timing("zn540", scale=100)
    assert timing is not None
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1)
        queue.write(1, 0, bytes(BLOCK), BLOCK)
        finish = queue.entry(IoOpcode.ZONE_SEND, nsid=1, cdws=(0, 0, 0, SendAction.FINISH))
        write = queue.entry(IoOpcode.WRITE, nsid=1, cdws=(ZONE, 0, 0), nr_bytes=BLOCK)
        queue.push(finish)
        queue.push(write)
        assert [queue.wait().cid for _ in range(2)] == [write.cid, finish.cid]
    assert timing.statistics()["answers"] == 3


def test_a_deleted_queue_gives_what_it_holds_before_that(device: ZonedDevice) -> None:
    device.start_timing("zn540", scale=1_000_000)
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1)
        queue.push(queue.entry(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, SendAction.RESET)))
        assert queue.flush(1).status == 0  # the command before it is carried out
        assert guest.ask(AdminOpcode.DELETE_SQ, cdws=(1,)).status == 0
        assert queue.wait().status == 0


def test_a_full_queue_of_held_answers(device: ZonedDevice) -> None:
    """The record has room for all answers but the last, and no completion is lost where the guest takes none."""
    device.start_timing("zn540", scale=100)
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1, 4)
        for _ in range(5):
            entries = [queue.entry(IoOpcode.ZONE_APPEND, nsid=1, cdws=(0, 0, 0), nr_bytes=BLOCK) for _ in range(3)]
            for entry in entries:
                queue.push(entry)
            replies = [queue.wait() for _ in range(3)]
            assert sorted(reply.cid for reply in replies) == [entry.cid for entry in entries]
            assert {reply.status for reply in replies} == {0}
    assert device.port("look", ZNS).report(0, 1)[0].wp == 15 * BLOCK // 512


def test_the_end_of_the_daemon_gives_what_is_held(device: ZonedDevice) -> None:
    timing = device.start_timing("zn540", scale=1_000_000)
    assert timing is not None
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1)
        queue.push(queue.entry(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, SendAction.RESET)))
        assert queue.flush(1).status == 0
        timing.alarm.cut()
        assert queue.wait().status == 0


def test_the_end_does_not_wait_for_a_delay(device: ZonedDevice) -> None:
    device.inject(delay(3_600_000_000_000))
    with serving(device) as served, served.guest() as guest:
        queue = guest.queue(1)
        queue.push(queue.entry(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), nr_bytes=BLOCK))
        assert guest.identify(1).status == 0


def test_a_command_that_the_host_keeps_is_abandoned_with_its_record(
    guest: NvmeGuest, served: Served, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    """What comes of it after all must not be taken for what a new queue of its number has done."""
    expect_warning("queues are stopped while a command waits for the host's disk")
    go_on, has_begun, has_ended = threading.Event(), threading.Event(), threading.Event()

    def execute(ring: RingRecord, *_: object) -> Answer:
        ring.begin(Operation.WRITE, 0, 8, 0)
        has_begun.set()
        assert go_on.wait(30)
        ring.commit()
        has_ended.set()
        return SUCCESS

    queue = guest.queue(1)
    assert queue.write(1, 0, bytes(BLOCK), BLOCK).status == 0
    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.virtqueue.worker._WAIT_S", 0.01)
        patch.setattr("zonefs_emu.vfio_user.io_commands._execute_logged", execute)
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
        assert has_begun.wait(30)
        guest.disable()
    guest.enable()
    guest.queue(1)
    client = served.server._client
    assert client is not None
    ring = client.drive._sqs[1].ring
    assert ring is not None
    before = bytes(ring._words)
    go_on.set()
    assert has_ended.wait(30)
    assert bytes(ring._words) == before


@pytest.mark.parametrize("opcode", [IoOpcode.FLUSH, IoOpcode.ZONE_SEND], ids=["with the worker", "at once"])
def test_an_unforeseen_exception_costs_its_command(
    guest: NvmeGuest, served: Served, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None],
    opcode: int,
) -> None:  # fmt: skip
    expect_warning("internal error in nvme, a command: ZeroDivisionError")
    queue = guest.queue(1)
    cdws = (0, 0, 0, SendAction.OPEN)
    with monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.nvme.namespace._answer", lambda *_: 1 / 0)
        assert queue.call(opcode, nsid=1, cdws=cdws).status == 0x006
    assert struct.unpack_from("<8xH2xH", guest.log(Log.ERROR).data) == (1, 0x4006 << 1)
    assert queue.call(opcode, nsid=1, cdws=cdws).status == 0
    assert served.device.statistics()["internal_errors"] == 1


def test_an_exception_in_the_answer_of_the_worker_stores_no_second_one(
    served: Served, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    """The guest would take a second completion of a command for that of its next one."""
    expect_warning("internal error in nvme, a connection: ZeroDivisionError")
    with served.guest() as guest, monkeypatch.context() as patch:
        queue = guest.queue(1)
        patch.setattr(RingRecord, "finish_split", lambda *_: 1 / 0)
        queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
        assert guest.client.is_ended()
        first, second = (bytes(guest.client.view(queue.cq + at, 16)) for at in (0, 16))
        assert (any(first), any(second)) == (True, False)


ADDRESSES = st.integers(0, (1 << 64) - 1) | st.integers(MEMORY_START, MEMORY_START + (1 << 20)).map(lambda at: at & ~7)
COMMANDS = st.tuples(
    st.sampled_from([*IoOpcode, *AdminOpcode, 0xC0, 0xFF]),
    st.sampled_from([0, 0, 0, 1, 0x40]),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    ADDRESSES,
    ADDRESSES,
    st.lists(st.integers(0, 0xFFFFFFFF) | st.integers(0, 3000), max_size=6),
)


@given(commands=st.lists(COMMANDS, min_size=1, max_size=8), of_admin=st.booleans())
@example(
    commands=[(opcode, 0, 1, MEMORY_START, MEMORY_START, [0, 0, 0xFFFFFFFF]) for opcode in IoOpcode], of_admin=False
)
@example(
    commands=[(opcode, 0, 0, MEMORY_START, MEMORY_START, [0xFFFF << 16 | 1, 0xFFFF]) for opcode in AdminOpcode],
    of_admin=True,
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_commands_are_answered_or_fatal_and_a_reset_heals(
    served: Served, commands: list[tuple[int, int, int, int, int, list[int]]], of_admin: bool
) -> None:
    with memory_budget(2 << 20), served.guest() as guest:
        queue = guest.admin if of_admin else guest.queue(1)
        for opcode, flags, nsid, prp1, prp2, cdws in commands:
            if of_admin and opcode == AdminOpcode.ASYNC_EVENT:
                continue
            queue.push(queue.entry(opcode, nsid=nsid, cdws=cdws)._replace(flags=flags, prp1=prp1, prp2=prp2))
        # The guest's memory, queues included, may be overwritten by then.
        guest.disable()
        guest.enable()
        assert guest.identify(1).status == 0


@given(rings=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 0xFFFFFFFF) | st.integers(0, 8)), max_size=10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_doorbells(served: Served, rings: list[tuple[int, int]]) -> None:
    with memory_budget(1 << 20), served.guest() as guest:
        guest.queue(1, size=8)
        for index, value in rings:
            guest.client.set_register(0x1000 + 4 * index, value)
        guest.disable()
        guest.enable()
        assert guest.identify(1).status == 0
