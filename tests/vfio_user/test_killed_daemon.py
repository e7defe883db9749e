"""Exactly once: a drive that is killed at any instant, and goes on, has carried out and answered every command once.

First every instant: a process killed is one whose stores end somewhere, so every store into memory that outlives it
(completions in guest memory, registers, record, live table) and every system call that moves data is counted, and the
k-th of them never happens, for all k. Then the real thing: SIGKILL under load, with a keeper between.
"""

import mmap
import os
import random
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.killing import Clock, Killed, Mortal, close_as_killed, make_mortal
from tests.nvme.conftest import BLOCK, NR_ZONES, UUID_1, ZONE, geometry
from tests.refused import last_refusal
from tests.vfio_user.serving import Daemons
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import ZNS
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode, SendAction
from zonefs_emu.nvme.controller import Feature, Register
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.testing.vfio_client import MEMORY_BYTES, MEMORY_START, NvmeGuest, PciQueue, VfioClient
from zonefs_emu.vfio_user import drive_memory
from zonefs_emu.vfio_user.drive_memory import DriveMemory
from zonefs_emu.vfio_user.drive_queues import CompletionQueue
from zonefs_emu.vfio_user.drive_record import RECORD_BYTES, DriveRecord
from zonefs_emu.vfio_user.pci_drive import PciDrive
from zonefs_emu.vfio_user.pci_function import DmaRegion, PciFunction

EXTENSION_BYTES = 64
BLOCK_SECTORS = BLOCK // 512
FUA = 1 << 30


class Guest:
    """The memory of a guest and that of a keeper, as they outlive daemons, and the guest's driver."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, MEMORY_BYTES)
        self.memory = memoryview(mmap.mmap(self.fd, MEMORY_BYTES))
        self.shared = memoryview(bytearray(drive_memory.MEMORY_BYTES + RECORD_BYTES))
        self.bar = DriveMemory(self.shared[: drive_memory.MEMORY_BYTES])
        self._free = 0
        self.drive: PciDrive | None = None
        self.function = PciFunction(self, self.bar)  # type: ignore[arg-type]  # as much of a drive as is asked for
        self.admin = PciQueue(self, 0, 8)  # type: ignore[arg-type]  # as much of a client as a queue looks at

    def close(self) -> None:
        os.close(self.fd)

    def allocate(self, nr_pages: int) -> int:
        at = self._free
        self._free += nr_pages * 4096
        return MEMORY_START + at

    def view(self, address: int, nr_bytes: int) -> memoryview:
        return self.memory[address - MEMORY_START : address - MEMORY_START + nr_bytes]

    def set_register(self, offset: int, value: int, nr_bytes: int = 4) -> None:
        self.function._write_bar(offset, value.to_bytes(nr_bytes, "little"))

    def kick(self) -> None:
        """Do nothing: a life looks by itself."""


class SameThread:
    """A worker that carries out what it is given when results are collected."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def submit(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self.jobs.append((job, then))

    def collect(self) -> None:
        while self.jobs:
            job, then = self.jobs.pop(0)
            then(job())

    def wait(self, condition: Callable[[], bool]) -> bool:
        self.collect()
        return condition()

    def defer(self, duration_ns: int) -> None:
        raise AssertionError(duration_ns)

    def close(self) -> None:
        os.close(self.wake_fd)


