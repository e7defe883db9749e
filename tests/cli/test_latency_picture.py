import re
import xml.etree.ElementTree as ET

from zonefs_emu.cli.latency_picture import latency_svg
from zonefs_emu.model.timing.workload import Requests
from zonefs_emu.model.transitions import Operation


def requests(*of: tuple[int, int]) -> Requests:
    found = Requests()
    for begin_ns, latency_ns in of:
        found.add(begin_ns, latency_ns, 4096)
    return found


def test_each_operation_has_its_points_within_the_picture() -> None:
    reads = requests(*((number * 1000, 70_000 + number % 9 * 1000) for number in range(20_000)))
    resets = requests((5_000_000, 16_000_000))
    text = "".join(
        latency_svg([(Operation.READ, reads), (Operation.RESET, resets), (Operation.READ, reads)], title="a <b>")
    )
    assert len(text) < 100_000, "however many requests there are"
    picture = ET.fromstring(text)
    name = "{http://www.w3.org/2000/svg}"
    width, height = map(float, picture.get("viewBox", "").split()[2:])
    circles = picture.findall(f"{name}circle")
    assert len(circles) == 301
    assert all(0 < float(circle.get("cx", 0)) < width and 0 < float(circle.get("cy", 0)) < height for circle in circles)
    texts = [text.text or "" for text in picture.findall(f"{name}text")]
    assert "a <b>" in texts
    assert {"10 us", "100 us", "1 ms", "10 ms", "100 ms"} <= set(texts)
    assert any(text.startswith("read: 40000 requests") for text in texts)
    assert any(text.startswith("reset: 1 requests") for text in texts)
    (read_y, *_), reset_y = [float(circle.get("cy", 0)) for circle in circles[:300]], float(circles[300].get("cy", 0))
    assert reset_y < read_y, "what takes longer is higher"


def test_a_line_is_from_the_shortest_to_the_longest() -> None:
    text = "".join(latency_svg([(Operation.WRITE, requests((0, 1000), (0, 100_000), (500, 1000)))], title="t"))
    (begin, end) = next((float(a), float(b)) for a, b in re.findall(r"M71 ([\d.]+)V([\d.]+)", text))
    assert begin - end > 150


def test_a_picture_without_requests_is_empty() -> None:
    assert not ET.fromstring("".join(latency_svg([], title="t"))).findall("{http://www.w3.org/2000/svg}circle")
