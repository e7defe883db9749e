"""Every structure both ways, and what each says of damage."""

import struct
import zlib
from array import array
from dataclasses import replace
from uuid import UUID, uuid4

import hypothesis
import pytest
from hypothesis import strategies as st

from zonefs_emu.errors import BadMagicError, CorruptImageError, UnsupportedVersionError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist import layout
from zonefs_emu.persist.layout import (
    BLOCK_BYTES,
    FAULTS_BYTES,
    JOURNAL_ALIGN_BYTES,
    LIVE_PRIME,
    WORDS_PER_BLOCK,
    Mode,
    Record,
    SectionKind,
    State,
)

SEED = 0x12345678
UUID_A = UUID("00112233-4455-6677-8899-aabbccddeeff")
SMALL = Geometry(size=44, zone_size=8, zone_capacity=6, conventional=((0, 1), (3, 2)))

words_of_zones = st.lists(
    st.tuples(st.sampled_from(Condition).map(int), st.integers(0, 2**44 - 1)), min_size=1, max_size=1100
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


def packed(zones: list[tuple[int, int]]) -> bytes:
    return layout.pack_words(bytearray(cond for cond, _ in zones), array("Q", [wp for _, wp in zones]))


# -- words and tables ---------------------------------------------------------------------------------------------


@hypothesis.given(zones=words_of_zones)
def test_words_live_words_and_tables_round_trip(zones: list[tuple[int, int]]) -> None:
    words = packed(zones)
    assert list(struct.unpack(f"<{len(zones)}Q", words)) == [layout.pack_word(*zone) for zone in zones]
    conds, wps = layout.unpack_words(words)
    assert list(zip(conds, wps, strict=True)) == zones == [layout.unpack_word(layout.pack_word(*z)) for z in zones]
    assert layout.decode_live(layout.encode_live(words), offset=0) == words
    table = layout.encode_table(words, 7, SEED)
    found = layout.choose_table([table, table], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.words, found.newest, found.base, found.is_sound) == (7, words, 7, 0, True)


@hypothesis.given(zones=words_of_zones.filter(lambda zones: len(zones) < 20), data=st.data(), flip=st.integers(1, 255))
def test_any_changed_byte_of_a_live_word_is_seen(zones: list[tuple[int, int]], data: st.DataObject, flip: int) -> None:
    live = bytearray(layout.encode_live(packed(zones)))
    at = data.draw(st.integers(0, len(live) - 1))
    live[at] ^= flip
    with pytest.raises(CorruptImageError, match=f"live table, zone {at // 8} at byte {1000 + at // 8 * 8}"):
        layout.decode_live(bytes(live), offset=1000)


def test_a_live_word_that_is_too_large_is_left_to_the_check_of_words() -> None:
    too_large = (LIVE_PRIME << 48).to_bytes(8, "little")
    words = layout.decode_live(layout.encode_live(bytes(8)) + too_large, offset=0)
    with pytest.raises(CorruptImageError, match="zone 1 at byte 0: found condition 0 with 17592186044416 sectors"):
        layout.check_words(
            Geometry(size=16, zone_size=8, zone_capacity=8, conventional=((0, 1),)),
            *layout.unpack_words(words), what="live table", offset=0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("zone_no", "cond", "nr_written", "is_possible"),
    [
        (0, Condition.NOT_WP, 0, True),
        (0, Condition.OFFLINE, 0, True),
        (0, Condition.NOT_WP, 1, False),
        (0, Condition.EMPTY, 0, False),
        (4, Condition.READONLY, 0, True),
        (1, Condition.NOT_WP, 0, False),
        (1, Condition.EMPTY, 1, False),
        (1, Condition.IMP_OPEN, 5, True),
        (1, Condition.EXP_OPEN, 0, True),
        (1, Condition.CLOSED, 6, False),
        (1, Condition.FULL, 6, True),
        (1, Condition.FULL, 7, False),
        (1, Condition.READONLY, 6, True),
        (1, 5, 0, False),
        (5, Condition.FULL, 4, True),
        (5, Condition.FULL, 5, False),
        (5, Condition.CLOSED, 3, True),
        (5, Condition.CLOSED, 4, False),
    ],
)
def test_which_words_are_possible(zone_no: int, cond: int, nr_written: int, is_possible: bool) -> None:
    conds = bytearray((0, 1, 1, 0, 0, 1))
    wps = array("Q", bytes(48))
    conds[zone_no], wps[zone_no] = cond, nr_written
    found = [number for number, _ in layout.impossible_zones(SMALL, conds, wps)]
    assert found == ([] if is_possible else [zone_no])
    if is_possible:
        layout.check_words(SMALL, conds, wps, what="it", offset=3)
    else:
        with pytest.raises(CorruptImageError, match=f"it, zone {zone_no} at byte 3: found condition {int(cond)} with"):
            layout.check_words(SMALL, conds, wps, what="it", offset=3)


def test_choose_table_takes_each_block_from_the_copy_that_has_it() -> None:
    zones = [(1, 0)] * (2 * WORDS_PER_BLOCK)
    old = bytearray(layout.encode_table(packed(zones), 4, SEED))
    new = bytearray(layout.encode_table(packed([(2, 3), *zones[1:]]), 5, SEED))
    # A compaction stopped in the first copy after one block of two: the old table counts, and the second copy is whole.
    torn = new[:BLOCK_BYTES] + old[BLOCK_BYTES:]
    found = layout.choose_table([bytes(torn), bytes(old)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.newest, found.base, found.is_sound) == (4, 5, 1, False)
    # It stopped in the second copy: the first is whole.
    found = layout.choose_table([bytes(new), bytes(torn)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.words[:8], found.base) == (5, layout.pack_word(2, 3).to_bytes(8, "little"), 0)
    # Each has one good block: both together serve, neither is a base.
    first, second = bytearray(new), bytearray(new)
    first[100] ^= 1
    second[BLOCK_BYTES + 100] ^= 1
    found = layout.choose_table([bytes(first), bytes(second)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.base, found.is_sound) == (5, None, False)
    # The same block is damaged in both.
    first[BLOCK_BYTES] ^= 1
    with pytest.raises(CorruptImageError, match=rf"block 1 \(zones from 510\) at byte {9000 + BLOCK_BYTES}"):
        layout.choose_table([bytes(first), bytes(second)], len(zones), SEED, offsets=[9000, 0])
    # Two generations, neither complete, nothing damaged.
    with pytest.raises(CorruptImageError, match="block 0"):
        layout.choose_table([bytes(torn), bytes(torn)], len(zones), SEED, offsets=[0, 0])


def test_a_block_in_the_wrong_place_or_of_another_image_is_damage() -> None:
    table = layout.encode_table(packed([(1, 0)] * 600), 1, SEED)
    swapped = table[BLOCK_BYTES:] + table[:BLOCK_BYTES]
    assert layout.scan_table(swapped, SEED) == [-1, -1]
    assert layout.scan_table(table, SEED + 1) == [-1, -1]
    assert layout.scan_table(table, SEED) == [1, 1]


# -- header ---------------------------------------------------------------------------------------------------------


@hypothesis.given(
    geometry=geometries(),
    uuid=st.uuids(),
    label=st.text(max_size=16).filter(lambda text: "\0" not in text),
    features=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)
def test_header_round_trips(geometry: Geometry, uuid: UUID, label: str, features: tuple[int, int]) -> None:
    header = replace(
        layout.plan_header(geometry, uuid=uuid, label=label), compatible=features[0], read_only_compatible=features[1]
    )
    for copy in (0, 1):
        section = header.section(SectionKind.HEADER, copy)
        block = layout.encode_header(header, copy)
        assert len(block) == section.length == BLOCK_BYTES
        assert layout.decode_header(block, offset=section.offset) == header
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


def header_block() -> tuple[bytearray, int]:
    header = layout.plan_header(SMALL, uuid=UUID_A, label="small")
    return bytearray(layout.encode_header(header, 0)), header.metadata_offset


def sealed(block: bytearray, at: int = 8, seed: int = 0) -> bytes:
    """*block* with its CRC put right, computed here in the plainest way."""
    block[at : at + 4] = bytes(4)
    block[at : at + 4] = zlib.crc32(bytes(block), seed).to_bytes(4, "little")
    return bytes(block)


def test_every_flipped_byte_of_a_header_is_refused() -> None:
    block, offset = header_block()
    for at in range(BLOCK_BYTES):
        for flip in (0x01, 0xFF):
            block[at] ^= flip
            with pytest.raises(BadMagicError if at < 8 else CorruptImageError):
                layout.decode_header(bytes(block), offset=offset)
            block[at] ^= flip
    for length in (0, 7, 8, 100, BLOCK_BYTES - 1):
        with pytest.raises(BadMagicError):
            layout.decode_header(bytes(block[:length]), offset=offset)


def test_a_header_elsewhere_than_it_says_is_refused() -> None:
    block, offset = header_block()
    with pytest.raises(CorruptImageError, match=f"own offset at byte {offset + 512}: found {offset}, expected"):
        layout.decode_header(bytes(block), offset=offset + 512)


@pytest.mark.parametrize("at", [12, 16, 23])
def test_later_versions_and_incompatible_features_are_named(at: int) -> None:
    block, offset = header_block()
    block[at] ^= 0x80
    with pytest.raises(UnsupportedVersionError, match="is not supported: this program knows version 1"):
        layout.decode_header(sealed(block), offset=offset)


@pytest.mark.parametrize(
    ("at", "value", "what"),
    [
        (layout._HEADER.size - 8, 33, "header, counts"),
        (layout._HEADER.size - 4, 385, "header, counts"),
        (layout._HEADER.size - 12, 513, "header, geometry"),
        (layout._HEADER.size - 16, 1000, "header, geometry"),
        (layout._SECTIONS_OFFSET, 2, "header, sections"),
        (layout._SECTIONS_OFFSET + 8, 512, "header, sections"),
        (layout._RUNS_OFFSET, 7, "header, geometry"),
        (56, 0xFF, "header, geometry"),
    ],
)
def test_a_header_with_a_right_crc_and_impossible_content_is_refused(at: int, value: int, what: str) -> None:
    block, offset = header_block()
    block[at : at + 4] = value.to_bytes(4, "little")
    with pytest.raises(CorruptImageError, match=what):
        layout.decode_header(sealed(block), offset=offset)


def test_a_header_is_rebuilt_from_the_fields_that_others_follow_from() -> None:
    header = layout.plan_header(SMALL, uuid=UUID_A, label="small")
    telling = 0
    for copy in (0, 1):
        offset = header.section(SectionKind.HEADER, copy).offset
        block = bytearray(layout.encode_header(header, copy))
        for at in range(BLOCK_BYTES):
            block[at] ^= 0x10
            rebuilt = layout.rebuild_header(bytes(block), offset=offset)
            # What matters is borne out by the CRC; what follows is not looked at.
            assert rebuilt in (header, None)
            telling += rebuilt is None
            block[at] ^= 0x10
        assert layout.rebuild_header(bytes(block), offset=offset + 4096) is None
        block[:] = bytes(BLOCK_BYTES)
        assert layout.rebuild_header(bytes(block), offset=offset) is None
    assert 2 * (64 + 16 + 48) < telling < 2 * 256


def test_two_damaged_headers_make_a_good_one() -> None:
    block, offset = header_block()
    header = layout.decode_header(bytes(block), offset=offset)
    first, second = bytearray(block), bytearray(block)
    for at in (40, 41, 150):
        first[at] ^= 1
    for at in (42, 160, 190):
        second[at] ^= 1

    def found() -> set[layout.Header | None]:
        blocks = layout.merged_headers(bytes(first), bytes(second))
        return {layout.rebuild_header(merged, offset=offset) for merged in blocks}

    assert found() == {header, None}
    # Whole stretches.
    second[136:] = bytes(BLOCK_BYTES - 136)
    assert found() == {None}
    second[150] = block[150]
    first[40:42] = block[40:42]
    first[150] = block[150]
    assert next(layout.merged_headers(bytes(first), bytes(second))) == first
    assert found() >= {header}


def test_what_does_not_fit_into_a_header() -> None:
    for label in ("x" * 65, "ä" * 33, "a\0b"):
        with pytest.raises(UsageError, match="must be at most 64 bytes of UTF-8 without NUL"):
            layout.plan_header(SMALL, uuid=UUID_A, label=label)
    runs = tuple((2 * index, 1) for index in range(385))
    many = Geometry(size=8 * 1000, zone_size=8, zone_capacity=8, conventional=runs)
    with pytest.raises(UsageError, match="385 runs of conventional zones are more than the 384 supported"):
        layout.plan_header(many, uuid=UUID_A)
    layout.plan_header(replace(many, conventional=runs[:384]), uuid=UUID_A, label="x" * 64)


# -- state ----------------------------------------------------------------------------------------------------------


states = st.builds(
    State,
    generation=st.integers(0, 2**64 - 1),
    mode=st.sampled_from(Mode),
    boot_id=st.binary(min_size=16, max_size=16),
    epoch=st.integers(0, 2**64 - 1),
    journal_seq=st.integers(0, 2**64 - 1),
    owner_pid=st.integers(0, 2**32 - 1),
    owner=st.text(st.characters(min_codepoint=1, max_codepoint=0x7F), max_size=128),
)


@hypothesis.given(state=states)
def test_state_round_trips(state: State) -> None:
    block = layout.encode_state(state, SEED)
    assert len(block) == BLOCK_BYTES
    assert layout.decode_state(block, SEED, offset=0) == state


def test_every_flipped_byte_of_a_state_is_refused() -> None:
    block = bytearray(layout.encode_state(State(generation=3, mode=Mode.LIVE, boot_id=bytes(16)), SEED))
    for at in range(BLOCK_BYTES):
        block[at] ^= 0x40
        with pytest.raises(CorruptImageError, match=r"state, (magic at byte 5|CRC at byte 13)"):
            layout.decode_state(bytes(block), SEED, offset=5)
        block[at] ^= 0x40
    block[12] = 2
    with pytest.raises(CorruptImageError, match="state, mode at byte 5: found 2, expected 0 or 1"):
        layout.decode_state(sealed(block, seed=SEED), SEED, offset=5)
    with pytest.raises(CorruptImageError, match="CRC"):
        layout.decode_state(bytes(block), SEED + 1, offset=0)


# -- journal --------------------------------------------------------------------------------------------------------

entries = st.lists(st.tuples(st.integers(0, 2**24), st.integers(0, 2**48 - 1)), max_size=70).map(tuple)


@hypothesis.given(
    parts=st.lists(entries, max_size=6), lost=st.lists(st.sampled_from((0, 1, 2)), min_size=6, max_size=6)
)
def test_journal_round_trips_from_whichever_copy_has_a_record(
    parts: list[tuple[tuple[int, int], ...]], lost: list[int]
) -> None:
    records = [Record(epoch=3, seq=seq, entries=part) for seq, part in enumerate(parts, 1)]
    copies = [bytearray(), bytearray()]
    for record, which in zip(records, lost, strict=False):
        encoded = layout.encode_record(record, SEED)
        assert len(encoded) == layout.record_bytes(len(record.entries))
        assert len(encoded) % JOURNAL_ALIGN_BYTES == 0
        for copy in (0, 1):
            copies[copy] += bytes(len(encoded)) if copy == which else encoded
    end = len(copies[0])
    found = layout.read_journal([bytes(copy) + bytes(512) for copy in copies], 3, SEED, offsets=[0, 0])
    assert (list(found.records), found.end) == (records, end)
    assert found.is_sound == all(which == 2 for which in lost[: len(records)])


def test_a_journal_of_an_earlier_epoch_is_passed_over() -> None:
    old = b"".join(layout.encode_record(Record(epoch=3, seq=seq, entries=((seq, 1),)), SEED) for seq in (1, 2, 3))
    new = layout.encode_record(Record(epoch=4, seq=1, entries=((1, 4),)), SEED)
    mixed = new + old[len(new) :]
    found = layout.read_journal([mixed, mixed], 4, SEED, offsets=[0, 0])
    assert [record.entries for record in found.records] == [((1, 4),)]
    assert layout.read_journal([old, old], 5, SEED, offsets=[0, 0]).records == ()


def test_a_hole_in_the_journal_is_corruption_but_a_torn_end_is_not() -> None:
    records = [layout.encode_record(Record(epoch=4, seq=seq, entries=((seq, 1),)), SEED) for seq in (1, 2, 3)]
    lost = bytes(512)
    torn_end = records[0] + records[1] + records[2][:40] + bytes(472)
    assert len(layout.read_journal([torn_end, torn_end], 4, SEED, offsets=[0, 0]).records) == 2
    hole = records[0] + lost + records[2]
    with pytest.raises(CorruptImageError, match="record 2 at byte 1512: found damage in both copies, while record 3"):
        layout.read_journal([records[0] + lost + lost, hole], 4, SEED, offsets=[1000, 0])
    # What looks like the head of a record where none begins, or of one that is not whole: no record.
    noise = bytearray(records[0] + lost + lost)
    noise[600:616] = noise[1024:1040] = records[2][:16]
    assert len(layout.read_journal([bytes(noise)] * 2, 4, SEED, offsets=[0, 0]).records) == 1
    repeated = records[0] + lost + records[0]
    assert len(layout.read_journal([repeated] * 2, 4, SEED, offsets=[0, 0]).records) == 1


def test_every_flipped_byte_of_a_record_is_seen_and_no_length_is_believed() -> None:
    record = bytearray(layout.encode_record(Record(epoch=1, seq=1, entries=((5, 99), (6, 1))), SEED))
    for at in range(len(record)):
        record[at] ^= 0x20
        assert layout.decode_record(bytes(record), 0, SEED) is None
        record[at] ^= 0x20
    for length in range(len(record)):
        assert layout.decode_record(bytes(record[:length]), 0, SEED) is None
    assert layout.decode_record(bytes(record), 0, SEED) is not None


def test_apply_records_in_order_and_refuse_zones_that_do_not_exist() -> None:
    conds, wps = bytearray((1, 1)), array("Q", [0, 0])
    first = Record(epoch=1, seq=1, entries=((0, layout.pack_word(2, 5)), (1, layout.pack_word(14, 8))))
    second = Record(epoch=1, seq=2, entries=((0, layout.pack_word(4, 6)),))
    layout.apply_records(conds, wps, [first, second], offset=0)
    assert (list(conds), list(wps)) == ([4, 14], [6, 8])
    with pytest.raises(CorruptImageError, match="journal, record 9 at byte 77: found zone 2, expected a zone below 2"):
        layout.apply_records(conds, wps, [Record(epoch=1, seq=9, entries=((2, 1),))], offset=77)


# -- faults ---------------------------------------------------------------------------------------------------------


@hypothesis.given(data=st.binary(max_size=300), generation=st.integers(1, 2**64 - 1))
def test_faults_round_trip(data: bytes, generation: int) -> None:
    block = layout.encode_faults(data, generation, SEED)
    assert len(block) == FAULTS_BYTES
    assert layout.decode_faults(block, SEED) == (generation, data)
    older = layout.encode_faults(b"older", generation - 1, SEED)
    assert layout.choose_faults([older, block], SEED, offsets=[0, 0]) == (generation, data, 1)
    assert layout.choose_faults([block, older], SEED, offsets=[0, 0]) == (generation, data, 0)
    assert layout.choose_faults([block, bytes(FAULTS_BYTES)], SEED, offsets=[0, 0]) == (generation, data, 0)


def test_the_version_of_the_faults() -> None:
    assert layout.faults_version(bytes(FAULTS_BYTES)) == 0
    newer = layout.encode_faults(b"[]", 1, SEED, version=7)
    assert layout.faults_version(newer) == 7
    assert layout.decode_faults(newer, SEED) == (1, b"[]")


def test_damaged_faults() -> None:
    zeros = bytes(FAULTS_BYTES)
    good = layout.encode_faults(b"[]", 1, SEED)
    bad = bytearray(good)
    bad[30] ^= 1
    assert layout.choose_faults([zeros, zeros], SEED, offsets=[0, 0]) == (0, b"", 0)
    assert layout.choose_faults([bytes(bad), zeros], SEED, offsets=[0, 0]) == (0, b"", 0)
    assert layout.choose_faults([bytes(bad), good], SEED, offsets=[0, 0]) == (1, b"[]", 1)
    with pytest.raises(CorruptImageError, match="fault table at byte 11: found damage in both copies"):
        layout.choose_faults([bytes(bad), bytes(bad)], SEED, offsets=[11, 0])
    assert layout.decode_faults(layout.encode_faults(b"[]", 1, SEED + 1), SEED) is None
    huge = bytearray(good)
    huge[20:24] = (FAULTS_BYTES).to_bytes(4, "little")
    assert layout.decode_faults(sealed(huge, seed=SEED), SEED) is None
    with pytest.raises(UsageError, match="the faults take 32745 bytes; the image holds 32744"):
        layout.encode_faults(bytes(32745), 1, SEED)
    layout.encode_faults(bytes(32744), 1, SEED)


def test_seeds_differ_between_images() -> None:
    assert layout.plan_header(SMALL, uuid=uuid4()).seed != layout.plan_header(SMALL, uuid=uuid4()).seed