class Life:
    """One process: an opened image and a drive for the guest; dies at instant *fatal*, if it gets there.

    A *timed* one holds its answers.
    """

    def __init__(self, path: Path, guest: Guest, fatal: int, *, timed: bool = False) -> None:
        self.clock = clock = Clock(fatal)
        self.guest = guest
        self.device = device = ZonedDevice.open(path)
        self.now_ns = 0
        if timed:
            device.start_timing("zn540", clock=lambda: self.now_ns)
            assert device.timing is not None
            device.timing.alarm.at = lambda *_: None  # type: ignore[method-assign]  # _wait does its work
        make_mortal(device, clock)
        real_place = CompletionQueue.place

        def place(queue: CompletionQueue, memory: Any) -> None:
            real_place(queue, memory)
            queue.words = Mortal(queue.words, clock)  # type: ignore[assignment]

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(CompletionQueue, "place", place)
        self.patch.setattr("zonefs_emu.vfio_user.pci_drive.Worker", lambda *_: SameThread())
        # Its stores are no instants here; test_queue_walker.py has their order.
        self.patch.setattr("zonefs_emu.vfio_user.io_commands.is_usable", lambda _: False)
        self.worker: SameThread

    def run(self) -> bool:
        """Serve until nothing is left; False if killed. A timed life goes from one answer that is due to the next."""
        try:
            self.begin()
            drive = self.guest.drive
            assert drive is not None
            while drive.serve() or self.worker.jobs or self._wait(drive):
                pass
        except Killed:
            return False
        return True

    def _wait(self, drive: PciDrive) -> bool:
        """Wait for the next answer that is held; False if none is."""
        due_ns = [queue.answers._held[0][0] for queue in drive._sqs.values() if queue.answers and queue.answers._held]
        self.now_ns = min(due_ns, default=self.now_ns)
        return bool(due_ns)

    def begin(self) -> None:
        """Have a drive."""
        guest, clock = self.guest, self.clock
        if guest.drive is not None:
            return
        bar = DriveMemory(guest.shared[: drive_memory.MEMORY_BYTES])
        for name in ("words", "doorbells", "_control"):
            setattr(bar, name, Mortal(getattr(bar, name), clock))
        record = DriveRecord(guest.shared[drive_memory.MEMORY_BYTES :])
        for name in ("_words", "_bytes", "tails"):
            setattr(record, name, Mortal(getattr(record, name), clock))
        drive = PciDrive(Subsystem([self.device]), bar, record, self.device.unforeseen)
        self.worker = drive._worker  # type: ignore[assignment]
        drive.map_memory(DmaRegion(MEMORY_START, MEMORY_BYTES, guest.fd, 0))
        drive.start()
        guest.drive = drive

    @contextmanager
    def immortal(self) -> Iterator[None]:
        """Let instants pass that are not counted."""
        clock = self.clock
        now, fatal, clock.fatal = clock.now, clock.fatal, -1
        yield
        clock.now, clock.fatal = now, fatal

    def end(self) -> None:
        """What the kernel does with a dead process: the files are closed, nothing is flushed."""
        self.guest.drive = None
        close_as_killed(self.device, self.clock)
        self.patch.undo()

    def close(self) -> None:
        """End in order."""
        drive, self.guest.drive = self.guest.drive, None
        assert drive is not None
        drive.close()
        self.device.close()
        self.patch.undo()


def pattern(number: int, nr_blocks: int = 1) -> bytes:
    return bytes([number]) * (BLOCK * nr_blocks)


