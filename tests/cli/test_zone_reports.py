"""The text of a report as values; tests/cli/test_templates.py makes drives of them."""

import pytest

from zonefs_emu.cli.zone_reports import parse_report
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition

LINE = "Zone 00007: swr, ofst 00000000524288, len 00000000524288, cap 00000000262144, wp {}, {}, non_seq 0, reset 0\n"


def test_a_zone_says_where_it_stands() -> None:
    report = parse_report("a bug:\n\n" + LINE.format("00000000528384", "oe"), "mail")
    (zone,) = report.zones
    assert (report.tool, report.unit_bytes, zone.where) == ("zbd", 1, "line 3 of mail")
    assert (zone.start, zone.length, zone.capacity, zone.wp) == (524288, 524288, 262144, 528384)
    assert zone.cond is Condition.EXP_OPEN


def test_a_write_pointer_without_meaning_is_none() -> None:
    assert parse_report(LINE.format("18446744073709551615", "fu"), "mail").zones[0].wp is None


@pytest.mark.parametrize(
    "line",
    [
        "Zone 00000: cnv, ofst 00000000000000, len 00000000524288, cap 00000000524288",
        "Zone 00000: type 0x2 (Sequential-write-required), cond 0x2 (Implicit-open), sector 0, 1024 sectors, wp 128",
    ],
)
def test_digits_at_the_end_may_have_been_cut(line: str) -> None:
    assert len(parse_report(line + "\n", "mail").zones) == 1
    for text in (line, line[:-1]):
        with pytest.raises(UsageError, match="line 1 of mail, the last one, may be incomplete, as it has no newline"):
            parse_report(text, "mail")
