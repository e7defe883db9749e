import pytest

from zonefs_emu.virtqueue.changes import INTERVAL_NS, ZoneChanges


def test_zones_that_others_changed_are_contested() -> None:
    seen = ZoneChanges()
    assert not seen.contested(3)
    assert not seen.contested(-1)
    seen(3, 1)
    seen(7, 2)
    assert [seen.contested(zone_no) for zone_no in (-1, 0, 2, 3, 4, 7, 8, 9)] == [
        True, False, False, True, False, True, True, False,
    ]  # fmt: skip


def test_very_many_zones_are_all() -> None:
    seen = ZoneChanges()
    seen(0, 1 << 20)
    assert seen.contested(1 << 23)
    seen(1, 1)
    assert seen.contested(5)


@pytest.mark.parametrize(("nr_zones", "is_all"), [(1 << 16, False), ((1 << 16) + 1, True)])
def test_up_to_so_many_zones_are_known_one_by_one(nr_zones: int, *, is_all: bool) -> None:
    seen = ZoneChanges()
    seen(0, nr_zones)
    assert seen.contested(nr_zones - 1)
    assert seen.contested(nr_zones) is is_all
    assert seen.contested(-1)


def test_the_front_end_is_told_at_a_gentle_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10 * INTERVAL_NS
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    seen = ZoneChanges()
    calls: list[int] = []
    seen.wake = lambda: calls.append(1)
    assert seen.due_ns() is None
    assert not seen.take()
    for zone_no in range(100):
        seen(zone_no, 1)
    assert len(calls) == 1
    assert seen.take()
    assert not seen.take()
    seen(1, 1)
    assert len(calls) == 2
    now += INTERVAL_NS // 4
    assert seen.due_ns() == INTERVAL_NS - INTERVAL_NS // 4
    assert not seen.take()
    now += INTERVAL_NS
    assert seen.take()
