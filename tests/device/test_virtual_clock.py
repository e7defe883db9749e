import pytest

from zonefs_emu.device.virtual_clock import Submitted, VirtualClock


def test_a_command_that_is_called_moves_the_clock() -> None:
    clock = VirtualClock()
    clock.advance(5)
    clock.advance(7)
    assert (clock.now_ns, clock.now()) == (12, 12)


def test_commands_that_are_submitted_overlap() -> None:
    clock = VirtualClock()
    slow = clock.submit(clock.advance, 100)
    clock.advance(30)
    fast = clock.submit(clock.advance, duration_ns=20)
    assert (clock.now_ns, clock.nr_in_flight) == (30, 2)
    assert (slow.begin_ns, slow.end_ns, fast.begin_ns, fast.end_ns) == (0, 100, 30, 50)
    assert fast.latency_ns == 20
    clock.advance(20)
    assert clock.nr_in_flight == 1
    clock.run_until_idle()
    assert (clock.now_ns, clock.nr_in_flight) == (100, 0)


def test_the_time_is_the_commands_own_while_it_is_submitted() -> None:
    """An operation that an injected delay holds up first arrives at the model after that."""
    clock = VirtualClock()
    clock.advance(1000)

    def command() -> tuple[int, int]:
        clock.advance(3)
        return clock.now(), clock.now_ns

    assert clock.submit(command).result == (1003, 1003)
    assert (clock.now(), clock.now_ns) == (1000, 1000)


def test_an_answer_may_submit_the_next_command_at_its_time() -> None:
    clock = VirtualClock()
    ends: list[int] = []

    def again(done: Submitted[None]) -> None:
        assert clock.now_ns == done.end_ns
        ends.append(done.end_ns)
        if len(ends) < 4:
            clock.submit_then(again, lambda: clock.advance(10))

    clock.submit_then(again, lambda: clock.advance(10))
    clock.advance(25)
    assert (ends, clock.now_ns) == ([10, 20], 25)
    clock.run_until_idle()
    assert (ends, clock.now_ns) == ([10, 20, 30, 40], 40)


def test_a_command_that_raises_is_not_under_way() -> None:
    clock = VirtualClock()

    def command() -> None:
        clock.advance(5)
        raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"):
        clock.submit(command)
    assert (clock.now_ns, clock.nr_in_flight) == (0, 0)
    clock.advance(1)
    assert clock.now_ns == 1
