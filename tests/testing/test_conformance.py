"""All adapters beside the device's own; and that an adapter that lies is found out."""

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.testing.conformance import (
    ADAPTERS,
    Adapter,
    Answer,
    DeviceAdapter,
    FuseAdapter,
    Place,
    Result,
    View,
    differences,
    run,
)
from zonefs_emu.testing.scenarios import SCENARIOS, SHAPES
from zonefs_emu.testing.zoned_device import DeviceUnderTest


@pytest.fixture(autouse=True)
def _own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@cache
def reference(shape: str) -> list[Result]:
    """What the device itself does; the same for every adapter."""
    with TemporaryDirectory() as directory:
        return run(SHAPES[shape], DeviceAdapter, Path(directory) / "device")


def report(sentences: list[str]) -> str:
    return "\n".join(sentences)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param(adapter, id=adapter.name, marks=[pytest.mark.fuse] if adapter is FuseAdapter else [])
        for adapter in ADAPTERS
    ],
)
def test_every_adapter_leads_to_the_same_device(tmp_path: Path, adapter: type[Adapter], shape: str) -> None:
    found = run(SHAPES[shape], adapter, tmp_path / adapter.name)
    assert report(differences(reference(shape), found, adapter.name)) == ""


def test_every_status_of_a_zone_rule_occurs() -> None:
    of_the_host = {Status.IO_ERROR, Status.NO_SPACE, Status.POISONED, Status.UNSUPPORTED}
    # Only NVMe can give a zone an area, so scenarios for all front-ends have none (tests/device/test_zns_commands.py).
    of_areas = {status for status in Status if status.name.startswith("ZRWA_")}
    assert {step.expected for scenario in SCENARIOS for step in scenario.steps} == set(Status) - of_the_host - of_areas


def test_what_a_adapter_cannot_say_changes_nothing() -> None:
    """Else the zones behind it would not be those behind the others."""
    assert all(step.expected for scenario in SCENARIOS for step in scenario.steps if step.cannot or step.unlike)


class LyingAdapter(DeviceAdapter):
    """Wrong in one way at a time."""

    lie = ""

    def do(self, place: Place) -> Answer:
        operation = place.step.operation
        if self.lie == "does nothing" and operation is Operation.RESET:
            return Answer(frozenset((Status.OK,)), "nothing done")
        answer = super().do(place)
        if self.lie == "another code" and Status.UNALIGNED_WP in answer.meanings:
            return answer._replace(meanings=frozenset((Status.ZONE_FULL,)), code="code 7")
        if self.lie == "other data" and answer.data:
            return answer._replace(data=answer.data[:-1] + b"x")
        if self.lie == "too little data" and answer.data:
            return answer._replace(data=answer.data[:-1])
        if self.lie == "another place" and answer.landed > 0:
            return answer._replace(landed=answer.landed + 1)
        return answer

    def views(self) -> list[View]:
        views = super().views()
        if self.lie == "another wp":
            return [view._replace(written=1) if view.written == 0 else view for view in views]
        return views


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        ("does nothing", "a reset zone has nothing of what it had, step 1 (RESET): the zone is Zone(zone_no="),
        ("another code", "a write beside wp is refused, step 0 (WRITE): code 7 does not mean UNALIGNED_WP"),
        ("other data", "writes follow one another, step 2 (READ): other data was read: first at byte 12287"),
        ("too little data", "writes follow one another, step 2 (READ): other data was read: 12287 bytes, not 12288"),
        ("another place", "appends say where they landed, step 0 (APPEND): the append landed at sector"),
        ("another wp", "writes follow one another, step 0 (WRITE): written of zone 3 is shown as 1, not 0"),
    ],
)
def test_a_adapter_that_lies_is_found_out(tmp_path: Path, lie: str, sentence: str) -> None:
    def lying(device: DeviceUnderTest, stack: ExitStack) -> Adapter:
        adapter = LyingAdapter(device, stack)
        adapter.lie = lie
        return adapter

    found = differences(reference("4096"), run(SHAPES["4096"], lying, tmp_path / "device"), "device")
    assert sentence in report(found)


def test_a_adapter_that_ends_early_is_found_out() -> None:
    steps = reference("512")
    assert differences(steps, steps[:-1], "device") == [f"it took {len(steps) - 1} steps, not {len(steps)}"]
