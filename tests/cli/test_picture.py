import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from zonefs_emu.cli.picture import aggregate, fill_of, svg, terminal
from zonefs_emu.model.zone import Condition, Zone, ZoneType

C = Condition
SIZE = 0x8000


def zone(zone_no: int, cond: Condition, eighths: int = 0) -> Zone:
    start = zone_no * SIZE
    zone_type = ZoneType.CONVENTIONAL if cond == C.NOT_WP else ZoneType.SWR
    return Zone(zone_no, start, SIZE, SIZE, start + SIZE * eighths // 8, cond, zone_type)


SEVEN = [
    zone(0, C.NOT_WP),
    zone(1, C.EMPTY),
    zone(2, C.IMP_OPEN, 1),
    zone(3, C.EXP_OPEN, 4),
    zone(4, C.CLOSED, 7),
    zone(5, C.FULL, 3),
    zone(6, C.OFFLINE, 3),
]


def picture(zones: list[Zone], *, width: int = 80, colour: bool = False) -> list[str]:
    return "".join(terminal(zones, nr_zones=len(zones), width=width, colour=colour)).split("\n")


def test_a_few_zones_show_condition_and_fill_in_letters() -> None:
    drawn = picture(SEVEN)
    assert drawn[0] == "0  nw= em· oi▂ oe▅ cl█ fu█ olX"
    assert "nw conventional: 1" in drawn
    assert not any("\x1b" in line for line in drawn)


def test_colour_paints_the_same_signs() -> None:
    plain = re.sub(r"\x1b\[\d+m", "", "\n".join(picture(SEVEN, colour=True)))
    assert plain == "\n".join(picture(SEVEN))
    assert "\x1b[31molX" in picture(SEVEN, colour=True)[0]


def test_a_written_zone_never_looks_empty() -> None:
    one_block = Zone(1, SIZE, SIZE, SIZE, SIZE + 8, C.IMP_OPEN, ZoneType.SWR)
    assert "oi▁" in picture([zone(0, C.EMPTY), one_block])[0]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("nr_zones", [1, 64, 1000, 52156])
def test_no_line_of_zones_is_wider_than_the_terminal(width: int, nr_zones: int) -> None:
    drawn = picture([zone(i, C.EMPTY) for i in range(nr_zones)], width=width)
    grid = drawn[: drawn.index("")]
    assert max(map(len, grid)) <= width
    assert len(grid) <= 32


def test_rows_begin_with_the_number_of_their_first_zone() -> None:
    grid = picture([zone(i, C.EMPTY) for i in range(100)], width=40)
    assert [line.split()[0] for line in grid[:3]] == ["0", "8", "16"]


def test_many_zones_share_a_sign_that_shows_what_needs_attention() -> None:
    zones = [zone(i, C.EMPTY) for i in range(10_000)]
    zones[5000] = zone(5000, C.OFFLINE)
    drawn = picture(zones)
    grid = drawn[: drawn.index("")]
    assert "".join(grid).count("X") == 1
    assert "X ol offline: 1" in drawn
    assert drawn[-2] == "each sign stands for 5 zones and shows the condition that needs most attention"


def test_dense_pictures_tell_conditions_without_colour() -> None:
    zones = [zone(i, C.EMPTY) for i in range(1000)]
    zones[:6] = [zone(0, C.IMP_OPEN, 1), zone(1, C.EXP_OPEN), zone(2, C.CLOSED, 1), zone(3, C.READONLY), *zones[4:6]]
    assert picture(zones)[0] == "  0  oOcR" + "·" * 60


def test_fill() -> None:
    assert fill_of(zone(1, C.FULL, 2)) == 1.0
    assert fill_of(zone(1, C.OFFLINE, 4)) == 0.0
    assert fill_of(zone(1, C.CLOSED, 4)) == 0.5
    assert fill_of(zone(1, C.READONLY, 4)) == 0.5


def test_every_zone_is_counted_once() -> None:
    aggregated = aggregate((z for z in SEVEN), nr_zones=7, max_cells=3)
    assert aggregated.zones_per_cell == 3
    assert [(cell.first, cell.count, cell.cond) for cell in aggregated.cells] == [
        (0, 3, C.IMP_OPEN),
        (3, 3, C.EXP_OPEN),
        (6, 1, C.OFFLINE),
    ]
    assert sum(aggregated.counts.values()) == 7


def test_svg_is_well_formed_and_has_a_square_per_zone() -> None:
    text = "".join(svg(SEVEN, nr_zones=7, title='a<b>&"c"'))
    root = ET.fromstring(text)
    ns = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{ns}title") == 'a<b>&"c"'
    titles = [group.findtext(f"{ns}title") for group in root.findall(f"{ns}g")]
    assert titles[0] == "zone 0: conventional, 0%"
    assert titles[4] == "zone 4: closed, 88%"
    assert len(titles) == 7


def test_svg_of_a_million_zones_stays_small() -> None:
    def million() -> Iterator[Zone]:
        for i in range(0, 1_000_000, 10):
            yield from [zone(i, C.EMPTY)] * 10

    length = sum(len(piece) for piece in svg(million(), nr_zones=1_000_000, title="large"))
    assert length < 2_000_000
