"""The page in a real browser: what it shows, by mouse and by keyboard."""

import json
import os
import re
import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Page, browser
from tests.cli.conftest import ok, run_cli
from tests.requires import requires
from zonefs_emu.cli.page import pack, page
from zonefs_emu.model.zone import Condition, Zone, ZoneType

#: Where the picture of the page goes, if anywhere: ZONEFS_EMU_PAGE_PICTURE=docs/page.png makes that of the documents.
PICTURE = os.environ.get("ZONEFS_EMU_PAGE_PICTURE")


def zones(nr_zones: int) -> Iterator[Zone]:
    cycle = [Condition.EMPTY, Condition.IMP_OPEN, Condition.CLOSED, Condition.FULL, Condition.OFFLINE]
    for zone_no in range(nr_zones):
        cond = cycle[zone_no % 5]
        written = 1024 if cond in (Condition.IMP_OPEN, Condition.CLOSED) else 0
        start = zone_no * 8192
        yield Zone(zone_no, start, 8192, 8192, start + written, cond, ZoneType.SWR)


def info(nr_zones: int) -> dict[str, object]:
    return {
        "nr_zones": nr_zones, "size": nr_zones * 8192, "zone_size": 8192, "zone_capacity": 8192, "conventional": [],
        "nr_open": 0, "nr_active": 0, "max_open_zones": 0, "max_active_zones": 0,
    }  # fmt: skip


def test_zones_are_packed_as_the_page_reads_them() -> None:
    packed = zlib.decompress(b64decode(pack(zones(7))))
    assert list(packed[:7]) == [1, 2, 4, 14, 15, 1, 2]
    assert list(struct.unpack("<7Q", packed[7:])) == [0, 1024, 1024, 0, 0, 0, 1024]


def test_the_page_asks_the_network_for_nothing_and_cannot_be_broken_by_a_name(fresh: Path) -> None:
    odd = fresh.with_name("<!--<script>.img")
    fresh.rename(odd)
    text = ok("map", odd, "--html", "-")
    assert not re.search(r"(src|href)\s*=|@import|https?:", text.replace("<!doctype html>", ""))
    assert "<!--" not in text
    data = re.search(r'id="data">(.*?)</script>', text)
    assert data is not None
    assert json.loads(data[1])["title"].startswith("<!--<script>.img: 8 zones")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser."""
    requires("chromium")
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def place(shown: Page, zone_no: int) -> tuple[float, float]:
    """Return the middle of a zone, in points of the window."""
    x, y = shown.run(
        f"(() => {{ const r = canvas.getBoundingClientRect(), at = {zone_no} / per;"
        "return [r.x + (at % columns + .4) * cell, r.y + (Math.floor(at / columns) - top_row + .4) * cell] })()"
    )
    return x, y


@pytest.mark.slow
def test_what_report_says_is_shown(shown: Page, tmp_path: Path) -> None:
    image = tmp_path / "drive.img"
    assert run_cli("create", image, "--preset", "small").exit_code == 0
    for zone_no, length in ((5, 16), (6, 12), (7, 5), (8, 2)):
        ok("write", image, "--zone", zone_no, stdin=bytes(length << 20))
    ok("close", image, "--zone", 7)
    ok("open", image, "--zone", 8)
    ok("finish", image, "--zone", 9, "--count", 20)
    ok("set-cond", image, "--zone", 40, "ro")
    ok("set-cond", image, "--zone", 41, "ol")
    ok("map", image, "--html", tmp_path / "zones.html")
    shown.open(f"file://{tmp_path}/zones.html")

    # By the mouse.
    shown.point(*place(shown, 6))
    assert shown.text("detail") == (
        "zone 6: implicitly open, wp 221184 (12 MiB written), capacity 16 MiB, from sector 196608, 12 writes"
    )
    shown.point(*place(shown, 41))
    assert shown.text("detail").startswith("zone 41: offline, capacity")
    assert shown.text("limits") == "2 of 8 open, 3 of 12 active"

    # By the keyboard.
    shown.click(*place(shown, 0))
    shown.press("ArrowRight")
    assert shown.text("detail").startswith("zone 1: conventional")
    shown.press("End")
    assert shown.text("detail").startswith("zone 63: empty")
    shown.run("const go = document.getElementById('go'); go.value = 8; go.dispatchEvent(new Event('change'))")
    assert shown.text("detail").startswith("zone 8: explicitly open")
    cells = shown.run("cell")
    shown.press("+")
    assert shown.run("cell") > cells
    shown.press("-")
    shown.painted()

    # The counts are those of report, and a condition that is switched off is not drawn.
    counts = {
        text.split()[0]: int(text.split()[-1])
        for text in shown.run("[...document.getElementById('filters').children].map(b => b.textContent)")
    }
    conds = [zone["cond"] for zone in json.loads(ok("report", image, "--json"))["zones"]]
    assert counts == {cond: conds.count(cond) for cond in counts}
    pixel = (
        "(() => {{ const at = {zone} / per, d = context.getImageData((at % columns) * cell + 3,"
        " (Math.floor(at / columns) - top_row) * cell + cell - 4, 1, 1).data; return [d[0], d[1], d[2]] }})()"
    )
    full = shown.run(pixel.format(zone=10))
    assert full == [0x35, 0x66, 0xB8]
    picture = shown.screenshot()
    shown.run("document.querySelector('#filters button[value=\"14\"]').click()")
    shown.painted()
    assert shown.run(pixel.format(zone=10)) != full
    # Dark on request.
    light = shown.run("getComputedStyle(document.body).backgroundColor")
    shown.run("document.getElementById('theme').click()")
    assert shown.run("getComputedStyle(document.body).backgroundColor") != light
    assert picture.startswith(b"\x89PNG")
    if PICTURE:
        Path(PICTURE).write_bytes(picture)


@pytest.mark.slow
@pytest.mark.parametrize("nr_zones", [52_156, 1_000_000])
def test_many_zones_are_all_on_the_page(shown: Page, nr_zones: int, tmp_path: Path) -> None:
    text = page(zones(nr_zones), info(nr_zones), title="many", counters={}, live=False)  # type: ignore[arg-type]
    (tmp_path / "zones.html").write_text(text)
    shown.open(f"file://{tmp_path}/zones.html")
    # The last zone is in the picture.
    x, y = place(shown, nr_zones - nr_zones % 16)
    assert 0 <= x <= 1000
    assert y <= 700
    shown.run("canvas.focus()")
    shown.press("End")
    assert shown.text("detail").startswith(f"zone {nr_zones - 1}: ")
    for _ in range(30):
        shown.press("+")
    shown.painted()
    # Zoomed in, the chosen zone is still there, and each zone is a cell of its own.
    assert shown.run("per") == 1
    rows = shown.run("Math.floor(chosen / columns) - top_row")
    assert 0 <= rows <= shown.run("canvas.height / cell")
