import select
import threading

from zonefs_emu.vhost_user.worker import Worker


def test_jobs_run_elsewhere_and_their_ends_here() -> None:
    worker: Worker[int] = Worker("worker-of-tests")
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
    worker: Worker[int] = Worker("worker-of-tests")
    found: list[int] = []
    for number in range(5):
        worker.submit(lambda number=number: number, found.append)  # type: ignore[misc]  # bound now
    worker.wait(lambda: len(found) == 5)
    assert found == [0, 1, 2, 3, 4]
    worker.close()
