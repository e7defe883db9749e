"""Golden files: the bytes of version 1, read and written. A change of one of them is a change of the format."""

import re
from array import array
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist.codec.extension import decode_extension, encode_extension
from zonefs_emu.persist.codec.faults import decode_faults, encode_faults
from zonefs_emu.persist.codec.header import Header, SectionKind, decode_header, encode_header, plan_header
from zonefs_emu.persist.codec.journal import Record, decode_record, encode_record
from zonefs_emu.persist.codec.state import Mode, State, decode_state, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import decode_live, encode_live, pack_word, pack_words, unpack_words
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.recovery import choose_table
from zonefs_emu.testing.backings import MemoryBacking

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
HEADER: Header = plan_header(
    Geometry(size=44, zone_size=8, zone_capacity=6, conventional=((0, 1),), max_open_zones=2, max_active_zones=3),
    uuid=UUID("00112233-4455-6677-8899-aabbccddeeff"),
    label="golden",
)
SEED = 0x8407759B
STATE = State(
    generation=5, mode=Mode.LIVE, boot_id=bytes(range(16)), epoch=2, journal_seq=3, owner_pid=4711,
    owner="zonefs-emu mount",
)  # fmt: skip
CONDS, WPS = bytearray((0, 2, 14, 4, 1, 13)), array("Q", (0, 3, 6, 5, 0, 4))
RECORD = Record(epoch=2, seq=1, entries=((1, pack_word(4, 4)), (5, pack_word(1, 0))))
NAMES = ("header", "state", "table", "record", "extension", "live", "faults")


def golden(name: str) -> bytes:
    """The bytes of a golden file: hexadecimal, ``zeros N``, and comments."""
    data = bytearray()
    for line in (GOLDEN / f"{name}-v1.hex").read_text().splitlines():
        text = line.partition("#")[0].strip()
        zeros = re.fullmatch(r"zeros (\d+)", text)
        data += bytes(int(zeros[1])) if zeros else bytes.fromhex(text)
    return bytes(data)


def golden_fields(name: str) -> list[tuple[int, int, str]]:
    """(offset, size, field) of the comments in a golden file; elements of an array by their array's name."""
    fields = re.findall(
        r"#\s+(\d+)\s+(\d+) ([a-z_]+(?:\[\d*\])?(?:\.[a-z_]+)?)", (GOLDEN / f"{name}-v1.hex").read_text()
    )
    return [(int(offset), int(size), re.sub(r"\[\d*\]", "[]", field)) for offset, size, field in fields]


def test_header() -> None:
    block = golden("header")
    assert decode_header(block, offset=HEADER.metadata_offset) == HEADER
    assert encode_header(HEADER, 0) == block
    assert HEADER.seed == SEED


def test_state() -> None:
    assert decode_state(golden("state"), SEED, offset=0) == STATE
    assert encode_state(STATE, SEED) == golden("state")


def test_table() -> None:
    block = golden("table")
    table = choose_table([block, block], 6, SEED, offsets=[0, 0])
    assert table.generation == 2
    assert unpack_words(table.words) == (CONDS, WPS)
    assert encode_table(pack_words(CONDS, WPS), 2, SEED) == block


def test_record() -> None:
    assert decode_record(golden("record"), 0, SEED) == RECORD
    assert encode_record(RECORD, SEED) == golden("record")


def test_extension() -> None:
    assert decode_extension(golden("extension"), 5, SEED) == bytes(range(64))
    assert encode_extension(5, bytes(range(64)), SEED) == golden("extension")


def test_live() -> None:
    assert unpack_words(decode_live(golden("live"), offset=0)) == (CONDS, WPS)
    assert encode_live(pack_words(CONDS, WPS)) == golden("live")


def test_faults() -> None:
    assert decode_faults(golden("faults"), SEED) == (1, b"[]")
    assert encode_faults(b"[]", 1, SEED) == golden("faults")


def test_an_image_put_together_from_golden_bytes_opens() -> None:
    memory = bytearray(HEADER.file_bytes)

    def put(name: str, kind: SectionKind, copy: int = 0) -> None:
        data = golden(name)
        offset = HEADER.section(kind, copy).offset
        memory[offset : offset + len(data)] = data

    put("header", SectionKind.HEADER)
    put("state", SectionKind.STATE, 1)
    put("table", SectionKind.TABLE)
    put("record", SectionKind.JOURNAL, 1)
    put("live", SectionKind.LIVE)
    put("faults", SectionKind.FAULTS)
    # On the boot that the state block names the live table counts, on any other the table with the journal.
    image = Image.load(MemoryBacking(memory), len(memory), STATE.boot_id, readonly=True)
    assert (image.conds, image.wps) == (CONDS, WPS)
    image = Image.load(MemoryBacking(memory), len(memory), bytes(16), readonly=True)
    assert (list(image.conds), list(image.wps)) == ([0, 4, 14, 4, 1, 1], [0, 4, 6, 5, 0, 0])
    assert image.load_faults() == b"[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_is_named_in_the_golden_file_and_in_the_format_document(name: str) -> None:
    fields = golden_fields(name)
    at = 0
    for offset, size, _ in fields:
        assert offset == at
        at += size
    assert at == len(golden(name))
    document = (ROOT / "docs" / "image-format.md").read_text()
    section = re.search(rf"^## {name}\b.*?(?=^## )", document + "\n## ", re.MULTILINE | re.DOTALL | re.IGNORECASE)
    assert section, f"docs/image-format.md has no section on {name}"
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `([a-z_\[\].]+)`", section[0], re.MULTILINE)
    documented = [(int(offset), int(size), field) for offset, size, field in rows]
    # Of arrays the document gives the first element.
    first_of_each = {field: (offset, size) for offset, size, field in reversed(fields) if field != "unused"}
    assert {field: (offset, size) for offset, size, field in documented} == first_of_each
