"""Scans over conditions, against loops."""

from unittest.mock import patch

from hypothesis import given, strategies as st

from zonefs_emu.errors import Status
from zonefs_emu.model import scan
from zonefs_emu.model.scan import first_index, first_refused, indices_of
from zonefs_emu.model.transitions import ZNS, Operation
from zonefs_emu.model.zone import Condition

CONDS = st.frozensets(st.sampled_from(Condition))


@given(conds=CONDS, codes=st.lists(st.sampled_from(Condition)).map(bytearray), first=st.integers(0, 1000))
def test_places_of_conditions(conds: frozenset[Condition], codes: bytearray, first: int) -> None:
    places = [place for place, code in enumerate(codes) if code in conds]
    assert list(indices_of(conds, codes)) == list(indices_of(conds, bytes(codes))) == places
    assert list(indices_of(conds, codes, first)) == [first + place for place in places]
    if places:
        assert first_index(conds, codes) == places[0]


@given(operation=st.sampled_from((Operation.OPEN, Operation.RESET)), codes=st.lists(st.sampled_from(Condition)))
def test_the_first_that_is_refused(operation: Operation, codes: list[Condition]) -> None:
    row = ZNS.table[operation]
    refused = [(place, target) for place, cond in enumerate(codes) if isinstance(target := row[cond], Status)]
    expected = refused[0] if refused else None
    assert first_refused(row, bytearray(codes)) == expected
    with patch.object(scan, "_FEW", 0):
        assert first_refused(row, bytearray(codes)) == expected
