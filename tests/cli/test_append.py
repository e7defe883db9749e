import json
from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli


def test_append_prints_where_it_landed(image: Path) -> None:
    assert ok("append", image, "--zone", 3, stdin=b"a" * 4096) == "6144\n"
    assert json.loads(ok("append", image, "--zone", 3, "--json", stdin=b"b" * 8192)) == {
        "zone_no": 3,
        "append_sector": 6152,
        "nr_sectors": 16,
    }
    assert run_cli("read", image, "--zone", 3).stdout_bytes == b"a" * 4096 + b"b" * 8192
    assert ok("append", image, "--zone", 3, "--length", "4K", stdin=bytes(99999)) == "6168\n"


def test_refused(image: Path) -> None:
    before = ok("report", image, "--json")
    assert "(CONVENTIONAL)" in fails("append", image, "--zone", 0, stdin=bytes(4096))
    assert "one append is at most 524288 bytes" in fails("append", image, "--zone", 3, stdin=bytes(524289))
    assert "one append is at most 524288 bytes" in fails("append", image, "--zone", 3, "--length", "1M")
    assert "stdin ended after 1 bytes of 4096" in fails("append", image, "--zone", 3, "--length", "4K", stdin=b"x")
    assert "1 bytes are not a whole number of blocks" in fails("append", image, "--zone", 3, stdin=b"x")
    assert "there is no zone 8" in fails("append", image, "--zone", 8, stdin=bytes(4096))
    assert ok("report", image, "--json") == before
