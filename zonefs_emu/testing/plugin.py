"""The pytest plugin: the fixture ``zoned_device``. Installed with the package; docs/testing.md shows it at work.

    @pytest.mark.zoned(preset="small", max_open_zones=2)
    def test_it(zoned_device: DeviceUnderTest) -> None: ...

A test that fails shows the zones and the last refusals of its device, and the times of its commands if it has a timing.

Every pytest that finds the package loads this module, so the device itself is imported by the first test that uses one.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from zonefs_emu.model.geometry import Geometry
    from zonefs_emu.testing.zoned_device import DeviceUnderTest

_DEFAULT_PRESET: Final = "small"
_DEVICE: Final = pytest.StashKey["DeviceUnderTest"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "zoned(preset, size, zone_size, zone_capacity, nr_conv, conventional, block_size, max_open_zones, "
        "max_active_zones, max_append, timing): the shape of the zoned_device, in bytes, as of `zonefs-emu create`, "
        "and a timing preset",
    )


@pytest.fixture
def zoned_device(request: pytest.FixtureRequest, tmp_path: Path) -> "Iterator[DeviceUnderTest]":
    """A new zoned device of the shape that the mark ``zoned`` asks for, or of the preset "small".

    With indirect parametrization it takes the same arguments as a dictionary; they override those of the mark.
    """
    from zonefs_emu.testing.zoned_device import DeviceUnderTest

    mark = request.node.get_closest_marker("zoned")
    shape = {**(mark.kwargs if mark else {}), **getattr(request, "param", {})}
    directory = tmp_path / "zoned_device"
    directory.mkdir()
    timing = _timing(shape.pop("timing", "none"))
    device = DeviceUnderTest(directory, _geometry(**shape), timing=timing)
    request.node.stash[_DEVICE] = device
    try:
        yield device
    finally:
        device.close()


def _timing(preset: str) -> str:
    from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS

    if preset not in TIMING_PRESETS:
        pytest.fail(f"there is no timing preset {preset!r}: there are {', '.join(TIMING_PRESETS)}", pytrace=False)
    return preset


def _geometry(*, preset: str = "", nr_conv: int | None = None, **shape: Any) -> "Geometry":  # noqa: ANN401  (checked there)
    from zonefs_emu.errors import UsageError
    from zonefs_emu.model.presets import PRESETS, build_geometry

    if not preset and "size" not in shape:
        preset = _DEFAULT_PRESET
    if preset and preset not in PRESETS:
        pytest.fail(f"there is no preset {preset!r}: there are {', '.join(PRESETS)}", pytrace=False)
    if nr_conv is not None:
        shape["conventional"] = ((0, nr_conv),) if nr_conv else ()
    try:
        return build_geometry(preset=PRESETS.get(preset), **shape)
    except (UsageError, TypeError) as error:
        pytest.fail(f"the shape of the zoned_device: {error}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the device of a test that failed."""
    report = yield
    device = item.stash.get(_DEVICE, None)
    if device is not None and call.when == "call" and report.failed:
        report.sections.append(("zoned device", device.describe()))
    return report
