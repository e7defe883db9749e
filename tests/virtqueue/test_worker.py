import select
import threading
import time

from zonefs_emu.virtqueue.worker import Worker


def no_clock(_duration_ns: int) -> None:
    raise AssertionError


def test_jobs_run_elsewhere_and_their_ends_here() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    here = threading.get_ident()
    found: list[tuple[int, bool]] = []
    threads: list[int] = []

    def job() -> int:
        threads.append(threading.get_ident())
        return 7

    worker.submit(job, lambda result: found.append((result, threading.get_ident() == here)))
    assert select.select([worker.wake_fd], [], [], 10)[0]
    assert worker.collect()
    assert found == [(7, True)]
    assert threads != [here]
    assert not worker.collect()
    worker.close()


def test_wait_collects_until_it_is_so() -> None:
    worker: Worker[int] = Worker("worker-of-tests", no_clock)
    found: list[int] = []
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
    found: list[str] = []

    def slow() -> str:
        worker.hold_up(3)
        worker.hold_up(4)
        return "slow"

    worker.submit(slow, found.append)
    worker.submit(lambda: "quick", found.append)
    worker.wait(lambda: bool(found))
    assert (found, slept) == (["quick"], [7])
    go_on.set()
    worker.wait(lambda: len(found) == 2)
    assert found == ["quick", "slow"]
    worker.close()


def test_closing_waits_for_what_is_held_back() -> None:
    slept: list[int] = []

    def clock(duration_ns: int) -> None:
        time.sleep(duration_ns / 1e9)
        slept.append(duration_ns)

    worker: Worker[None] = Worker("worker-of-tests", clock)
    worker.submit(lambda: worker.hold_up(50_000_000), lambda _: None)
    worker.close()
    assert slept == [50_000_000]


def test_on_another_thread_it_waits_there() -> None:
    slept: list[int] = []
    worker: Worker[None] = Worker("worker-of-tests", slept.append)
    worker.hold_up(5)
    assert slept == [5]
    worker.close()
