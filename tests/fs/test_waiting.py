"""How a mount waits for requests: soon ones are looked for, an idle mount sleeps, other tasks get their turn."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3
import pytest
import trio
import trio.testing

from tests.fs.conftest import APPEND_DIRECT, BLOCK, RW_DIRECT, Bench, blocks
from tests.fs.mounts import Mounted, mounted
from tests.fs.test_mount import wait_until
from zonefs_emu.fs.waiting import RequestWaiter, WorkerLock


@pytest.fixture(autouse=True)
def pyfuse3s_trio() -> Iterator[None]:
    before = vars(pyfuse3)["trio"]
    yield
    vars(pyfuse3)["trio"] = before


def test_pyfuse3_takes_trio_from_a_variable() -> None:
    before = vars(pyfuse3)["trio"]
    RequestWaiter().install()
    assert vars(pyfuse3)["trio"] is not before


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_what_is_there_is_found_without_a_sleep(pipe: tuple[int, int]) -> None:
    waiter = RequestWaiter()
    os.write(pipe[1], b"x")
    await waiter.wait_readable(pipe[0])
    assert waiter.nr_sleeps == 0


async def test_a_sleep_that_is_long_makes_the_next_look_shorter(pipe: tuple[int, int]) -> None:
    waiter = RequestWaiter()
    waiter.polling.look_ns = 40_000
    looks = []
    for _ in range(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter.wait_readable, pipe[0])
            await trio.sleep(0.005)
            os.write(pipe[1], b"x")
        os.read(pipe[0], 1)
        looks.append(waiter.polling.look_ns)
    assert waiter.nr_sleeps == 8
    assert looks == sorted(looks, reverse=True)
    assert waiter.polling.look_ns == 0


async def test_other_tasks_get_their_turn_although_requests_never_end(pipe: tuple[int, int]) -> None:
    waiter = RequestWaiter()
    os.write(pipe[1], b"x")
    turns: list[int] = []

    async def other() -> None:
        while True:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(320):
            await waiter.wait_readable(pipe[0])
        nursery.cancel_scope.cancel()
    assert len(turns) >= 5  # in the order of trio, which draws lots


async def test_the_lock_stays_with_the_worker_that_comes_back(pipe: tuple[int, int]) -> None:
    lock = WorkerLock()
    had: list[str] = []

    async def worker(name: str, *, waits: bool) -> None:
        for _ in range(3):
            async with lock:
                had.append(name)
                assert not waits or had[-1] == name
            if waits:
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker("first", waits=False))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: worker("second", waits=True))
        nursery.start_soon(lambda: worker("third", waits=True))
    assert had[:3] == ["first"] * 3
    assert sorted(had[3:]) == ["second"] * 3 + ["third"] * 3


async def test_the_lock_is_held_by_one_and_given_to_all(autojump_clock: trio.testing.MockClock) -> None:
    lock = WorkerLock()
    holders = nr_served = 0

    async def worker() -> None:
        nonlocal holders, nr_served
        for _ in range(20):
            async with lock:
                holders += 1
                assert holders == 1
                await trio.sleep(0.001)
                holders -= 1
            nr_served += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(worker)
    assert nr_served == 100


@contextmanager
def _reading_without_end(fs: Mounted, name: str) -> Iterator[None]:
    done = threading.Event()

    def read() -> None:
        fd = os.open(fs.path / name, os.O_RDONLY | os.O_DIRECT)
        try:
            while not done.is_set():
                assert os.pread(fd, BLOCK, 0) == blocks(1)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.fuse
def test_one_request_after_another_needs_two_workers(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "pyfuse3"), mounted(bench) as fs:
        fd = fs.open("seq/0", RW_DIRECT)
        for index in range(16):
            os.pwrite(fd, blocks(1), index * BLOCK)
        for _ in range(10):
            assert len(os.pread(fd, 16 * BLOCK, 0)) == 16 * BLOCK
            os.stat(fs.path / "seq/1")
        # close(2) and its RELEASE overlap with what follows, so there can be one more.
        assert caplog.text.count("starting another worker") <= 3


@pytest.mark.fuse
def test_an_idle_mount_sleeps(bench: Bench) -> None:
    with mounted(bench) as fs:
        waiter = fs.server.mount.waiter  # type: ignore[union-attr]  # it is mounted
        for _ in range(3):
            before = waiter.nr_sleeps
            os.stat(fs.path / "seq/0")
            wait_until(lambda before=before: waiter.nr_sleeps > before)  # type: ignore[misc]  # a default in a lambda


@pytest.mark.fuse
def test_a_busy_mount_serves_writers_flushes_and_other_tasks(bench: Bench, make_bench: Callable[..., Bench]) -> None:
    with mounted(bench) as fs:
        fd = fs.open("seq/0", APPEND_DIRECT)
        os.write(fd, blocks(1))
        with _reading_without_end(fs, "seq/0"):
            other = fs.open("seq/1", RW_DIRECT)
            for index in range(10):
                assert os.pwrite(other, blocks(1), index * BLOCK) == BLOCK
                os.fsync(other)
                assert fs.server.call(lambda: "a task had its turn")
        assert fs.size("seq/1") == 10 * BLOCK
