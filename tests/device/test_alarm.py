import threading
from collections.abc import Callable
from functools import partial

import pytest

from zonefs_emu.device.alarm import Alarm, HeldAnswer

NEVER_NS = 1 << 62


def test_functions_are_called_when_they_are_due_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    monkeypatch.setattr("zonefs_emu.device.alarm.time.monotonic_ns", lambda: now_ns)
    alarm = Alarm()
    called: list[int] = []
    done = {due_ns: threading.Event() for due_ns in (10, 20, 30, NEVER_NS)}

    def note(due_ns: int) -> None:
        called.append(due_ns)
        done[due_ns].set()

    for due_ns in (NEVER_NS, 30, 10, 20):
        alarm.at(due_ns, partial(note, due_ns))
    for due_ns in (10, 20, 30):
        now_ns = due_ns
        assert done[due_ns].wait(60)
        assert called[-1] == due_ns
    assert called == [10, 20, 30]
    alarm.cut()
    assert called[-1] == NEVER_NS


def test_after_the_cut_nothing_waits() -> None:
    alarm = Alarm()
    called: list[int] = []
    for number in (3, 1, 2):
        alarm.at(NEVER_NS + number, partial(called.append, number))
    alarm.cut()
    assert called == [1, 2, 3]
    alarm.at(NEVER_NS, lambda: called.append(4))
    assert called == [1, 2, 3, 4]
    alarm.cut()


def test_a_function_that_fails_does_not_end_the_others(expect_warning: Callable[[str], None]) -> None:
    expect_warning("ERROR zonefs_emu.device.alarm: an answer that was held is not given")
    alarm, ended = Alarm(), threading.Event()
    alarm.at(0, lambda: int("no number"))
    alarm.at(1, ended.set)
    assert ended.wait(60)
    alarm.cut()


def test_what_is_held_is_of_one_thread() -> None:
    held = HeldAnswer()
    held.hold(7, 2)
    held.hold(5, 3)
    others: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: others.append(held.take()))
    thread.start()
    thread.join()
    assert others == [(0, 0)]
    assert held.take() == (7, 3)
    assert held.take()[0] == 0


def test_a_time_that_no_wait_can_last_is_no_end_of_the_others() -> None:
    alarm = Alarm()
    alarm.at(1 << 70, lambda: None)
    for _ in range(20):
        done = threading.Event()
        alarm.at(0, done.set)
        assert done.wait(60)
    alarm.cut()
