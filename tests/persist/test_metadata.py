"""The metadata in a file: created, looked for, and read."""

import errno
import os
import random
from pathlib import Path

import pytest

from tests.persist.worlds import GEOMETRY, UUID_OF_TESTS, fresh_memory
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import CorruptImageError, ImageBusyError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import HEADER_MAGIC, SectionKind, plan_header
from zonefs_emu.persist.metadata import header_blocks, holder, read_header
from zonefs_emu.testing.backings import MemoryBacking

MIB = 2048  # sectors
HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)


def test_where_both_headers_are_damaged_the_last_one_is_named() -> None:
    memory = fresh_memory()
    for copy in (0, 1):
        memory[HEADER.section(SectionKind.HEADER, copy).offset + 100] ^= 1
    with pytest.raises(CorruptImageError) as raised:
        read_header(MemoryBacking(memory), len(memory))
    assert len(memory) - BLOCK_BYTES <= raised.value.offset < len(memory)


@pytest.mark.parametrize("seed", range(10))
def test_headers_are_looked_for_at_all_blocks_from_the_end(seed: int) -> None:
    """Compared with going through all blocks one by one, in a file with holes and of any length."""
    rng = random.Random(seed)
    block_bytes = BLOCK_BYTES
    memory = bytearray((3 << 20) + rng.choice([0, 1, 512, block_bytes, block_bytes + 7]))
    for _ in range(60):
        at = rng.randrange(len(memory) // block_bytes + 1) * block_bytes
        run = rng.choice([1, 1, 3, 300]) * block_bytes
        piece = memory[at : at + run]
        memory[at : at + run] = b"\x55" * len(piece)
    last = len(memory) // block_bytes * block_bytes
    places = [0, last, (1 << 20) - block_bytes, 1 << 20, (2 << 20) - block_bytes]
    places += [rng.randrange(len(memory) // block_bytes) * block_bytes for _ in range(20)]
    for at in places:
        memory[at : at + 8] = HEADER_MAGIC[: len(memory) - at]
        wrong = at + 8 * rng.randrange(1, 500)
        memory[wrong : wrong + 8] = HEADER_MAGIC[: max(len(memory) - wrong, 0)]
    expected = [
        (at, bytes(memory[at : at + block_bytes]))
        for at in range(last, -1, -block_bytes)
        if memory.startswith(HEADER_MAGIC, at)
    ]
    assert len(expected) > 10
    assert list(header_blocks(MemoryBacking(memory), len(memory))) == expected


def test_who_holds_an_image_is_said(tmp_path: Path) -> None:
    path = tmp_path / "image"
    ZonedDevice.create(path, GEOMETRY, uuid=UUID_OF_TESTS)
    assert holder(path) == "another process"
    assert holder(tmp_path / "absent") == "another process"
    device = ZonedDevice.open(path, owner="a test")
    with pytest.raises(ImageBusyError, match=rf"image is in use by a test \(pid {os.getpid()}\)"):
        ZonedDevice.open(path)
    with pytest.raises(ImageBusyError, match="a test"):
        ZonedDevice.open(path, readonly=True)
    device.close()
    ZonedDevice.open(path).close()
    path.write_bytes(b"no image any more")
    assert holder(path) == "another process"


def test_creating_never_overwrites_and_leaves_nothing_behind_if_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        ZonedDevice.create(path, GEOMETRY, uuid=UUID_OF_TESTS)
    assert path.read_text() == "precious"

    def fail(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileBacking, "sync_name", fail)
    with pytest.raises(OSError, match="Input/output error"):
        ZonedDevice.create(tmp_path / "other", GEOMETRY, uuid=UUID_OF_TESTS)
    assert not (tmp_path / "other").exists()


def test_a_fresh_image_of_a_tebibyte_takes_less_than_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "image"
    geometry = Geometry(size=1 << 31, zone_size=256 * MIB, zone_capacity=256 * MIB)
    ZonedDevice.create(path, geometry, uuid=UUID_OF_TESTS)
    ZonedDevice.open(path).close()
    assert path.stat().st_size > 1 << 40
    assert path.stat().st_blocks * 512 < 1 << 20
