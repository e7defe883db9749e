"""The pytest plugin: the fixture ``zoned_device``. Installed with the package; docs/testing.md shows it at work.

    @pytest.mark.zoned(preset="small", max_open_zones=2)
    def test_it(zoned_device: DeviceUnderTest) -> None: ...

A test that fails shows the zones and the last refusals of its device, and the times of its commands if it has a timing.

Every pytest that finds the package loads this module, so the device itself is imported by the first test that uses one.
"""

import inspect
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from zonefs_emu.model.geometry import Geometry
    from zonefs_emu.testing.zoned_device import DeviceUnderTest

_DEFAULT_PRESET: Final = "small"
#: Sizes end at 8 EiB, as on the command line.
_NUMBERS_END: Final = 1 << 63
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

    shape = _arguments(request)
    directory = tmp_path / "zoned_device"
    directory.mkdir()
    timing = _timing(shape.pop("timing", "none"))
    device = DeviceUnderTest(directory, _geometry(**shape), timing=timing)
    request.node.stash[_DEVICE] = device
    try:
        yield device
    finally:
        # pytest keeps every test until its end. A device that is closed has a descriptor until it is collected.
        del request.node.stash[_DEVICE]
        device.close()


def _arguments(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of the mark and of the parameter, each of which is known and may be given."""
    from zonefs_emu.model.presets import build_geometry

    mark = request.node.get_closest_marker("zoned")
    parameter = getattr(request, "param", {})
    if mark is not None and mark.args:
        _refuse(f"the mark zoned takes arguments by name, as zoned(preset='small'): {mark.args[0]!r} has none")
    if not isinstance(parameter, dict):
        _refuse(f"the parameter of zoned_device must be a dictionary, as {{'nr_conv': 3}}, and is {parameter!r}")
    arguments = {**(mark.kwargs if mark else {}), **parameter}
    known = {"timing", "nr_conv", *inspect.signature(build_geometry).parameters}
    for name in arguments:
        if name not in known:
            _refuse(f"zoned_device has no argument {name!r}: there are {', '.join(sorted(known))}")
    if {"nr_conv", "conventional"} <= arguments.keys():
        _refuse("nr_conv and conventional both say which zones are conventional: give one of them")
    return arguments


def _timing(preset: object) -> str:
    from zonefs_emu.model.timing.timing_presets import TIMING_PRESETS

    if not isinstance(preset, str) or preset not in TIMING_PRESETS:
        _refuse(f"there is no timing preset {preset!r}: there are {', '.join(TIMING_PRESETS)}")
    return preset


def _geometry(*, preset: object = "", nr_conv: object = None, **shape: Any) -> "Geometry":  # noqa: ANN401  (checked)
    from zonefs_emu.errors import UsageError
    from zonefs_emu.model.presets import PRESETS, build_geometry

    if not preset and "size" not in shape:
        preset = _DEFAULT_PRESET
    if not isinstance(preset, str) or (preset and preset not in PRESETS):
        _refuse(f"there is no preset {preset!r}: there are {', '.join(PRESETS)}")
    for name, value in {"nr_conv": nr_conv, **shape}.items():
        if name != "conventional" and value is not None and not isinstance(value, int):
            _refuse(f"{name} of the zoned_device must be a whole number, and is {value!r}")
        if name != "conventional" and isinstance(value, int) and value >= _NUMBERS_END:
            _refuse(f"{name} of the zoned_device must be below 8 EiB, and is {value}")
    conventional = shape.get("conventional")
    if conventional is not None and not _is_runs(conventional):
        _refuse(
            "the shape of the zoned_device: conventional must be runs of zones, as ((0, 2), (5, 1)) for two zones from "
            f"0 and one from 5, and is {conventional!r}"
        )
    if nr_conv is not None:
        shape["conventional"] = ((0, nr_conv),) if nr_conv else ()
    try:
        return build_geometry(preset=PRESETS.get(preset), **shape)
    except UsageError as error:
        # Not by pytest.fail, which has no "from None": pytest would show both sentences.
        raise pytest.fail.Exception(f"the shape of the zoned_device: {error}", pytrace=False) from None


def _is_runs(value: object) -> bool:
    return isinstance(value, tuple | list) and all(
        isinstance(run, tuple | list) and len(run) == 2 and all(isinstance(number, int) for number in run)
        for run in value
    )


def _refuse(message: str) -> NoReturn:
    pytest.fail(message, pytrace=False)


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
