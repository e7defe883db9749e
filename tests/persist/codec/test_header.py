"""Headers both ways, and what is refused."""

from dataclasses import replace
from uuid import UUID, uuid4

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SMALL, UUID_A, header_block, sealed
from zonefs_emu.errors import BadMagicError, CorruptImageError, UnsupportedVersionError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import (
    _HEADER,
    _RUNS_OFFSET,
    _SECTIONS_OFFSET,
    SectionKind,
    decode_header,
    encode_header,
    plan_header,
    planned_header,
)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    block_size = draw(st.sampled_from((512, 4096)))
    granule = block_size // 512 * draw(st.integers(1, 4))
    zone_size = granule * draw(st.integers(1, 64))
    nr_whole = draw(st.integers(0, 40))
    runt = draw(st.integers(0, zone_size // granule - 1)) * granule
    hypothesis.assume(nr_whole or runt)
    nr_zones = nr_whole + bool(runt)
    marks = draw(st.lists(st.booleans(), min_size=nr_zones, max_size=nr_zones))
    runs: list[tuple[int, int]] = []
    for zone_no, is_conventional in enumerate(marks):
        if is_conventional and runs and sum(runs[-1]) == zone_no:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif is_conventional:
            runs.append((zone_no, 1))
    max_active = draw(st.integers(0, 2**32 - 1))
    return Geometry(
        size=nr_whole * zone_size + runt, zone_size=zone_size, conventional=tuple(runs), block_size_bytes=block_size,
        zone_capacity=draw(st.integers(1, zone_size // granule)) * granule, write_granularity=granule,
        max_active_zones=max_active, max_open_zones=draw(st.integers(0, max_active or 2**32 - 1)),
        max_append=draw(st.integers(1, 2**20)) * granule,
    )  # fmt: skip


@hypothesis.given(
    geometry=geometries(),
    uuid=st.uuids(),
    label=st.text(max_size=16).filter(lambda text: "\0" not in text),
    features=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)
def test_header_round_trips(geometry: Geometry, uuid: UUID, label: str, features: tuple[int, int]) -> None:
    header = replace(
        plan_header(geometry, uuid=uuid, label=label), compatible=features[0], read_only_compatible=features[1]
    )
    for copy in (0, 1):
        section = header.section(SectionKind.HEADER, copy)
        block = encode_header(header, copy)
        assert len(block) == section.length == BLOCK_BYTES
        assert decode_header(block, offset=section.offset) == header
    end = header.metadata_offset
    assert end % BLOCK_BYTES == 0
    assert end - BLOCK_BYTES < geometry.size * 512 <= end
    for section in header.sections:
        assert (section.offset, section.offset % BLOCK_BYTES) == (end, 0)
        end += section.length
    assert header.file_bytes == end
    unreserved = {(s.offset, s.length) for s in header.sections} - set(header.reserved)
    counters = header.section(SectionKind.COUNTERS)
    assert unreserved == {(counters.offset, counters.length)}


def test_every_flipped_byte_of_a_header_is_refused() -> None:
    block, offset = header_block()
    for at in range(BLOCK_BYTES):
        for flip in (0x01, 0xFF):
            block[at] ^= flip
            with pytest.raises(BadMagicError if at < 8 else CorruptImageError):
                decode_header(bytes(block), offset=offset)
            block[at] ^= flip
    for length in (0, 7, 8, 100, BLOCK_BYTES - 1):
        with pytest.raises(BadMagicError):
            decode_header(bytes(block[:length]), offset=offset)


def test_a_header_elsewhere_than_it_says_is_refused() -> None:
    block, offset = header_block()
    with pytest.raises(CorruptImageError, match=f"own offset at byte {offset + 512}: found {offset}, expected"):
        decode_header(bytes(block), offset=offset + 512)


@pytest.mark.parametrize("at", [12, 16, 23])
def test_later_versions_and_incompatible_features_are_named(at: int) -> None:
    block, offset = header_block()
    block[at] ^= 0x80
    with pytest.raises(UnsupportedVersionError, match="is not supported: this program knows version 1"):
        decode_header(sealed(block), offset=offset)


@pytest.mark.parametrize(
    ("at", "value", "what"),
    [
        (_HEADER.size - 8, 33, "header, counts"),
        (_HEADER.size - 4, 385, "header, counts"),
        (_HEADER.size - 12, 513, "header, geometry"),
        (_HEADER.size - 16, 1000, "header, geometry"),
        (_SECTIONS_OFFSET, 2, "header, sections"),
        (_SECTIONS_OFFSET + 8, 512, "header, sections"),
        (_RUNS_OFFSET, 7, "header, geometry"),
        (56, 0xFF, "header, geometry"),
    ],
)
def test_a_header_with_a_right_crc_and_impossible_content_is_refused(at: int, value: int, what: str) -> None:
    block, offset = header_block()
    block[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(CorruptImageError, match=what):
        decode_header(sealed(block), offset=offset)


def test_what_does_not_fit_into_a_header() -> None:
    for label in ("x" * 65, "ä" * 33, "a\0b"):
        with pytest.raises(UsageError, match="must be at most 64 bytes of UTF-8 without NUL"):
            plan_header(SMALL, uuid=UUID_A, label=label)
    runs = tuple((2 * index, 1) for index in range(385))
    many = Geometry(size=8 * 1000, zone_size=8, zone_capacity=8, conventional=runs)
    with pytest.raises(UsageError, match="385 runs of conventional zones are more than the 384 supported"):
        plan_header(many, uuid=UUID_A)
    plan_header(replace(many, conventional=runs[:384]), uuid=UUID_A, label="x" * 64)


def test_seeds_differ_between_images() -> None:
    assert plan_header(SMALL, uuid=uuid4()).seed != plan_header(SMALL, uuid=uuid4()).seed


def test_a_header_with_more_runs_than_fit_cannot_be_planned() -> None:
    block, _ = header_block()
    block[_HEADER.size - 4 : _HEADER.size] = (385).to_bytes(4, "little")
    with pytest.raises(ValueError, match="385 runs of conventional zones, more than the 384 supported"):
        planned_header(bytes(block))


def test_an_image_with_extensions_has_a_feature_bit_and_a_section() -> None:
    plain = Geometry(size=64, zone_size=16, zone_capacity=16)
    header = plan_header(replace(plain, extension_bytes=128), uuid=UUID(int=3))
    block = encode_header(header, 0)
    assert block[16:24] == b"\1" + bytes(7)
    assert block[192:200] == b"\x80" + bytes(7)
    assert decode_header(block, offset=header.metadata_offset) == header
    kinds = [section.kind for section in header.sections]
    assert kinds[kinds.index(SectionKind.COUNTERS) + 1] is SectionKind.EXTENSIONS
    section = header.section(SectionKind.EXTENSIONS)
    assert (section.length, section.length % BLOCK_BYTES) == (4096, 0)
    assert (section.offset, section.length) not in header.reserved
    assert len(header.sections) == len(plan_header(plain, uuid=UUID(int=3)).sections) + 1


def test_a_feature_bit_without_extensions_is_damage() -> None:
    block, offset = header_block()
    block[16] = 1
    with pytest.raises(CorruptImageError, match=r"header, features at byte .* found 0x1, expected 0x0"):
        decode_header(sealed(block), offset=offset)


def test_an_image_with_random_write_areas_has_a_feature_bit() -> None:
    plain = Geometry(size=64, zone_size=16, zone_capacity=16)
    header = plan_header(replace(plain, zrwa_size=8, zrwa_granularity=4, max_zrwa=3), uuid=UUID(int=3))
    block = encode_header(header, 0)
    assert block[16:24] == b"\2" + bytes(7)
    assert block[192:196] == bytes(4)  # no extensions
    assert block[196:200] == bytes.fromhex("00100000")  # 4096 bytes
    assert block[200:204] == bytes.fromhex("00080000")  # flushed by 2048
    assert block[204:208] == bytes.fromhex("03000000")  # of at most 3 zones
    assert decode_header(block, offset=header.metadata_offset) == header
    assert len(header.sections) == len(plan_header(plain, uuid=UUID(int=3)).sections)
    both = plan_header(replace(header.geometry, extension_bytes=64), uuid=UUID(int=3))
    block = encode_header(both, 0)
    assert block[16] == 3
    assert decode_header(block, offset=both.metadata_offset) == both


@pytest.mark.parametrize(("at", "value"), [(196, 100), (196, 1 << 20), (200, 512 * 3), (16, 1)])
def test_impossible_random_write_areas_are_damage(at: int, value: int) -> None:
    geometry = Geometry(size=64, zone_size=16, zone_capacity=16, zrwa_size=8, zrwa_granularity=4)
    header = plan_header(geometry, uuid=UUID(int=3))
    block = bytearray(encode_header(header, 0))
    block[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(CorruptImageError, match=r"header, (geometry|features)"):
        decode_header(sealed(block), offset=header.metadata_offset)


def test_a_feature_that_is_not_known_is_refused() -> None:
    block, offset = header_block()
    block[16] = 8
    with pytest.raises(UnsupportedVersionError, match=r"incompatible features 0x8 .* with features 0x7"):
        decode_header(sealed(block), offset=offset)


def test_an_image_whose_drive_finishes_zones_has_a_feature_bit() -> None:
    plain = Geometry(size=64, zone_size=16, zone_capacity=16)
    header = plan_header(replace(plain, active_excursions=True), uuid=UUID(int=3))
    block = encode_header(header, 0)
    assert block[16:24] == b"\4" + bytes(7)
    assert block[192:208] == bytes(16)  # neither extensions nor random write areas
    assert block[208:212] == bytes.fromhex("01000000")
    assert decode_header(block, offset=header.metadata_offset) == header
    assert len(header.sections) == len(plan_header(plain, uuid=UUID(int=3)).sections)


@pytest.mark.parametrize(("at", "value"), [(208, 2), (208, 0), (16, 0)])
def test_impossible_excursions_are_damage(at: int, value: int) -> None:
    geometry = Geometry(size=64, zone_size=16, zone_capacity=16, active_excursions=True)
    header = plan_header(geometry, uuid=UUID(int=3))
    block = bytearray(encode_header(header, 0))
    block[at] = value
    with pytest.raises(CorruptImageError, match=r"header, (geometry|features)"):
        decode_header(sealed(block), offset=header.metadata_offset)
