"""Scans over conditions, against loops."""

from hypothesis import given, strategies as st

from zonefs_emu.model.scan import first_index, indices_of
from zonefs_emu.model.zone import Condition

CONDS = st.frozensets(st.sampled_from(Condition))


@given(conds=CONDS, codes=st.lists(st.sampled_from(Condition)).map(bytearray), first=st.integers(0, 1000))
def test_places_of_conditions(conds: frozenset[Condition], codes: bytearray, first: int) -> None:
    places = [place for place, code in enumerate(codes) if code in conds]
    assert list(indices_of(conds, codes)) == list(indices_of(conds, bytes(codes))) == places
    assert list(indices_of(conds, codes, first)) == [first + place for place in places]
    if places:
        assert first_index(conds, codes) == places[0]
