"""What is chosen of two copies, and what they are rebuilt to."""

from array import array
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED, SMALL, UUID_A, header_block, packed, words_of_zones
from zonefs_emu.errors import CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.faults import FAULTS_BYTES, encode_faults
from zonefs_emu.persist.codec.header import (
    Header,
    SectionKind,
    decode_header,
    encode_header,
    plan_header,
)
from zonefs_emu.persist.codec.journal import JOURNAL_ALIGN_BYTES, Record, encode_record, record_bytes
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import WORDS_PER_BLOCK, encode_table
from zonefs_emu.persist.codec.words import ZoneStates, pack_word
from zonefs_emu.persist.recovery import (
    Journal,
    Table,
    apply_records,
    check_clean_stop,
    choose_faults,
    choose_state,
    choose_table,
    merged_headers,
    power_cycle,
    read_journal,
    rebuild_header,
    zone_states,
)


@hypothesis.given(zones=words_of_zones)
def test_a_table_that_is_whole_in_both_copies_gives_its_words(zones: list[tuple[int, int]]) -> None:
    words = packed(zones)
    table = encode_table(words, 7, SEED)
    found = choose_table([table, table], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.words, found.newest, found.base, found.is_sound) == (7, words, 7, 0, True)


def test_choose_table_takes_each_block_from_the_copy_that_has_it() -> None:
    zones = [(1, 0)] * (2 * WORDS_PER_BLOCK)
    old = bytearray(encode_table(packed(zones), 4, SEED))
    new = bytearray(encode_table(packed([(2, 3), *zones[1:]]), 5, SEED))
    # A compaction stopped in the first copy after one block of two: the old table counts, and the second copy is whole.
    torn = new[:BLOCK_BYTES] + old[BLOCK_BYTES:]
    found = choose_table([bytes(torn), bytes(old)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.newest, found.base, found.is_sound) == (4, 5, 1, False)
    # It stopped in the second copy: the first is whole.
    found = choose_table([bytes(new), bytes(torn)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.words[:8], found.base) == (5, pack_word(2, 3).to_bytes(8, "little"), 0)
    # Each has one good block: both together serve, neither is a base.
    first, second = bytearray(new), bytearray(new)
    first[100] ^= 1
    second[BLOCK_BYTES + 100] ^= 1
    found = choose_table([bytes(first), bytes(second)], len(zones), SEED, offsets=[0, 0])
    assert (found.generation, found.base, found.is_sound) == (5, None, False)
    # The same block is damaged in both.
    first[BLOCK_BYTES] ^= 1
    with pytest.raises(CorruptImageError, match=rf"block 1 \(zones from 510\) at byte {9000 + BLOCK_BYTES}"):
        choose_table([bytes(first), bytes(second)], len(zones), SEED, offsets=[9000, 0])
    # Two generations, neither complete, nothing damaged.
    with pytest.raises(CorruptImageError, match="block 0"):
        choose_table([bytes(torn), bytes(torn)], len(zones), SEED, offsets=[0, 0])


def test_a_header_is_rebuilt_from_the_fields_that_others_follow_from() -> None:
    header = plan_header(SMALL, uuid=UUID_A, label="small")
    telling = 0
    for copy in (0, 1):
        offset = header.section(SectionKind.HEADER, copy).offset
        block = bytearray(encode_header(header, copy))
        for at in range(BLOCK_BYTES):
            block[at] ^= 0x10
            rebuilt = rebuild_header(bytes(block), offset=offset)
            # What matters is borne out by the CRC; what follows is not looked at.
            assert rebuilt in (header, None)
            telling += rebuilt is None
            block[at] ^= 0x10
        assert rebuild_header(bytes(block), offset=offset + 4096) is None
        block[:] = bytes(BLOCK_BYTES)
        assert rebuild_header(bytes(block), offset=offset) is None
    assert 2 * (64 + 16 + 48) < telling < 2 * 256


def test_two_damaged_headers_make_a_good_one() -> None:
    block, offset = header_block()
    header = decode_header(bytes(block), offset=offset)
    first, second = bytearray(block), bytearray(block)
    for at in (40, 41, 150):
        first[at] ^= 1
    for at in (42, 160, 190):
        second[at] ^= 1

    def found() -> set[Header | None]:
        blocks = merged_headers(bytes(first), bytes(second))
        return {rebuild_header(merged, offset=offset) for merged in blocks}

    assert found() == {header, None}
    # Whole stretches.
    second[136:] = bytes(BLOCK_BYTES - 136)
    assert found() == {None}
    second[150] = block[150]
    first[40:42] = block[40:42]
    first[150] = block[150]
    assert next(merged_headers(bytes(first), bytes(second))) == first
    assert found() >= {header}
    # What both have lost of random write areas is taken for none.
    for copy in (first, second):
        copy[:] = block
        copy[192 + 4 : 1024] = b"\xa5" * (1024 - 196)
    assert found() == {header, None}


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
        encoded = encode_record(record, SEED)
        assert len(encoded) == record_bytes(len(record.entries))
        assert len(encoded) % JOURNAL_ALIGN_BYTES == 0
        for copy in (0, 1):
            copies[copy] += bytes(len(encoded)) if copy == which else encoded
    end = len(copies[0])
    found = read_journal([bytes(copy) + bytes(512) for copy in copies], 3, SEED, offsets=[0, 0])
    assert (list(found.records), found.end) == (records, end)
    assert found.is_sound == all(which == 2 for which in lost[: len(records)])


def test_a_journal_of_an_earlier_epoch_is_passed_over() -> None:
    old = b"".join(encode_record(Record(epoch=3, seq=seq, entries=((seq, 1),)), SEED) for seq in (1, 2, 3))
    new = encode_record(Record(epoch=4, seq=1, entries=((1, 4),)), SEED)
    mixed = new + old[len(new) :]
    found = read_journal([mixed, mixed], 4, SEED, offsets=[0, 0])
    assert [record.entries for record in found.records] == [((1, 4),)]
    assert read_journal([old, old], 5, SEED, offsets=[0, 0]).records == ()


def test_a_hole_in_the_journal_is_corruption_but_a_torn_end_is_not() -> None:
    records = [encode_record(Record(epoch=4, seq=seq, entries=((seq, 1),)), SEED) for seq in (1, 2, 3)]
    lost = bytes(512)
    torn_end = records[0] + records[1] + records[2][:40] + bytes(472)
    assert len(read_journal([torn_end, torn_end], 4, SEED, offsets=[0, 0]).records) == 2
    hole = records[0] + lost + records[2]
    with pytest.raises(CorruptImageError, match="record 2 at byte 1512: found damage in both copies, while record 3"):
        read_journal([records[0] + lost + lost, hole], 4, SEED, offsets=[1000, 0])
    # What looks like the head of a record where none begins, or of one that is not whole: no record.
    noise = bytearray(records[0] + lost + lost)
    noise[600:616] = noise[1024:1040] = records[2][:16]
    assert len(read_journal([bytes(noise)] * 2, 4, SEED, offsets=[0, 0]).records) == 1
    repeated = records[0] + lost + records[0]
    assert len(read_journal([repeated] * 2, 4, SEED, offsets=[0, 0]).records) == 1


TWO_ZONES = Geometry(size=16, zone_size=8, zone_capacity=8)


def test_apply_records_in_order_and_refuse_zones_that_do_not_exist() -> None:
    states = ZoneStates(bytearray((1, 1)), array("Q", [0, 0]), bytearray(2))
    first = Record(epoch=1, seq=1, entries=((0, pack_word(2, 5)), (1, pack_word(14, 8))))
    second = Record(epoch=1, seq=2, entries=((0, pack_word(4, 6)),))
    apply_records(TWO_ZONES, states, [first, second], offset=0)
    assert (list(states.conds), list(states.wps)) == ([4, 14], [6, 8])
    with pytest.raises(CorruptImageError, match="journal, record 9 at byte 77: found zone 2, expected a zone below 2"):
        apply_records(TWO_ZONES, states, [Record(epoch=1, seq=9, entries=((2, 1),))], offset=77)


@hypothesis.given(data=st.binary(max_size=300), generation=st.integers(1, 2**64 - 1))
def test_the_newer_faults_count(data: bytes, generation: int) -> None:
    block = encode_faults(data, generation, SEED)
    older = encode_faults(b"older", generation - 1, SEED)
    assert choose_faults([older, block], SEED, offsets=[0, 0]) == (generation, data, 1)
    assert choose_faults([block, older], SEED, offsets=[0, 0]) == (generation, data, 0)
    assert choose_faults([block, bytes(FAULTS_BYTES)], SEED, offsets=[0, 0]) == (generation, data, 0)


def test_damaged_faults() -> None:
    zeros = bytes(FAULTS_BYTES)
    good = encode_faults(b"[]", 1, SEED)
    bad = bytearray(good)
    bad[30] ^= 1
    assert choose_faults([zeros, zeros], SEED, offsets=[0, 0]) == (0, b"", 0)
    assert choose_faults([bytes(bad), zeros], SEED, offsets=[0, 0]) == (0, b"", 0)
    assert choose_faults([bytes(bad), good], SEED, offsets=[0, 0]) == (1, b"[]", 1)
    with pytest.raises(CorruptImageError, match="fault table at byte 11: found damage in both copies"):
        choose_faults([bytes(bad), bytes(bad)], SEED, offsets=[11, 0])


# -- state and zones ------------------------------------------------------------------------------------------------


def test_the_newer_good_state_counts_and_the_other_copy_is_written_first() -> None:
    older, newer = (
        encode_state(State(generation=generation, mode=Mode.LIVE, boot_id=bytes(16)), SEED) for generation in (4, 5)
    )
    bad = b"\xff" + newer[1:]
    for copies, generation, first in (
        ((older, newer), 5, 0), ((newer, older), 5, 1), ((older, bad), 4, 1), ((bad, older), 4, 0),
    ):  # fmt: skip
        state, found = choose_state(copies, SEED, offsets=(0, 0))
        assert (state.generation, found) == (generation, first)
    with pytest.raises(CorruptImageError, match="state, magic at byte 70"):
        choose_state((bad, bad), SEED, offsets=(70, 90))


def test_a_clean_stop_says_where_the_journal_ends() -> None:
    table = Table(generation=3, words=bytes(16), newest=3, base=0, is_sound=True)
    record = Record(epoch=3, seq=1, entries=((1, pack_word(14, 8)),))
    journal = Journal(records=(record,), end=512, is_sound=True)
    assert zone_states(TWO_ZONES, table, journal, offset=0) == (bytearray((0, 14)), array("Q", (0, 8)), bytearray(2))
    clean = State(generation=1, mode=Mode.CLEAN, boot_id=bytes(16), epoch=3, journal_seq=1)
    check_clean_stop(clean, table, journal, offset=1000)
    for epoch, seq in ((3, 2), (4, 1)):
        wrong = replace(clean, epoch=epoch, journal_seq=seq)
        expected = f"at byte 1512: found record 1 of epoch 3 as the last one, expected record {seq} of epoch {epoch}"
        with pytest.raises(CorruptImageError, match=expected):
            check_clean_stop(wrong, table, journal, offset=1000)
        check_clean_stop(replace(wrong, mode=Mode.LIVE), table, journal, offset=1000)


def test_a_power_cut_closes_open_zones_and_empties_those_without_data() -> None:
    before = [
        Condition.NOT_WP,
        Condition.IMP_OPEN,
        Condition.EXP_OPEN,
        Condition.CLOSED,
        Condition.FULL,
        Condition.IMP_OPEN,
    ]
    conds, wps, attributes = states = ZoneStates(bytearray(before), array("Q", (0, 3, 0, 2, 6, 1)), bytearray(6))
    power_cycle(states, range(5))
    after = [Condition.NOT_WP, Condition.CLOSED, Condition.EMPTY, Condition.CLOSED, Condition.FULL, Condition.IMP_OPEN]
    assert list(conds) == after
    assert list(wps) == [0, 3, 0, 2, 6, 1]
    assert not any(attributes)


def test_a_power_cut_leaves_a_zone_with_an_attribute_closed() -> None:
    states = ZoneStates(bytearray((Condition.EXP_OPEN, Condition.CLOSED)), array("Q", (0, 0)), bytearray((1, 0)))
    power_cycle(states, range(2))
    assert (list(states.conds), list(states.attributes)) == ([Condition.CLOSED, Condition.EMPTY], [1, 0])


def test_attributes_in_the_journal() -> None:
    geometry = replace(TWO_ZONES, extension_bytes=64)
    states = ZoneStates(bytearray((1, 1)), array("Q", [0, 0]), bytearray(2))
    record = Record(epoch=1, seq=1, entries=((1, pack_word(4, 5, 1)),))
    apply_records(geometry, states, [record], offset=0)
    assert [list(array_of) for array_of in states] == [[1, 4], [0, 5], [0, 1]]