class Driver:
    """The commands of a guest, in steps: each is done before the next begins."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.queues: dict[int, PciQueue] = {0: guest.admin}
        #: Completions as (queue, number of the command, status, result), in the order of each queue.
        self.answers: list[tuple[int, int, int, int]] = []
        self._rooms = 0

    def admin(self, opcode: int, *cdws: int, prp1: int = 0, prp2: int = 0) -> None:
        queue = self.guest.admin
        queue.push(queue.entry(opcode, cdws=cdws)._replace(prp1=prp1, prp2=prp2))

    def io(self, number: int, opcode: int, *cdws: int, data: bytes = b"") -> None:
        queue = self.queues[number]
        # Each command has a place of its own for its data.
        offset = 4096 * (queue.cid % 64)
        self.guest.view(queue.data + offset, len(data))[:] = data
        queue.push(queue.entry(opcode, nsid=1, cdws=cdws, nr_bytes=len(data), offset=offset))

    def write(self, number: int, slba: int, seed: int, flags: int = 0) -> None:
        self.io(number, IoOpcode.WRITE, slba, 0, flags, data=pattern(seed))

    def append(self, number: int, slba: int, seed: int) -> None:
        self.io(number, IoOpcode.ZONE_APPEND, slba, 0, 0, data=pattern(seed))

    def manage(self, number: int, action: SendAction, slba: int, flags: int = 0, data: bytes = b"") -> None:
        self.io(number, IoOpcode.ZONE_SEND, slba, 0, 0, action | flags, data=data)

    def collect(self) -> None:
        for queue in self.queues.values():
            while (reply := queue.take()) is not None:
                self.answers.append((queue.number, reply.cid, reply.status, reply.result))

    def steps(self) -> list[Callable[[Life], object]]:
        return [
            self.enable, self.create, self.reset_all, self.first, self.second, self.lose, self.third, self.delete,
            self.again, self.ask,
        ]  # fmt: skip

    def enable(self, _life: Life) -> None:
        guest = self.guest
        guest.set_register(0x24, 7 << 16 | 7)
        guest.set_register(0x28, guest.admin.sq, 8)
        guest.set_register(0x30, guest.admin.cq, 8)
        guest.set_register(Register.CC, 0x460061)

    def create(self, _life: Life) -> None:
        """Two submission queues that share a completion queue."""
        self.admin(AdminOpcode.SET_FEATURES, Feature.NR_QUEUES, 3 | 3 << 16)
        self.admin(AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, 1 << 27)
        self.admin(AdminOpcode.ASYNC_EVENT)
        one = self.queues[1] = PciQueue(self.guest, 1, 8)  # type: ignore[arg-type]
        two = PciQueue(self.guest, 2, 5)  # type: ignore[arg-type]
        self.queues[2] = two
        # Completions of both are taken from the queue that they share.
        two.take = lambda: None  # type: ignore[method-assign]
        one.take = lambda: take_shared(one)  # type: ignore[method-assign]
        self.admin(AdminOpcode.CREATE_CQ, 1 | 7 << 16, 1 << 16 | 0b11, prp1=one.cq)
        self.admin(AdminOpcode.CREATE_SQ, 1 | 7 << 16, 1 << 16 | 1, prp1=one.sq)
        self.admin(AdminOpcode.CREATE_SQ, 2 | 4 << 16, 1 << 16 | 1, prp1=two.sq)

    def reset_all(self, _life: Life) -> None:
        self.write(1, 0, 12)
        self.manage(2, SendAction.OPEN, ZONE)
        self.manage(1, SendAction.RESET, 0, 1 << 8)

    def first(self, _life: Life) -> None:
        self.write(1, 0, 1)
        self.append(1, 0, 2)
        self.append(2, ZONE, 3)
        self.append(2, ZONE, 4)
        self.write(1, 7, 5)  # refused: not at wp
        self.write(1, 2, 6, FUA)

    def second(self, _life: Life) -> None:
        self.manage(1, SendAction.CLOSE, 0)
        self.manage(1, SendAction.SET_DESCRIPTOR, 2 * ZONE, data=bytes(range(EXTENSION_BYTES)))
        self.manage(2, SendAction.FINISH, ZONE)
        self.manage(1, SendAction.SET_DESCRIPTOR, 2 * ZONE, data=bytes(EXTENSION_BYTES))  # refused: CLOSED
        self.io(2, IoOpcode.WRITE_ZEROES, 2 * ZONE, 0, 1)
        self.append(2, 2 * ZONE, 7)
        self.io(2, IoOpcode.COPY, 2 * ZONE + 3, 0, 0, data=struct.pack("<8xQH14x", 1, 1))

    def lose(self, life: Life) -> None:
        """The drive loses a zone, and the guest is told, once."""
        with life.immortal():
            assert not life.device.port("failing", ZNS).set_cond(7, Condition.READONLY)
        self.admin(AdminOpcode.SET_FEATURES, Feature.HOST_ID, prp1=self.guest.admin.data)
        self.admin(AdminOpcode.DOORBELL_BUFFER, prp1=self.guest.allocate(1), prp2=self.guest.allocate(1))
        doorbells, event_index = (
            self.guest.view(self.guest.allocate(0) - 4096 * number, 4096).cast("I") for number in (2, 1)
        )
        for queue in (self.queues[1], self.queues[2]):
            queue.shadow = doorbells, event_index

    def third(self, _life: Life) -> None:
        self.manage(1, SendAction.RESET, ZONE)
        self.append(1, ZONE, 8)
        self.manage(2, SendAction.OFFLINE, 7 * ZONE)
        self.io(2, IoOpcode.FLUSH)
        self.append(1, 0, 9)

    def delete(self, _life: Life) -> None:
        self.admin(AdminOpcode.DELETE_SQ, 2)
        self.admin(AdminOpcode.GET_FEATURES, Feature.NR_QUEUES)
        self.admin(AdminOpcode.CREATE_SQ, 3 | 4 << 16, 1 << 16 | 1, prp1=self.queues[2].sq)
        self.admin(AdminOpcode.DELETE_CQ, 1)  # refused: used
        self.append(1, ZONE, 10)

    def again(self, _life: Life) -> None:
        """The guest resets the controller, and uses the memory of its queues for something else."""
        guest = self.guest
        guest.set_register(Register.CC, 0)
        guest.view(guest.admin.cq, 4096)[:] = bytes(4096)
        guest.admin.head = guest.admin.tail = 0
        guest.admin.phase = 1
        self.enable(_life)

    def ask(self, _life: Life) -> None:
        guest = self.guest
        self.admin(AdminOpcode.IDENTIFY, 1, prp1=guest.admin.data)
        self.admin(AdminOpcode.CREATE_SQ, 1 | 4 << 16, 1 << 16 | 1, prp1=self.queues[1].sq)  # refused: no queue 1


def take_shared(queue: PciQueue) -> Any:
    """Return the next completion of a queue that others share, as one of theirs."""
    entry = queue.client.view(queue.cq + 16 * queue.head, 16)
    (number,) = struct.unpack_from("<H", entry, 10)
    queue.number, own = number, queue.number
    ring, queue.ring = queue.ring, lambda _, head: ring(2 * own + 1, head)  # type: ignore[method-assign,assignment]
    try:
        reply = PciQueue.take(queue)
    finally:
        queue.number = own
        del queue.ring
    return None if reply is None else reply._replace(cid=reply.cid | number << 16)


def create(path: Path) -> Path:
    shape = geometry(extension_bytes=EXTENSION_BYTES, max_open_zones=4, max_active_zones=6)
    ZonedDevice.create(path, shape, uuid=UUID_1)
    return path


def contents(path: Path) -> tuple[list[Zone], list[bytes], bytes]:
    device = ZonedDevice.open(path)
    try:
        port = device.port("look", ZNS)
        data = bytearray(3 * ZONE * BLOCK)
        assert not port.read(0, len(data) // 512, [data])
        return port.report(0, NR_ZONES), [port.extension(zone_no)[1] for zone_no in range(NR_ZONES)], bytes(data)
    finally:
        device.close()


def play(
    path: Path, fatal: Sequence[int], timed: Sequence[bool] = (False,)
) -> tuple[list[tuple[int, int, int, int]], int]:
    """Run the steps in lives that die at *fatal* (each counted in its own life); return answers and last instant.

    *timed*: whether a life holds its answers, of the first lives; further ones are as the last.
    """
    deaths = list(fatal)
    kinds = list(timed)
    guest = Guest()
    driver = Driver(guest)

    def begin() -> Life:
        kind = kinds.pop(0) if len(kinds) > 1 else kinds[0]
        return Life(path, guest, deaths.pop(0) if deaths else -1, timed=kind)

    life = begin()
    for step in driver.steps():
        step(life)
        while not life.run():
            life.end()
            life = begin()
        driver.collect()
        assert guest.bar.words[Register.CSTS >> 2] == 1
    now = life.clock.now
    life.close()
    guest.close()
    return sorted(driver.answers), now


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache survives a kill, so waiting for the medium proves nothing here and takes most of the time."""
    monkeypatch.setattr("os.fdatasync", lambda _fd: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Answers, instants and final contents of a life that nothing ends."""
    path = create(tmp_path_factory.mktemp("undisturbed") / "image")
    answers, instants = play(path, ())
    return answers, instants, contents(path)


def check_life(tmp_path: Path, undisturbed: Any, fatal: Sequence[int], timed: Sequence[bool] = (False,)) -> None:
    answers, _, expected = undisturbed
    path = create(tmp_path / "-".join(map(str, fatal)))
    found, _ = play(path, fatal, timed)
    assert found == answers, f"answers, killed at {fatal}"
    assert contents(path) == expected, f"zones and data, killed at {fatal}"
    path.unlink()


def test_an_undisturbed_life(undisturbed: Any) -> None:
    answers, _, (zones, extensions, data) = undisturbed
    refused = {(queue, cid): status for queue, cid, status, _ in answers if status}
    assert refused == {
        (0, 12): NvmeStatus.INVALID_QUEUE_DELETION,
        (0, 14): NvmeStatus.COMPLETION_QUEUE_INVALID,
        (1, 1 << 16 | 5): NvmeStatus.ZONE_INVALID_WRITE,
        (1, 1 << 16 | 9): NvmeStatus.INVALID_ZONE_TRANSITION,
    }
    assert [zone.wp // BLOCK_SECTORS % ZONE for zone in zones[:3]] == [4, 2, 5]
    assert zones[7].cond is Condition.OFFLINE
    assert extensions[2] == bytes(range(EXTENSION_BYTES))
    assert data[: 4 * BLOCK] == b"".join(pattern(number) for number in (1, 2, 6, 9))
    third = data[2 * ZONE * BLOCK :][: 5 * BLOCK]
    assert third == pattern(0, 2) + b"".join(pattern(number) for number in (7, 2, 6)), "what was copied is at the end"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_instant(tmp_path: Path, undisturbed: Any) -> None:
    for fatal in range(undisturbed[1] + 1):
        check_life(tmp_path, undisturbed, [fatal])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_while_it_goes_on(tmp_path: Path, undisturbed: Any) -> None:
    for fatal in range(0, undisturbed[1], 29):
        for again in range(0, 30, 7):
            check_life(tmp_path, undisturbed, [fatal, again])


@pytest.fixture(scope="module")
def undisturbed_timed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same of a life that holds its answers, which come in another order."""
    path = create(tmp_path_factory.mktemp("timed") / "image")
    answers, instants = play(path, (), [True])
    return answers, instants, contents(path)


def test_held_answers_change_nothing_but_their_order(undisturbed: Any, undisturbed_timed: Any) -> None:
    assert undisturbed_timed[0] == undisturbed[0]
    assert undisturbed_timed[2] == undisturbed[2]
    assert undisturbed_timed[1] > undisturbed[1], "they are noted"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_instant_while_answers_are_held(tmp_path: Path, undisturbed_timed: Any) -> None:
    for fatal in range(undisturbed_timed[1] + 1):
        check_life(tmp_path, undisturbed_timed, [fatal], [True])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_that_holds_no_answers_goes_on_where_they_were_held(tmp_path: Path, undisturbed_timed: Any) -> None:
    """The daemon is started without timing, or with it, under a guest that goes on."""
    for fatal in range(0, undisturbed_timed[1] + 1, 5):
        check_life(tmp_path, undisturbed_timed, [fatal], [True, False])
        check_life(tmp_path, undisturbed_timed, [fatal], [False, True])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_again_while_it_goes_on_with_held_answers(tmp_path: Path, undisturbed_timed: Any) -> None:
    for fatal in range(0, undisturbed_timed[1], 29):
        for again in range(0, 30, 7):
            check_life(tmp_path, undisturbed_timed, [fatal, again], [True])


def test_a_zone_that_others_changed_is_not_guessed_at(tmp_path: Path) -> None:
    """Killed between intent and landing, and then another front-end writes: nothing says any more what happened."""
    for fatal in range(40):
        path = create(tmp_path / str(fatal))
        guest = Guest()
        driver = Driver(guest)
        life = Life(path, guest, -1)
        for step in (driver.enable, driver.create):
            step(life)
            assert life.run()
        life.clock.fatal = life.clock.now + fatal
        driver.append(1, 0, 1)
        driver.append(2, 0, 2)
        is_done = life.run()
        assert not is_done, "no instant was ambiguous"
        life.end()
        life = Life(path, guest, -1)
        life.begin()
        assert not life.device.port("other", ZNS).append(0, BLOCK_SECTORS, [bytes(BLOCK)])[0]
        assert life.run()
        driver.collect()
        life.close()
        guest.close()
        statuses = [status for queue, _, status, _ in driver.answers if queue]
        if any(statuses):
            assert sorted(statuses) == [0, NvmeStatus.WRITE_FAULT]
            device = ZonedDevice.open(path)
            assert last_refusal(device.port("look", ZNS)).rule == DeviceRule.CONTESTED
            device.close()
            return
    pytest.fail("no instant was ambiguous")


# -- the real thing ---------------------------------------------------------------------------------------------------

NR_LIVES = 24


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    shape = Geometry(size=64 * 2048, zone_size=2048, zone_capacity=2048, block_size_bytes=BLOCK)
    ZonedDevice.create(tmp_path / "image", shape, uuid=UUID_1)
    # A socket's path has at most 107 bytes, and a test's directory may be longer than that.
    directory = Path(tempfile.mkdtemp(prefix="vfio-"))
    daemons = Daemons(tmp_path / "image", directory / "socket", directory / "keeper")
    daemons.start()
    yield daemons
    daemons.close()
    assert not list(directory.iterdir()), "the keeper has ended"
    directory.rmdir()


def unique(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK // 8)


@pytest.mark.slow
@pytest.mark.parametrize("has_shadow", [True, False])
def test_sigkill_under_load(daemons: Daemons, *, has_shadow: bool) -> None:
    """Appends and writes of two queues, the daemon killed again and again: each block is there once, in its place.

    Without shadow doorbells each command has a message, which the daemon or the keeper takes from the socket.
    """
    rng = random.Random(20261129)
    with VfioClient(daemons.path) as client:
        guest = NvmeGuest(client)
        queues = [guest.queue(1), guest.queue(2)]
        if has_shadow:
            guest.set_shadow(queues)
        number = 0
        for life in range(NR_LIVES):
            appended, written = life * ZONE, (32 + life) * ZONE
            landed: dict[int, bytes] = {}
            waiting: dict[tuple[int, int], tuple[int, bytes]] = {}
            wp = written
            for count in range(80):
                queue = queues[count & 1]
                number += 1
                data = unique(number)
                opcode, slba = (IoOpcode.WRITE, wp) if count % 8 == 0 else (IoOpcode.ZONE_APPEND, appended)
                offset = 4096 * (count >> 1)
                client.view(queue.data + offset, BLOCK)[:] = data
                command = queue.entry(opcode, nsid=1, cdws=(slba, 0, 0), nr_bytes=BLOCK, offset=offset)
                waiting[queue.number, command.cid] = (slba if opcode == IoOpcode.WRITE else -1), data
                wp += opcode == IoOpcode.WRITE
                queue.push(command)
                if count == 60:
                    time.sleep(rng.random() * 0.01)
            daemons.kill()
            daemons.start()
            for queue in queues:
                for _ in range(40):
                    reply = queue.wait()
                    slba, data = waiting.pop((queue.number, reply.cid))
                    assert not reply.status, f"{reply.status:03X}h in life {life}"
                    landed[reply.result if slba < 0 else slba] = data
                assert queue.take() is None, "answered once"
            assert sorted(landed) == [*range(appended, appended + 70), *range(written, written + 10)]
            for slba, data in landed.items():
                assert queues[0].read(1, slba, 1, BLOCK).data == data
            zones = list(guest.zones(queues[1], 1, life + 33))
            assert (zones[life][3], zones[life + 32][3]) == (appended + 70, wp)
        daemons.stop()
        assert client.is_ended(), "an orderly end gives the guest up"
