from pathlib import Path

from tests.cli.conftest import fails, ok


def test_pictures_with_limits_and_rates(image: Path) -> None:
    ok("write", image, "--zone", 3, stdin=bytes(4096))
    lines = ok("watch", image, "--frames", 2, "--interval", 0.1).splitlines()
    assert lines[0] == "a.img  1 of 3 open, 1 of 4 active"
    assert lines[1] == "rates: after the next look"
    assert sum(line.startswith("a.img") for line in lines) == 2
    assert any("0 write/s" in line and "0 B/s written" in line for line in lines)
    assert sum("oi" in line and "em" in line for line in lines) == 2
    assert "\033" not in "".join(lines), "no control characters outside a terminal"


def test_how_often() -> None:
    assert "is not in the range" in fails("watch", "x", "--interval", 0, code=2)


def test_a_page_has_no_number_of_pictures(image: Path) -> None:
    assert "--frames has no effect beside --http" in fails("watch", image, "--http", "--frames", 1, code=2)
