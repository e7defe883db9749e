import io
import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.cli.write import CHUNK_BYTES, chunks
from zonefs_emu.errors import UsageError


def wp(image: Path, zone_no: int) -> int:
    zones = json.loads(ok("report", image, "--json"))["zones"]
    return int(zones[zone_no]["written"] or 0)


def test_a_write_starts_at_wp(image: Path) -> None:
    assert ok("write", image, "--zone", 2, stdin=bytes(4096)) == ""
    assert json.loads(ok("write", image, "--zone", 2, "--json", stdin=bytes(8192))) == {
        "zone_no": 2,
        "sector": 2 * 2048 + 8,
        "nr_sectors": 16,
    }
    assert wp(image, 2) == 24


def test_offset_is_from_the_start_of_the_zone(image: Path) -> None:
    ok("write", image, "--zone", 2, "--offset", 0, stdin=bytes(4096))
    ok("write", image, "--zone", 2, "--offset", "4K", stdin=bytes(4096))
    sentence = fails("write", image, "--zone", 2, "--offset", "4K", stdin=bytes(4096))
    assert "(UNALIGNED_WP)" in sentence
    assert "zone 2 is IMP_OPEN with wp at sector 4112" in sentence
    assert wp(image, 2) == 16


def test_length_takes_part_of_stdin(image: Path) -> None:
    ok("write", image, "--zone", 2, "--length", "4K", stdin=bytes(16384))
    assert wp(image, 2) == 8
    assert "stdin ended after 4096 bytes of 8192" in fails(
        "write", image, "--zone", 2, "--length", "8K", stdin=bytes(4096)
    )


def test_a_conventional_zone_is_written_anywhere(image: Path) -> None:
    ok("write", image, "--zone", 0, stdin=b"a" * 8192)
    ok("write", image, "--zone", 0, "--offset", "4K", stdin=b"b" * 4096)
    assert run_cli("read", image, "--zone", 0, "--length", "12K").stdout_bytes == b"a" * 4096 + b"b" * 4096 + bytes(
        4096
    )


@pytest.mark.parametrize("conventional", [True, False])
def test_long_data_is_several_commands(conventional: bool, tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    ok("create", image, "--size", "32M", "--zone-size", "8M", "--nr-conv", int(conventional))
    data = os.urandom(3 * CHUNK_BYTES + 4096)
    written = json.loads(ok("write", image, "--zone", 0, "--json", stdin=data))
    assert written == {"zone_no": 0, "sector": 0, "nr_sectors": len(data) // 512}
    assert run_cli("read", image, "--zone", 0, "--length", len(data)).stdout_bytes == data


def test_what_was_written_before_a_refusal_is_said(tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    assert run_cli("create", image, "--size", "32M", "--zone-size", "8M", "--zone-capacity", "1536K").exit_code == 0
    sentence = fails("write", image, "--zone", 1, stdin=bytes(2 * CHUNK_BYTES))
    assert "(ZONE_BOUNDARY)" in sentence
    assert sentence.endswith("(1048576 bytes had been written before)")
    assert wp(image, 1) == 2048


@pytest.mark.parametrize(
    ("options", "stdin", "sentence"),
    [
        (["--zone", 2], b"", "there is nothing to write"),
        (["--zone", 2], b"hello", "5 bytes are not a whole number of blocks of 4096 bytes"),
        (["--zone", 2], bytes(4097), "4097 bytes are not a whole number"),
        (["--zone", 2, "--offset", "100"], bytes(4096), "offset 100 is not a multiple of 512 bytes"),
        (["--zone", 2, "--offset", "4K"], bytes(4096), "(UNALIGNED_WP)"),
        (["--zone", 2], bytes(772 << 10), "(ZONE_BOUNDARY)"),
        (["--zone", 99], bytes(4096), "there is no zone 99"),
    ],
)
def test_refused_is_one_sentence(options: list[object], stdin: bytes, sentence: str, image: Path) -> None:
    before = ok("report", image, "--json")
    assert sentence in fails("write", image, *options, stdin=stdin)
    assert ok("report", image, "--json") == before


def test_chunks() -> None:
    assert list(chunks(io.BytesIO(b"abc"), None)) == [b"abc"]
    assert list(chunks(io.BytesIO(b"abcdef"), 3)) == [b"abc"]
    assert list(map(len, chunks(io.BytesIO(bytes(CHUNK_BYTES + 1)), None))) == [CHUNK_BYTES, 1]
    with pytest.raises(UsageError, match="stdin ended after 2 bytes of 3"):
        list(chunks(io.BytesIO(b"ab"), 3))
