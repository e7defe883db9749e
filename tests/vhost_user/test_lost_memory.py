"""A front-end that cuts the files it shares, against a daemon of its own process that serves another guest as well."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from tests.vhost_user.serving import ZONE, create
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.messages import Request
from zonefs_emu.virtio import blk_codec

PAGE: Final = 4096
MEMORY: Final = 16 << 20
#: What is cut off when a part of the memory is.
CUT: Final = MEMORY - (1 << 20)
#: The zones of the guest that cuts, and of the other one.
OURS, THEIRS = 2 * ZONE, 3 * ZONE


class Guests:
    """The daemon, a guest that is about to cut, and another one that appends all the time."""

    def __init__(self, image: Path, directory: Path) -> None:
        self.image = image
        self.paths = directory / "a", directory / "b"
        sockets = [option for path in self.paths for option in ("--vhost-user-blk", str(path))]
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "zonefs_emu", "serve", str(image), *sockets],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.daemon.stderr is not None
        assert "is served" in self.daemon.stderr.readline()
        self.statuses: list[int] = []
        self.ending = threading.Event()
        self.loaded = threading.Event()
        self.load = threading.Thread(target=self._load)

    def _load(self) -> None:
        with Frontend(self.paths[1]) as frontend:
            frontend.start()
            driver = BlkDriver(frontend.queues[0])
            while not self.ending.is_set():
                self.statuses.append(driver.append(THEIRS, b"t" * 512)[0])
                if len(self.statuses) % 1000 == 0:
                    driver.manage(blk_codec.T_ZONE_RESET, THEIRS)
                self.loaded.set()

    def end_load(self) -> None:
        """End the load of the other guest, which has not met an error."""
        before = len(self.statuses)
        while len(self.statuses) < before + 10 and self.load.is_alive():
            self.loaded.clear()
            self.loaded.wait(20)
        self.ending.set()
        self.load.join(30)
        assert len(self.statuses) >= before + 10
        assert not any(self.statuses)

    def end(self) -> list[str]:
        """End the daemon; return what it logged."""
        self.daemon.terminate()
        _, errors = self.daemon.communicate(timeout=60)
        assert self.daemon.returncode == 0, errors
        return [line for line in errors.splitlines() if " WARNING " in line or " ERROR " in line or "Traceback" in line]

    def ask(self, verb: str, *options: str) -> Any:
        command = [sys.executable, "-m", "zonefs_emu", verb, str(self.image), *options]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@contextmanager
def two_guests(directory: Path) -> Iterator[Guests]:
    guests = Guests(create(directory / "image"), directory)
    try:
        guests.load.start()
        assert guests.loaded.wait(60)
        yield guests
    finally:
        guests.ending.set()
        guests.load.join(60)
        guests.daemon.kill()
        guests.daemon.communicate()


#: The buffers of a request: contents or, for the device to write, a length; and whether it is in what will be cut.
Parts: TypeAlias = Sequence[tuple[bytes | int, bool]]


def lay_out(frontend: Frontend, parts: Parts) -> list[tuple[int, int, bool]]:
    """Place the buffers of a request; return its chain."""
    chain = []
    high = CUT
    for part, is_cut in parts:
        length = part if isinstance(part, int) else len(part)
        if is_cut:
            at, high = high, high + -(-length // PAGE) * PAGE
        else:
            at = frontend.heap.take(length).offset
        if isinstance(part, bytes):
            frontend.memory[at : at + length] = part
        chain.append((GUEST_BASE + at, length, isinstance(part, int)))
    return chain


def submit_and_cut(frontend: Frontend, fd: int, length: int, *requests: Parts) -> list[tuple[int, int]]:
    """Cut *fd* to *length*, then make *requests* available, as the daemon looks at rings without kicks, too.

    Returns id and place of the last byte of each.
    """
    queue = frontend.queues[0]
    chains = [lay_out(frontend, parts) for parts in requests]
    os.ftruncate(fd, length)
    found = []
    for chain in chains:
        number = queue.ring.add(chain, None)
        # What was cut is not looked at by the front-end either.
        queue._buffers[number], queue._writable[number] = [], []
        found.append((number, chain[-1][0] - GUEST_BASE + chain[-1][1] - 1))
    queue.kick(always=True)
    return found


READ: Final = BlkDriver.header(blk_codec.T_IN, OURS)
WRITE: Final = BlkDriver.header(blk_codec.T_OUT, OURS + 16)
APPEND: Final = BlkDriver.header(blk_codec.T_ZONE_APPEND, OURS)
REPORT: Final = BlkDriver.header(blk_codec.T_ZONE_REPORT, 0)
REQUESTS: Final[tuple[Parts, ...]] = (
    [(READ, False), (8192, True), (1, False)],
    [(READ, False), (4096, False), (4096, True), (1, False)],
    [(WRITE, False), (b"w" * 8192, True), (1, False)],
    [(READ, False), (512, True), (1, False)],
    [(WRITE, False), (b"w" * 4096, False), (b"w" * 4096, True), (1, False)],
    [(APPEND, False), (b"w" * 4096, True), (9, False)],
)


def test_the_data_of_a_request(tmp_path: Path) -> None:
    """The kernel says EFAULT: the request fails, the image takes the next, and nothing of the zone has changed."""
    with two_guests(tmp_path) as guests, Frontend(guests.paths[0], memory_bytes=MEMORY) as frontend:
        frontend.start()
        queue = frontend.queues[0]
        driver = BlkDriver(queue)
        assert driver.write(OURS, b"o" * 8192) == 0
        for number, status_at in submit_and_cut(frontend, frontend.memory_fd, CUT, *REQUESTS):
            queue.wait(number)
            assert frontend.memory[status_at] == blk_codec.S_IOERR
        assert driver.report(OURS, 1)[1][0].wp == OURS + 16
        assert driver.write(OURS + 16, b"n" * 4096) == 0
        assert driver.read(OURS, 16384) == (0, b"o" * 8192 + b"n" * 4096 + bytes(4096))
        guests.end_load()
        assert guests.ask("info", "--json")["poison"] is None
        refusals = guests.ask("why", "--json")["refusals"]
        assert [refusal["rule"] for refusal in refusals] == ["LOST_BUFFER"]
        assert guests.end() == []


def cut_memory(*parts: tuple[bytes | int, bool]) -> Callable[[Frontend], object]:
    return lambda frontend: submit_and_cut(frontend, frontend.memory_fd, CUT, parts)


def cut_everything(frontend: Frontend) -> None:
    for _ in range(20):
        frontend.queues[0].submit([READ], [512, 1])
    os.ftruncate(frontend.memory_fd, 0)
    os.eventfd_write(frontend.queues[0].kick_fd, 1)


def cut_inflight(frontend: Frontend) -> None:
    submit_and_cut(frontend, frontend._inflight_fd, 0, [(APPEND, False), (b"i" * 4096, False), (9, False)])


def cut_dirty_log(frontend: Frontend) -> None:
    frontend.begin_log((GUEST_BASE + MEMORY) // PAGE // 8)
    submit_and_cut(frontend, frontend._log_fd, 0, [(READ, False), (512, False), (1, False)])


ENDINGS: Final[tuple[Callable[[Frontend], object], ...]] = (
    cut_memory((READ, False), (512, False), (1, True)),
    cut_memory((WRITE, True), (b"h" * 512, False), (1, False)),
    cut_memory((REPORT, False), (64 * 33, True), (1, False)),
    cut_memory((REPORT, False), (1 << 19, True), (1, False)),  # made by the worker
    cut_everything,
    cut_inflight,
    cut_dirty_log,
)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_the_daemon_itself_looks_at(tmp_path: Path, packed: bool) -> None:
    """The connection ends with one line, the socket takes the next front-end, and the other guest does not notice."""
    with two_guests(tmp_path) as guests:
        for cut in ENDINGS:
            with Frontend(guests.paths[0], packed=packed, memory_bytes=MEMORY) as frontend:
                frontend.start()
                cut(frontend)
                with pytest.raises(PeerError, match="closed the connection"):
                    frontend.receive(Request.GET_FEATURES)
        with Frontend(guests.paths[0], packed=packed) as frontend:
            frontend.start()
            driver = BlkDriver(frontend.queues[0])
            assert driver.append(OURS, b"n" * 4096)[0] == 0
            assert driver.flush() == 0
        guests.end_load()
        assert guests.ask("info", "--json")["poison"] is None
        lines = guests.end()
        assert len(lines) == len(ENDINGS)
        assert all(
            "the connection ends: a file of the memory that it shares was cut by the front-end" in line
            for line in lines
        )
