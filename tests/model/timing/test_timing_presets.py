import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.model.presets import PRESETS
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.smr_disk import DiskTiming
from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS, ZN540, find_preset, make_timing
from zonefs_emu.model.timing.waits import Instant


def test_there_is_one_for_each_drive_with_a_geometry_and_one_without_times() -> None:
    assert set(TIMING_PRESETS) == {name for name in PRESETS if not name.startswith("small")} | {"none"}
    made = [make_timing(preset, capacity_sectors=1 << 11, size_sectors=1 << 20) for preset in TIMING_PRESETS.values()]
    assert [type(model) for model in made] == [FlashTiming, DiskTiming, Instant]


def test_they_are_found_by_name() -> None:
    assert find_preset("zn540") is ZN540
    with pytest.raises(UsageError, match="there is no timing preset 'zn541': there are zn540, smr-hm, none"):
        find_preset("zn541")
