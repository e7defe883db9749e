from hypothesis import given, strategies as st

from zonefs_emu.model.timing.bus import Bus


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6)), max_size=30))
def test_a_transfer_takes_the_idle_time_from_when_it_is_ready(transfers: list[tuple[int, int]]) -> None:
    """Compared with a bus that is a set of busy nanoseconds: no time is used twice, and none is lost."""
    bus, busy = Bus(), set[int]()
    for ready_ns, service_ns in transfers:
        end_ns = bus.transfer(ready_ns, service_ns)
        at, left_ns = ready_ns, service_ns
        while left_ns:
            if at not in busy:
                busy.add(at)
                left_ns -= 1
            at += 1
        assert end_ns == at
        for at in range(70):
            assert bus.idle_ns(at) == next(idle for idle in range(at, 500) if idle not in busy)


def test_periods_that_are_over_are_forgotten() -> None:
    bus = Bus()
    for begin in (0, 10, 20):
        bus.transfer(begin, 5)
    bus.forget(15)
    assert bus.transfer(20, 1) == 26
    bus.forget(100)
    assert bus.transfer(20, 1) == 21
