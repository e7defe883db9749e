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


class Clock:
    """A clock that a wait moves, by more than was asked for. What is notified ends no wait of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late_ns: int) -> None:
        self.now_ns = 0
        self.late_ns = late_ns
        self.waits_ns: list[int] = []
        monkeypatch.setattr("zonefs_emu.device.alarm.time.monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr("zonefs_emu.device.alarm.time.sleep", self.look)
        monkeypatch.setattr("zonefs_emu.device.alarm.threading.Condition.wait", self.wait)

    def look(self, _seconds: float) -> None:
        self.now_ns += 1000

    def wait(self, seconds: float | None = None) -> bool:
        assert seconds is not None, "there is always something to wait for"
        self.waits_ns.append(round(seconds * 1e9))
        self.now_ns += self.waits_ns[-1] + self.late_ns
        return False


@pytest.mark.parametrize(("late_ns", "late_at_last_ns"), [(60_000, 1000), (5_000_000, 4_701_000)])
def test_a_wait_ends_earlier_by_what_earlier_ones_were_late(
    monkeypatch: pytest.MonkeyPatch, late_ns: int, late_at_last_ns: int
) -> None:
    """By at most 300 us; functions are not called before they are due all the same."""
    clock = Clock(monkeypatch, late_ns)
    alarm = Alarm()
    late: list[int] = []
    left = 100

    def note(due_ns: int) -> None:
        nonlocal left
        late.append(clock.now_ns - due_ns)
        left -= 1
        if left:
            again_ns = clock.now_ns + 1_000_000
            alarm.at(again_ns, partial(note, again_ns))
        else:
            alarm.cut()

    alarm._queue = [(1_000_000, 0, partial(note, 1_000_000))]  # served by this thread
    alarm._thread = threading.current_thread()
    alarm._run()
    assert len(late) == 100
    assert late[0] == late_ns
    assert min(late) >= 0
    assert max(late[50:]) <= late_at_last_ns
