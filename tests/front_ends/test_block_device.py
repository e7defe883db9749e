"""The choice of the way and of names; attaching itself is tested in the guest."""

from functools import partial

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import nvme_host, ublk, vduse
from zonefs_emu.front_ends.block_device import choose
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.vduse.vdpa_bus import Driver

GEOMETRY = Geometry(
    size=8 * 2048,
    zone_size=2048,
    zone_capacity=1536,
    conventional=((0, 1), (4, 2)),
    max_open_zones=3,
    max_active_zones=4,
)


@pytest.mark.parametrize(
    ("via", "driver", "able", "chosen"),
    [
        ("auto", Driver.HOST, {"ublk", "vduse"}, "ublk"),
        ("auto", Driver.HOST, {"vduse"}, "vduse"),
        ("auto", Driver.VM, {"ublk", "vduse"}, "vduse"),
        ("vduse", Driver.HOST, {"ublk", "vduse"}, "vduse"),
        ("ublk", Driver.HOST, {"vduse"}, "cannot ublk"),
        ("nvme-tcp", Driver.HOST, {"ublk", "nvme-tcp"}, "nvme-tcp"),
        ("nvme-tcp", Driver.HOST, {"ublk"}, "cannot nvme-tcp"),
        ("auto", Driver.HOST, set(), "cannot ublk; and cannot vduse"),
        ("auto", Driver.VM, {"ublk"}, "cannot vduse"),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, via: str, driver: Driver, able: set[str], chosen: str) -> None:
    def require(way: str, *_: object) -> None:
        if way not in able:
            raise UsageError(f"cannot {way}", exit_code=1)

    monkeypatch.setattr(ublk, "require", partial(require, "ublk"))
    monkeypatch.setattr(vduse, "require", partial(require, "vduse"))
    monkeypatch.setattr(nvme_host, "require", partial(require, "nvme-tcp"))
    if chosen.startswith("cannot"):
        with pytest.raises(UsageError) as caught:
            choose(via, driver, GEOMETRY)
        assert str(caught.value) == chosen
    else:
        assert choose(via, driver, GEOMETRY) == chosen
