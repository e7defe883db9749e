"""Names; attaching itself is tested in the guest, by tests/attaching.py."""

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.ublk import UblkFrontEnd, device_number


@pytest.mark.parametrize(("name", "number"), [(None, None), ("3", 3), ("ublkb12", 12), ("/dev/ublkb0", 0)])
def test_numbers(name: str | None, number: int | None) -> None:
    assert device_number(name) == number


@pytest.mark.parametrize("name", ["disk", "", "-1", "ublkb"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="the name of a ublk device is a number"):
        UblkFrontEnd(name=name)
