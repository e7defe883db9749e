"""The pytest plugin, by running pytest."""

import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow  # each starts a pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = "zonefs_emu.testing.plugin"


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that has our package installed, as its entry points say: metadata on the path, made of pyproject."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    site = pytester.path / "site"
    info = site / "zonefs_emu_here-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zonefs-emu-here\nVersion: 1\n")
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    (pytester.path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(pytester.path / "run"))
    pytester.makeini("[pytest]\naddopts = --strict-markers\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


def run(inner: pytest.Pytester, *args: str) -> pytest.RunResult:
    return inner.run(sys.executable, "-m", "pytest", "-p", "no:randomly", *args, timeout=120)


def test_the_fixture_is_there_by_itself_and_takes_its_shape_from_the_mark(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import pytest

        def test_default(zoned_device):
            assert zoned_device.geometry.nr_zones == 64

        @pytest.mark.zoned(preset="zn540", size=64 << 30)
        def test_preset(zoned_device):
            assert zoned_device.geometry.max_open_zones == 14
            assert zoned_device.geometry.nr_zones == 32

        @pytest.mark.zoned(size=8 << 20, nr_conv=2)
        @pytest.mark.parametrize("zoned_device", [{"nr_conv": 3}, {"zone_size": 1 << 20}], indirect=True)
        def test_parametrized(zoned_device, request):
            geometry = zoned_device.geometry
            assert (geometry.nr_conventional, geometry.nr_zones) in [(3, 16), (2, 8)]
            assert zoned_device.port.write(geometry.zone_start(3), 8, (bytes(4096),)) == 0
        """
    )
    run(inner).assert_outcomes(passed=4)
    run(inner, "-p", MODULE).assert_outcomes(passed=4)
    run(inner, "--markers").stdout.fnmatch_lines(["@pytest.mark.zoned(preset, size, *"])


def test_a_failing_test_shows_its_device(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import pytest

        @pytest.mark.zoned(size=8 << 20, zone_size=1 << 20, timing="zn540")
        def test_it(zoned_device):
            zoned_device.port.write(4096, 8, (bytes(4096),))
            assert zoned_device.port.write(4096, 8, (bytes(4096),)) == 0
        """
    )
    result = run(inner)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- zoned device -*",
            "*zoned.img: 8 MiB, 8 zones of 1 MiB; those that are not empty:",
            "zone      2 at sector       4096  IMP_OPEN   8 of 2048 sectors written",
            "timing zn540, the clock at 0.0* ms, 0 commands under way",
            "write: 1 in 1*.* us on average, the longest in 1*.* us",
            "lately: write of 8 sectors, zone 2, at 0.000 ms: 1*.* us",
            "refused: test: write of 8 sectors at sector 4096 was refused (UNALIGNED_WP): *",
        ]
    )


def test_a_passing_test_and_one_without_a_device_show_nothing(inner: pytest.Pytester) -> None:
    inner.makepyfile("def test_a(zoned_device): print('a')\ndef test_b(): assert False")
    result = run(inner)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*zoned device*")


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("preset='large'", "there is no preset 'large': there are small, small-zns, zn540, smr-hm"),
        ("size=1000", "the shape of the zoned_device: size: *"),
        ("timing='fast'", "there is no timing preset 'fast': there are zn540, smr-hm, none"),
        ("timing=['zn540']", "there is no timing preset ['zn540']: there are zn540, smr-hm, none"),
        ("preset=['small']", "there is no preset ['small']: there are small, small-zns, zn540, smr-hm"),
        ("colour=3", "zoned_device has no argument 'colour': there are active_excursions, block_size, *"),
        ("'small'", "the mark zoned takes arguments by name, as zoned(preset='small'): 'small' has none"),
        ("nr_conv=1, conventional=((4, 2),)", "nr_conv and conventional both say which zones are conventional: *"),
        ("nr_conv=-1", "the shape of the zoned_device: *"),
        ("size='8M'", "size of the zoned_device must be a whole number, and is '8M'"),
        ("conventional=3", "the shape of the zoned_device: *"),
        ("conventional=(1, 2)", "the shape of the zoned_device: *"),
        ("conventional=((0,),)", "the shape of the zoned_device: conventional must be runs of zones, *"),
        ("conventional=((0, 1.5),)", "the shape of the zoned_device: conventional must be runs of zones, *"),
        ("max_append=10**30", "max_append of the zoned_device must be below 8 EiB, and is 1000*"),
    ],
)
def test_a_wrong_shape_is_one_sentence(inner: pytest.Pytester, mark: str, sentence: str) -> None:
    inner.makepyfile(f"import pytest\n@pytest.mark.zoned({mark})\ndef test_it(zoned_device): pass")
    result = run(inner)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([sentence])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*another exception*")


def test_a_parameter_that_is_no_dictionary_is_one_sentence(inner: pytest.Pytester) -> None:
    parametrize = "@pytest.mark.parametrize('zoned_device', ['small'], indirect=True)"
    inner.makepyfile(f"import pytest\n{parametrize}\ndef test_it(zoned_device): pass")
    result = run(inner)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the parameter of zoned_device must be a dictionary, as {'nr_conv': 3}, *'small'"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_devices_of_ended_tests_are_not_kept(inner: pytest.Pytester) -> None:
    """pytest keeps each test until its end; a thousand devices had a thousand descriptors."""
    inner.makepyfile(
        """
        import gc, os, pytest

        @pytest.mark.parametrize("number", range(20))
        def test_it(zoned_device, number):
            zoned_device.port.write(zoned_device.geometry.zone_start(9), 8, (bytes(4096),))
            assert number % 2

        def test_descriptors():
            gc.collect()
            assert len(os.listdir("/proc/self/fd")) < 20
        """
    )
    run(inner).assert_outcomes(passed=11, failed=10)


def test_the_manual_shows_the_example_as_it_is() -> None:
    manual = (ROOT / "docs/testing.md").read_text()
    start = manual.index("    for seed in range")
    shown = textwrap.dedent(manual[start : manual.index("\n\n", start)])
    assert textwrap.indent(shown, "    ") in (ROOT / "examples/test_log_store.py").read_text()


def test_the_first_lines_of_the_manual_work(inner: pytest.Pytester) -> None:
    manual = (ROOT / "docs/testing.md").read_text()
    start = manual.index("    import pytest")
    inner.makepyfile(textwrap.dedent(manual[start : manual.index("\n\n## Shape", start)]))
    run(inner).assert_outcomes(passed=1)
