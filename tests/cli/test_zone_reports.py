"""The text of a report as values; tests/cli/test_templates.py makes drives of them."""

from zonefs_emu.cli.zone_reports import parse_report
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
