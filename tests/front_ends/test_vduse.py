"""Names; attaching itself is tested in the guest, by tests/attaching.py."""

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.vduse import VduseFrontEnd


def test_names() -> None:
    assert VduseFrontEnd().name == "vduse"
    assert VduseFrontEnd(name="disk-1").node is None
    with pytest.raises(UsageError, match="cannot be the name"):
        VduseFrontEnd(name="a/b")
