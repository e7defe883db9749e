"""The super block, byte by byte, both ways."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tests.requires import requires, which
from zonefs_emu.errors import BadMagicError, CorruptImageError, UsageError
from zonefs_emu.fs.superblock import INVALID_ID, Feature, SuperBlock, decode, encode, has_magic

PLAIN: Final = SuperBlock(uuid=UUID("01234567-89ab-cdef-0123-456789abcdef"))

GOLDEN: Final = {
    # What mkzonefs writes without options: owner and permissions are there, their feature bits are not.
    "plain": (
        PLAIN,
        "53464f5a 94aa3e9c"  # magic "SFOZ" in the order of bytes, crc
        + "00" * 64
        + "0123456789abcdef0123456789abcdef"  # uuid as it is printed
        "0000000000000000 00000000 00000000 a0010000",  # features, uid, gid, perm 0640
    ),
    "all": (
        SuperBlock(
            uuid=PLAIN.uuid,
            label=b"zoned",
            features=Feature.AGGR_CNV | Feature.UID | Feature.GID | Feature.PERM,
            uid=1000,
            gid=100,
            perm=0o4777,
        ),
        "53464f5a 505b8ce5"
        + b"zoned".hex()
        + "00" * 59
        + "0123456789abcdef0123456789abcdef 0f00000000000000 e8030000 64000000 ff090000",
    ),
}


def golden_bytes(text: str) -> bytes:
    return bytes.fromhex(text).ljust(4096, b"\0")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_written_and_read(name: str) -> None:
    super_block, text = GOLDEN[name]
    assert encode(super_block).hex() == golden_bytes(text).hex()
    assert decode(golden_bytes(text)) == super_block


def test_the_checksum_is_the_one_of_the_definition() -> None:
    """Bit by bit, so that a library's idea of where to invert does not matter."""
    for _, text in GOLDEN.values():
        block = bytearray(golden_bytes(text))
        stored, block[4:8] = bytes(block[4:8]), bytes(4)
        register = 0xFFFFFFFF
        for byte in block:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
        assert stored == register.to_bytes(4, "little")


super_blocks = st.builds(
    SuperBlock,
    uuid=st.uuids(),
    label=st.binary(max_size=64).filter(lambda label: b"\0" not in label),
    features=st.integers(0, 15).map(Feature),
    uid=st.integers(0, INVALID_ID - 1),
    gid=st.integers(0, INVALID_ID - 1),
    perm=st.integers(0, 0o7777),
)


@given(super_blocks)
def test_what_is_written_is_read(super_block: SuperBlock) -> None:
    found = decode(encode(super_block))
    assert (found.uuid, found.label, found.features) == (super_block.uuid, super_block.label, super_block.features)
    assert found.aggregates == bool(super_block.features & 1)
    # A field without its feature bit means nothing.
    for name, bit in (("uid", Feature.UID), ("gid", Feature.GID), ("perm", Feature.PERM)):
        expected = getattr(super_block if bit in super_block.features else PLAIN, name)
        assert getattr(found, name) == expected


def test_every_flipped_byte_is_noticed() -> None:
    block = encode(GOLDEN["all"][0])
    for index in range(len(block)):
        damaged = bytearray(block)
        damaged[index] ^= 0x10
        with pytest.raises((BadMagicError, CorruptImageError)):
            decode(bytes(damaged))


def with_bytes(offset: int, value: bytes) -> bytes:
    """A block with *value* at *offset* and a right checksum: it must be refused for what it says."""
    from zonefs_emu.fs import superblock

    block = bytearray(encode(GOLDEN["all"][0]))
    block[offset : offset + len(value)] = value
    block[4:8] = superblock._checksum(block).to_bytes(4, "little")
    return bytes(block)


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (88, b"\x1f", "features at byte 88: found 0x1f, expected no bit outside 0xf"),
        (95, b"\x80", "features"),
        (96, b"\xff\xff\xff\xff", "uid at byte 96"),
        (100, b"\xff\xff\xff\xff", "gid at byte 100"),
        (108, b"\x01", "reserved bytes at byte 108"),
        (4095, b"\x01", "reserved bytes at byte 4095: found 0x01, expected zero"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused(offset: int, value: bytes, what: str) -> None:
    with pytest.raises(CorruptImageError, match=what):
        decode(with_bytes(offset, value))


def test_invalid_owners_do_not_matter_without_their_bits() -> None:
    block = with_bytes(88, b"\x00")
    decode(block)
    assert decode(with_bytes(88, b"\x08\0\0\0\0\0\0\0" + b"\xff" * 8)).uid == 0


def test_other_contents_are_no_super_block() -> None:
    assert not has_magic(bytes(4096))
    with pytest.raises(BadMagicError, match="0x00000000, not 0x5a4f4653"):
        decode(bytes(4096))
    assert has_magic(encode(PLAIN)[:-1] + b"damaged"[:1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label": b"x" * 65}, "label of 65 bytes is longer than 64"),
        ({"label": b"a\0b"}, "NUL"),
        ({"uid": INVALID_ID}, "uid 4294967295 must lie between 0 and 4294967294"),
        ({"gid": -1}, "gid -1"),
        ({"perm": 0o10000}, "permissions 10000 must lie between 0 and 7777"),
    ],
)
def test_values_without_an_encoding_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        replace(PLAIN, **changes)  # type: ignore[arg-type]  # a table of fields


def test_blkid_knows_the_file_system(tmp_path: Path) -> None:
    requires("blkid")
    path = tmp_path / "image"
    path.write_bytes(encode(GOLDEN["all"][0]).ljust(1 << 20, b"\0"))
    blkid = which("blkid")
    assert blkid is not None
    assert shutil.which(blkid)
    said = subprocess.run([blkid, "-p", "-o", "export", path], check=True, capture_output=True, text=True).stdout
    assert {"TYPE=zonefs", "USAGE=filesystem", "LABEL=zoned"} <= set(said.split("\n"))
