from pathlib import Path

import click
import pytest

from tests.cli.conftest import fails, ok
from zonefs_emu.cli.common import ConditionsType, ConditionType, NumberRange, SizeType, say_lines, zone_of, zones_of
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition


def test_parameter_types() -> None:
    assert SizeType().convert("64K", None, None) == 65536
    assert SizeType().convert(512, None, None) == 512
    assert ConditionType().convert("READONLY", None, None) is Condition.READONLY
    assert ConditionsType().convert("em,oi", None, None) == {Condition.EMPTY, Condition.IMP_OPEN}
    for kind in (SizeType(), ConditionType(), ConditionsType()):
        with pytest.raises(click.BadParameter, match=r"write bytes|there are"):
            kind.convert("?", None, None)
    assert NumberRange(0, 2).convert("1.5", None, None) == 1.5
    for text in ("nan", "3", "inf", "x"):
        with pytest.raises(click.BadParameter):
            NumberRange(0, 2).convert(text, None, None)


def test_lines_come_out_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    say_lines(f"{i}\n" for i in range(50_000))
    assert capsys.readouterr().out.split() == [str(i) for i in range(50_000)]


def test_zones_of_a_range_and_a_condition(image: Path) -> None:
    with open_target(image, readonly=True) as target:
        assert [zone.zone_no for zone in zones_of(target)] == list(range(8))
        assert [zone.zone_no for zone in zones_of(target, 5, 2)] == [5, 6]
        assert [zone.zone_no for zone in zones_of(target, conds=frozenset({Condition.NOT_WP}))] == [0, 1]
        assert zone_of(target, 7).zone_no == 7
        with pytest.raises(UsageError, match="there is no zone 8: the device has zones 0 to 7"):
            zone_of(target, 8)


def test_every_verb_that_needs_a_zone_says_so(fresh: Path) -> None:
    for verb in ("read", "write", "append"):
        assert "Missing option '--zone'" in fails(verb, fresh, code=2)
    assert ok("report", fresh)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("map {} --svg a.svg --json", "--svg, --html and --json are different pictures"),
        ("report {} --json --format blkzone", "--format has no effect beside --json, which is a format"),
        ("mount {} x --time-scale 10", "--time-scale has no effect without --timing"),
        ("mount {} x --time-scale 10 --timing none", "--time-scale has no effect without --timing"),
        ("attach --list {}", "--list lists what is attached of all images: give no IMG"),
        ("attach --list --via ublk", "--via has no effect beside --list"),
        ("attach {} --json", "--json is for --list, which is not given"),
        ("serve {} --vhost-user-scsi s --queues 4", "--queues is for a virtio-blk disk, which is not given"),
        ("serve {} --vhost-user-scsi s --strict-features", "--strict-features is for a virtio-blk disk"),
        ("serve {} --vhost-user-scsi s --insecure", "--insecure is for --nvme-tcp, which is not given"),
        ("serve {} --vhost-user-scsi s --mount-options ro", "--mount-options is for --mount, which is not given"),
        ("serve {} --vhost-user-scsi s --device scsi", "--device is for --socket-path or --fd, which is not given"),
        ("serve --print-capabilities --queues 2", "--queues has no effect beside --print-capabilities"),
    ],
)
def test_an_option_without_effect_is_refused(image: Path, words: str, sentence: str) -> None:
    assert sentence in fails(*words.format(image).split(), code=2)
