from dataclasses import FrozenInstanceError

import pytest

from zonefs_emu.fitting.search import SEARCHED as SEARCH
from zonefs_emu.model.timing.parameters import BY_HAND, SEARCHED, SOURCES, parameters_of
from zonefs_emu.model.timing.timing_presets import SMR_HM, ZN540


@pytest.mark.parametrize("preset", [ZN540, SMR_HM])
def test_each_parameter_has_a_meaning_a_source_and_the_unit_of_its_name(preset: object) -> None:
    assert isinstance(preset, type(ZN540) | type(SMR_HM))
    rows = list(parameters_of(preset))
    assert len(rows) > 6
    for row in rows:
        assert row.meaning
        assert row.source in SOURCES
        by_name = "ns/B" if "byte_ns" in row.name else "ns" if row.name.endswith("_ns") else None
        by_name = "B" if row.name.endswith("_bytes") else by_name
        assert by_name is None or row.unit == by_name, row.name
        assert getattr(preset, row.name) == row.value


def test_only_what_the_search_of_random_reads_finds_is_called_searched() -> None:
    """The parameters of writes are searched by `fit` as well, but those of the preset were tuned by hand.

    So were two parameters of reads, after mixes of jobs had shown how long the controller takes for a read.
    """
    sources = {row.name: row.source for row in parameters_of(ZN540)}
    assert {name for name, source in sources.items() if source == SEARCHED} == (
        set(SEARCH["random read"]) - {"bus_ns", "read_base_ns"}
    )
    assert sources["controller_write_ns"] == BY_HAND


def test_a_preset_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ZN540.bus_ns = 1  # type: ignore[misc]
