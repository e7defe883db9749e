"""What cannot be attached by NVMe; attaching itself is tested in the guest."""

from pathlib import Path

import pytest

from tests.nvme.conftest import geometry
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends import nvme_host
from zonefs_emu.front_ends.nvme_host import NvmeHostFrontEnd
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme_tcp import attached_drive, kernel_host


def test_the_kernel_gives_the_name() -> None:
    with pytest.raises(UsageError, match="leave out --name nvme7"):
        NvmeHostFrontEnd(name="nvme7")


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (Geometry(size=4096, zone_size=1024, zone_capacity=1024, conventional=((0, 1),)), "conventional zones"),
        (Geometry(size=4 * 3000, zone_size=3000, zone_capacity=3000), "power of two"),
        (Geometry(size=4096, zone_size=1024, zone_capacity=1024, active_excursions=True), "--zone-active-excursions"),
    ],
)
def test_shapes_that_do_not_fit(shape: Geometry, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        nvme_host.require(shape)


def test_the_kernel_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_host, "_FABRICS", tmp_path / "none")
    with pytest.raises(UsageError, match="modprobe nvme-tcp"):
        nvme_host.require(geometry())
    (tmp_path / "none").write_text("dhchap_secret=%s")
    nvme_host.require(geometry())


def test_what_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached_drive, "left_behind", lambda _: ["/dev/nvme9n1"])
    ((front_end, node),) = nvme_host.left_behind("u")
    assert (front_end.name, node) == ("nvme-tcp", "/dev/nvme9n1")
