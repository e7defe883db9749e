"""The order of writes, against a list in which a written zone moves to the end."""

from hypothesis import given, strategies as st

from zonefs_emu.model.recency import Recency


@given(steps=st.lists(st.tuples(st.sampled_from(("write", "write", "remove", "look")), st.integers(0, 5))))
def test_the_least_recently_written_zone_comes_first(steps: list[tuple[str, int]]) -> None:
    recency, expected = Recency(), list[int]()
    for step, zone_no in steps:
        if step == "look":
            assert list(recency.oldest()) == expected
        elif zone_no not in expected:
            recency.add(zone_no)
            expected.append(zone_no)
        elif step == "write":
            recency.note(zone_no)
            expected.remove(zone_no)
            expected.append(zone_no)
        else:
            recency.remove(zone_no)
            expected.remove(zone_no)
        assert len(recency) == len(expected)
    assert list(recency.oldest()) == expected


def test_zones_are_removed_while_they_are_gone_through() -> None:
    recency = Recency()
    for zone_no in range(6):
        recency.add(zone_no)
    for zone_no in (0, 3):
        recency.note(zone_no)
    removed = []
    for zone_no in recency.oldest():
        if zone_no % 2:
            recency.remove(zone_no)
            removed.append(zone_no)
    assert removed == [1, 5, 3]
    assert list(recency.oldest()) == [2, 4, 0]
