import threading
from collections.abc import Callable

import pytest

from tests.readable import is_readable
from zonefs_emu.virtqueue.worker import Worker


def no_clock(_duration_ns: int) -> None:
    raise AssertionError


def test_jobs_run_elsewhere_and_their_ends_here() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    here = threading.get_ident()
    found: list[tuple[int | Exception, bool]] = []
    threads: list[int] = []

    def job() -> int:
        threads.append(threading.get_ident())
        return 7

    assert not is_readable(worker.wake_fd)
    worker.submit(job, lambda result: found.append((result, threading.get_ident() == here)))
    assert is_readable(worker.wake_fd, 10)
    assert worker.collect()
    assert found == [(7, True)]
    assert threads != [here]
    assert not worker.collect()
    worker.close()


def test_wait_collects_until_it_is_so() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    found: list[int | Exception] = []
    for number in range(5):
        worker.submit(lambda number=number: number, found.append)  # type: ignore[misc]  # bound now
    worker.wait(lambda: len(found) == 5)
    assert found == [0, 1, 2, 3, 4]
    worker.close()


def test_a_result_that_is_held_back_holds_up_no_other() -> None:
    slept: list[int] = []
    go_on = threading.Event()

    def clock(duration_ns: int) -> None:
        slept.append(duration_ns)
        assert go_on.wait(20)

    worker: Worker[str] = Worker("worker-of-tests", clock)
    found: list[str | Exception] = []

    def slow() -> str:
        worker.defer(3)
        worker.defer(4)
        return "slow"

    worker.submit(slow, found.append)
    worker.submit(lambda: "quick", found.append)
    while not found:
        assert is_readable(worker.wake_fd, 10)
        worker.collect()
    assert (found, slept) == (["quick"], [7])
    go_on.set()
    worker.wait(lambda: len(found) == 2)
    assert found == ["quick", "slow"]
    worker.close()


@pytest.mark.parametrize("end", ["wait", "close"])
def test_what_is_held_back_is_not_waited_for(end: str) -> None:
    """Nor is the thread that waits told of the end: it finds its result taken."""
    entered, go_on = threading.Event(), threading.Event()

    def clock(_duration_ns: int) -> None:
        entered.set()
        assert go_on.wait(60)

    worker: Worker[str] = Worker("worker-of-tests", clock)
    found: list[str | Exception] = []

    def slow() -> str:
        worker.defer(3600 * 1_000_000_000)
        return "slow"

    worker.submit(slow, found.append)
    assert entered.wait(20)
    if end == "wait":
        assert worker.wait(lambda: bool(found))
    worker.close()
    go_on.set()
    assert found == (["slow"] if end == "wait" else [])


def test_what_a_job_raises_comes_back_and_the_next_job_runs() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    found: list[int | Exception] = []
    bug = AssertionError("a bug")

    def broken() -> int:
        raise bug

    worker.submit(broken, found.append)
    worker.submit(lambda: 7, found.append)
    assert worker.wait(lambda: len(found) == 2)
    assert found == [bug, 7]
    worker.close()


def test_an_answer_that_cannot_be_delivered_is_an_error_to_its_asker() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    found: list[int | Exception] = []
    bug = AssertionError("a bug")

    def then(outcome: int | Exception) -> None:
        if not isinstance(outcome, Exception):
            raise bug
        found.append(outcome)

    worker.submit(lambda: 7, then)
    worker.submit(lambda: 8, found.append)
    assert worker.wait(lambda: len(found) == 2)
    assert found == [bug, 8]
    worker.close()


def test_an_answer_that_cannot_be_delivered_keeps_what_its_job_raised() -> None:
    """Both tracebacks are logged."""
    worker: Worker[None] = Worker("worker-of-tests", no_clock)
    found: list[BaseException | None] = []

    def job() -> None:
        raise KeyError

    def then(outcome: Exception | None) -> None:
        if isinstance(outcome, KeyError):
            raise IndexError
        assert outcome is not None
        found.append(outcome.__context__)

    worker.submit(job, then)
    assert worker.wait(lambda: bool(found))
    assert isinstance(found[0], KeyError)
    worker.close()


def test_a_job_that_the_host_keeps_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("is abandoned")
    monkeypatch.setattr("zonefs_emu.virtqueue.worker._END_S", 0.01)
    worker: Worker[None] = Worker("worker-of-tests", no_clock)
    found: list[Exception | None] = []
    entered, go_on = threading.Event(), threading.Event()

    def stuck() -> None:
        entered.set()
        assert go_on.wait(60)

    worker.submit(stuck, found.append)
    assert entered.wait(20)
    threading.Timer(0.05, worker.end_waiting).start()
    assert not worker.wait(lambda: bool(found))
    worker.close()
    go_on.set()
    worker._thread.join(20)
    assert not worker._thread.is_alive()
    assert found == []


@pytest.mark.parametrize(("is_ending", "seconds"), [(False, 30.0), (True, 2.0)])
def test_how_long_a_job_is_waited_for(monkeypatch: pytest.MonkeyPatch, is_ending: bool, seconds: float) -> None:
    """A clock that only waiting moves: nothing is waited for once the time is over."""
    worker: Worker[None] = Worker("worker-of-tests", no_clock)
    now = [100.0]
    waits: list[float] = []

    def wait(left: float) -> None:
        waits.append(left)
        now[0] += left

    with monkeypatch.context() as patched:
        patched.setattr("zonefs_emu.virtqueue.worker.time.monotonic", lambda: now[0])
        patched.setattr(worker._changed, "wait", wait)
        if is_ending:
            worker.end_waiting()
        assert not worker.wait(lambda: False)
    assert waits == [seconds]
    worker._end_at = float("inf")
    worker.close()


def test_on_another_thread_it_waits_there() -> None:
    slept: list[int] = []
    worker: Worker[None] = Worker("worker-of-tests", slept.append)
    worker.defer(5)
    assert slept == [5]
    worker.close()
