import json
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.cli.conftest import fails, ok


def test_the_picture_begins_with_the_device(image: Path) -> None:
    ok("write", image, "--zone", 2, stdin=bytes(96 << 12))
    ok("open", image, "--zone", 3)
    lines = ok("map", image).splitlines()
    assert lines[0] == "a.img: 8 zones of 1 MiB, 2 of 3 open, 2 of 4 active"
    assert lines[1] == "0  nw= nw= oi▅ oe· em· em· em· em·"


def test_no_colour_but_on_a_terminal(fresh: Path) -> None:
    assert "\x1b" not in ok("map", fresh)


def test_svg(image: Path, tmp_path: Path) -> None:
    assert ok("map", image, "--svg", tmp_path / "zones.svg") == ""
    root = ET.parse(tmp_path / "zones.svg").getroot()
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "a.img: 8 zones of 1 MiB, 0 of 3 open, 0 of 4 active"
    assert ok("map", image, "--svg", "-") == (tmp_path / "zones.svg").read_text()
    assert "No such file" in fails("map", image, "--svg", tmp_path / "no" / "zones.svg")


def test_json(image: Path) -> None:
    ok("write", image, "--zone", 2, stdin=bytes(96 << 12))
    picture = json.loads(ok("map", image, "--json"))
    assert picture["counts"]["nw"] == 2
    assert picture["cells"][2] == {"zone_no": 2, "count": 1, "cond": "oi", "fill": 0.5}
