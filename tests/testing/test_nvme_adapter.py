"""The scenarios of the conformance suite over NVMe/TCP and vfio-user."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from zonefs_emu.errors import Status
from zonefs_emu.testing.conformance import Adapter, Answer, Place, differences, run
from zonefs_emu.testing.nvme_adapter import NvmeAdapter, NvmePciAdapter, ZnsAdapter
from zonefs_emu.testing.scenarios import ZNS_SHAPES
from zonefs_emu.testing.zoned_device import DeviceUnderTest


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize("adapter", [NvmeAdapter, NvmePciAdapter])
@pytest.mark.parametrize("shape", ZNS_SHAPES)
def test_nvme_leads_to_the_same_device_as_its_dialect(tmp_path: Path, shape: str, adapter: type[NvmeAdapter]) -> None:
    expected = run(ZNS_SHAPES[shape], ZnsAdapter, tmp_path / "device")
    found = run(ZNS_SHAPES[shape], adapter, tmp_path / "nvme")
    assert "\n".join(differences(expected, found, "nvme")) == ""


class LyingAdapter(NvmeAdapter):
    """Answers writes beside the write pointer with another status."""

    def do(self, place: Place) -> Answer:
        answer = super().do(place)
        if Status.UNALIGNED_WP in answer.meanings:
            return answer._replace(meanings=frozenset((Status.ZONE_FULL,)), code="status 1B9h")
        return answer


def test_a_wrong_status_is_found(tmp_path: Path) -> None:
    def lying(device: DeviceUnderTest, stack: ExitStack) -> Adapter:
        return LyingAdapter(device, stack)

    shape = ZNS_SHAPES["4096"]
    found = differences(run(shape, ZnsAdapter, tmp_path / "device"), run(shape, lying, tmp_path / "nvme"), "nvme")
    assert "a write beside wp is refused, step 0 (WRITE): status 1B9h does not mean UNALIGNED_WP" in found
