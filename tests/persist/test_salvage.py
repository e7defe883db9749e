"""Each source of an image's header and zone states, gone or contradicting the others."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.persist.worlds import BOOT, NEXT_BOOT, UUID_OF_TESTS, World, fresh_memory
from zonefs_emu.errors import BadMagicError, UnsupportedVersionError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.block import BLOCK_BYTES, seal
from zonefs_emu.persist.codec.header import SectionKind, encode_header, plan_header
from zonefs_emu.persist.codec.journal import Record, encode_record
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import encode_live, pack_word, pack_words
from zonefs_emu.persist.metadata import NO_BOOT, create_image
from zonefs_emu.persist.salvage import Zones, salvage_header, salvage_zones
from zonefs_emu.testing.backings import MemoryBacking

#: Zones of four blocks, three of which can be written; the first one is conventional, the last a runt of one block.
GEOMETRY = Geometry(
    size=264, zone_size=32, zone_capacity=24, conventional=((0, 1),), max_open_zones=2, max_active_zones=3
)
#: Two table blocks, no limits.
WIDE = Geometry(size=4800, zone_size=8, zone_capacity=8)
NW, EM, OI, CL, FU = Condition.NOT_WP, Condition.EMPTY, Condition.IMP_OPEN, Condition.CLOSED, Condition.FULL


def memory_of(geometry: Geometry, program: str) -> bytearray:
    memory = fresh_memory(geometry)
    World(MemoryBacking(memory)).run(program)
    return bytearray(memory)


def put(memory: bytearray, geometry: Geometry, kind: SectionKind, copies: Iterable[int], content: bytes) -> None:
    """Overwrite the beginning of sections."""
    header = plan_header(geometry, uuid=UUID_OF_TESTS)
    for copy in copies:
        offset = header.section(kind, copy).offset
        memory[offset : offset + len(content)] = content


def spoil(memory: bytearray, geometry: Geometry, *kinds: SectionKind, at: int = 0) -> None:
    """Fill the sector at byte *at* of all sections of *kinds* with noise."""
    header = plan_header(geometry, uuid=UUID_OF_TESTS)
    for section in header.sections:
        if section.kind in kinds:
            memory[section.offset + at : section.offset + at + 512] = b"\xa5" * 512


def zones_of(memory: bytearray, geometry: Geometry, boot_id: bytes = BOOT) -> Zones:
    return salvage_zones(MemoryBacking(memory), plan_header(geometry, uuid=UUID_OF_TESTS), boot_id)


def states(zones: Zones) -> list[tuple[int, int]]:
    return list(zip(zones.states.conds, zones.states.wps, strict=True))


# -- header -----------------------------------------------------------------------------------------------------------


#: (bytes from, to) that are damaged in each copy. In a file that was cut or has grown one of them must be found first,
#: by its magic or by what the other one says.
FOUND = [
    ((8, 12), (120, 180)),
    ((190, 1024), (200, 1024)),
    ((56, 57), (57, 58)),
    ((1024, 1032), (56, 100)),
    ((0, 8), (0, 0)),
]
FOUND_IN_ITS_PLACE = [((0, 40), (0, 8)), ((0, 8), (0, 40)), ((120, 4096), (0, 120))]


@pytest.mark.parametrize(("first", "second"), FOUND + FOUND_IN_ITS_PLACE)
def test_what_two_damaged_headers_lead_to(first: tuple[int, int], second: tuple[int, int]) -> None:
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS, label="tests")
    memory = fresh_memory(GEOMETRY)
    for copy, (start, end) in enumerate((first, second)):
        offset = header.section(SectionKind.HEADER, copy).offset
        memory[offset + start : offset + end] = b"\xa5" * (end - start)
    assert salvage_header(MemoryBacking(memory), len(memory)) == header
    if (first, second) in FOUND:
        assert salvage_header(MemoryBacking(memory + bytes(4096 + 7)), len(memory) + 4096 + 7) == header


def test_no_header_is_found_where_there_is_none() -> None:
    for length in (0, 5, 4096, 100_000):
        with pytest.raises(BadMagicError, match="no copy of a zonefs_emu header can be read"):
            salvage_header(MemoryBacking(bytearray(length)), length)
    memory = fresh_memory(GEOMETRY)
    for copy in (0, 1):
        put(memory, GEOMETRY, SectionKind.HEADER, [copy], b"\xff" * 300)
    with pytest.raises(BadMagicError, match="byte n of the device at byte n of the file"):
        salvage_header(MemoryBacking(memory), len(memory))


def test_an_image_of_a_later_version_is_not_damaged() -> None:
    memory = fresh_memory(GEOMETRY)
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    block = bytearray(encode_header(header, 1))
    block[12] = 2
    seal(block, 8, 0)
    put(memory, GEOMETRY, SectionKind.HEADER, [1], bytes(block))
    with pytest.raises(UnsupportedVersionError):
        salvage_header(MemoryBacking(memory), len(memory))


# -- the sources of zone states ---------------------------------------------------------------------------------------


def test_a_sound_image_is_what_opening_says() -> None:
    memory = memory_of(GEOMETRY, "w1:5 f w2:24 w3:8 Q")
    zones = zones_of(memory, GEOMETRY)
    assert (zones.is_sound, zones.source, zones.lost) == (True, "the checkpoint", ())
    assert states(zones)[:5] == [(NW, 0), (OI, 5), (FU, 24), (OI, 8), (EM, 0)]
    memory = memory_of(GEOMETRY, "w1:5 f w2:24 w3:8")
    assert zones_of(memory, GEOMETRY).source == "the live table"
    # Opening will take it back to the last flush, and repair leaves that to it.
    zones = zones_of(memory, GEOMETRY, NEXT_BOOT)
    assert (zones.is_sound, states(zones)[1:3]) == (True, [(OI, 5), (EM, 0)])


def test_without_the_state_block_live_table_and_checkpoint_must_agree() -> None:
    memory = memory_of(GEOMETRY, "w1:5 f w2:24")
    spoil(memory, GEOMETRY, SectionKind.STATE)
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:3] == [(CL, 5), (EM, 0)]
    assert zones.lost == ("what changed after the last completed flush, if anything did",)
    memory = memory_of(GEOMETRY, "w1:5 f w2:24 f")
    spoil(memory, GEOMETRY, SectionKind.STATE)
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:3] == [(OI, 5), (FU, 24)]
    assert (zones.is_sound, zones.lost) == (False, ())


def test_a_clean_stop_that_is_older_than_the_checkpoint_says_nothing() -> None:
    """The state block that said LIVE is gone, and the one from before it was opened is back."""
    memory = memory_of(GEOMETRY, "w1:5 Q")
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    stopped = MemoryBacking(memory).pread(BLOCK_BYTES, header.section(SectionKind.STATE).offset)
    World(MemoryBacking(memory)).run("w1:2 f w1:1")
    memory = bytearray(memory)
    put(memory, GEOMETRY, SectionKind.STATE, [0, 1], stopped)
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1] == (CL, 7)
    assert zones.lost == ("what changed after the last completed flush, if anything did",)


def test_zones_that_the_live_table_lacks_come_from_the_last_flush() -> None:
    memory = memory_of(GEOMETRY, "w1:5 w2:5 f w1:1 w2:1 w3:7")
    live = plan_header(GEOMETRY, uuid=UUID_OF_TESTS).section(SectionKind.LIVE).offset
    memory[live + 8] ^= 1
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:4] == [(CL, 5), (OI, 6), (OI, 7)]
    assert zones.lost == ("what changed after the last completed flush in zone 1",)
    # That would have been more than may be open; zone 3 has not been flushed.
    memory[live + 16] ^= 1
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:4] == [(CL, 5), (CL, 5), (OI, 7)]
    assert zones.lost == ("what changed after the last completed flush in zones 1, 2",)


def test_words_that_are_impossible_are_not_believed() -> None:
    memory = memory_of(GEOMETRY, "w1:5 w2:24 f Q")
    seed = plan_header(GEOMETRY, uuid=UUID_OF_TESTS).seed
    words = pack_words(bytearray((0, 7, 14, 1, 1, 1, 1, 1, 1)), array("Q", (0, 5, 24, 0, 0, 0, 0, 0, 0)))
    put(memory, GEOMETRY, SectionKind.TABLE, [0, 1], encode_table(words, 9, seed))
    state = State(generation=99, mode=Mode.CLEAN, boot_id=NO_BOOT, epoch=9)
    put(memory, GEOMETRY, SectionKind.STATE, [0, 1], encode_state(state, seed))
    zones = zones_of(memory, GEOMETRY)
    assert (zones.is_sound, zones.source) == (False, "the live table of the clean stop")
    assert states(zones)[1:3] == [(OI, 5), (FU, 24)]


def test_more_open_zones_than_may_be_are_closed() -> None:
    memory = fresh_memory(GEOMETRY)
    seed = plan_header(GEOMETRY, uuid=UUID_OF_TESTS).seed
    words = pack_words(bytearray((0, 2, 2, 3, 1, 1, 1, 1, 1)), array("Q", (0, 5, 6, 0, 0, 0, 0, 0, 0)))
    put(memory, GEOMETRY, SectionKind.TABLE, [0, 1], encode_table(words, 1, seed))
    spoil(memory, GEOMETRY, SectionKind.STATE)
    live = encode_live(words)
    put(memory, GEOMETRY, SectionKind.LIVE, [0], live)
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:4] == [(CL, 5), (CL, 6), (EM, 0)]
    assert zones.lost == ("which zones were open: there were more than the limits allow",)


# -- the journal ------------------------------------------------------------------------------------------------------


def journal_of(memory: bytearray, geometry: Geometry, records: Sequence[Record], *, generation: int = 5) -> None:
    """Give the image a table of empty zones of *generation*, and a journal; it was in use when power went."""
    seed = plan_header(geometry, uuid=UUID_OF_TESTS).seed
    words = pack_word(EM, 0).to_bytes(8, "little") * geometry.nr_zones
    if geometry.conventional:
        words = bytes(8) + words[8:]
    put(memory, geometry, SectionKind.TABLE, [0, 1], encode_table(words, generation, seed))
    content = b"".join(encode_record(record, seed) for record in records)
    put(memory, geometry, SectionKind.JOURNAL, [0, 1], content)
    state = State(generation=99, mode=Mode.LIVE, boot_id=NEXT_BOOT)
    put(memory, geometry, SectionKind.STATE, [0, 1], encode_state(state, seed))


def record(seq: int, *entries: tuple[int, Condition, int], epoch: int = 5) -> Record:
    return Record(epoch=epoch, seq=seq, entries=tuple((zone, pack_word(cond, wp)) for zone, cond, wp in entries))


def test_what_follows_on_a_missing_record_counts() -> None:
    memory = fresh_memory(GEOMETRY)
    records = [record(1, (1, CL, 3), (2, CL, 3)), record(2, (3, CL, 3)), record(3, (1, CL, 12), (999, CL, 1))]
    journal_of(memory, GEOMETRY, records)
    # Zone 2 was not changed by the record that is missing, zone 3 was, and zone 4 has data that no record mentions.
    for zone_no, nr_sectors in ((1, 12), (2, 3), (3, 3), (4, 11)):
        start = zone_no * 32 * 512
        memory[start : start + nr_sectors * 512] = b"d" * nr_sectors * 512
    spoil(memory, GEOMETRY, SectionKind.JOURNAL, at=512)
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[:6] == [(NW, 0), (CL, 12), (CL, 3), (CL, 8), (FU, 16), (EM, 0)]
    assert (
        "zone 3: its condition and write pointer; it is now CLOSED with 8 sectors, as its data extents say"
    ) in zones.lost
    assert (
        "zone 2: its latest changes; it is now CLOSED with 3 sectors, as an older source says, with which its data "
        "extents agree"
    ) in zones.lost
    # Four are active: the fullest is finished.
    assert zones.lost[-1] == "the room left in zone 4: finished, as more were active than the limit allows"


def test_a_record_that_is_there_twice() -> None:
    memory = fresh_memory(GEOMETRY)
    journal_of(memory, GEOMETRY, [record(1, (1, CL, 3)), record(1, (1, CL, 3)), record(2, (1, FU, 24))])
    zones = zones_of(memory, GEOMETRY)
    assert (zones.is_sound, states(zones)[1], zones.lost) == (False, (FU, 24), ())


def test_copies_that_contradict_each_other_are_not_sound() -> None:
    memory = fresh_memory(GEOMETRY)
    journal_of(memory, GEOMETRY, [record(1, (1, CL, 3))])
    seed = plan_header(GEOMETRY, uuid=UUID_OF_TESTS).seed
    put(memory, GEOMETRY, SectionKind.JOURNAL, [1], encode_record(record(1, (1, CL, 4)), seed))
    zones = zones_of(memory, GEOMETRY)
    assert (zones.is_sound, states(zones)[1]) == (False, (CL, 3))


def test_each_zone_is_as_new_as_its_table_block() -> None:
    memory = fresh_memory(WIDE)
    journal_of(memory, WIDE, [record(1, (3, FU, 8), (599, FU, 8)), record(2, (510, FU, 8))])
    spoil(memory, WIDE, SectionKind.TABLE, at=BLOCK_BYTES)
    zones = zones_of(memory, WIDE)
    # Both of the second block are named by the journal, which is as new as the first.
    assert [zone_no for zone_no, state in enumerate(states(zones)) if state == (FU, 8)] == [3, 510, 599]
    assert len(zones.lost) == 21
    assert zones.lost[-1] == "the same of 68 more zones"
    # With a newer first block the journal is from before it: what it says of the second is not certain.
    seed = plan_header(WIDE, uuid=UUID_OF_TESTS).seed
    words = pack_word(EM, 0).to_bytes(8, "little") * 510
    put(memory, WIDE, SectionKind.TABLE, [0], encode_table(words, 6, seed))
    zones = zones_of(memory, WIDE)
    assert FU not in zones.states.conds
    assert zones.epoch == 6
    # And alone it says nothing for certain, only where the data bear it out.
    spoil(memory, WIDE, SectionKind.TABLE)
    memory[510 * 4096 : 511 * 4096] = b"d" * 4096
    zones = zones_of(memory, WIDE)
    assert [zone_no for zone_no, state in enumerate(states(zones)) if state == (FU, 8)] == [510]


def test_a_block_that_is_older_than_the_journal() -> None:
    memory = fresh_memory(WIDE)
    journal_of(memory, WIDE, [record(1, (0, FU, 8), epoch=6)])
    memory[4096:8192] = b"d" * 4096
    zones = zones_of(memory, WIDE)
    assert zones.is_sound  # a compaction that was interrupted: the records of epoch 6 cannot be there, and do not count
    spoil(memory, WIDE, SectionKind.TABLE, at=BLOCK_BYTES)
    assert states(zones_of(memory, WIDE))[:3] == [(EM, 0), (FU, 8), (EM, 0)]


def test_a_clean_stop_tells_how_many_records_there_were() -> None:
    memory = fresh_memory(GEOMETRY)
    journal_of(memory, GEOMETRY, [record(1, (1, CL, 3)), record(2, (2, FU, 24))])
    seed = plan_header(GEOMETRY, uuid=UUID_OF_TESTS).seed
    state = State(generation=100, mode=Mode.CLEAN, boot_id=NO_BOOT, epoch=5, journal_seq=3)
    put(memory, GEOMETRY, SectionKind.STATE, [0, 1], encode_state(state, seed))
    memory[32 * 512 : 35 * 512] = b"d" * 3 * 512
    # The live table was never used, so what the third record said is in no place.
    zones = zones_of(memory, GEOMETRY)
    assert states(zones)[1:4] == [(CL, 3), (EM, 0), (EM, 0)]
    assert not zones.is_sound


# -- data extents -----------------------------------------------------------------------------------------------------


def test_write_pointers_from_the_extents_of_a_sparse_file(tmp_path: Path) -> None:
    geometry = replace(GEOMETRY, max_open_zones=0, max_active_zones=0)
    path = tmp_path / "a.img"
    create_image(path, geometry, uuid=UUID_OF_TESTS)
    header = plan_header(geometry, uuid=UUID_OF_TESTS)
    backing = FileBacking.open(path)
    for section in header.sections:
        if section.kind in (SectionKind.TABLE, SectionKind.STATE):
            backing.pwrite(b"\xa5" * 512, section.offset)
    for zone_no, (start, length) in {0: (0, 9), 1: (0, 1), 2: (5000, 1), 4: (0, 12288), 8: (0, 4096)}.items():
        backing.pwrite(b"d" * length, zone_no * 16384 + start)
    zones = salvage_zones(backing, header, BOOT)
    backing.close()
    expected = [(NW, 0), (CL, 8), (CL, 16), (EM, 0), (FU, 24), (EM, 0), (EM, 0), (EM, 0), (FU, 8)]
    assert states(zones) == expected
    assert zones.source == "the checkpoint, and from the data extents for zones that it lacks"


def test_the_write_granularity_is_kept() -> None:
    geometry = Geometry(size=192, zone_size=64, zone_capacity=48, write_granularity=16, max_append=16)
    memory = memory_of(geometry, "w0:16 Q")
    spoil(memory, geometry, SectionKind.TABLE, SectionKind.STATE, SectionKind.LIVE)
    memory[64 * 512] = memory[128 * 512 + 40 * 512] = 1
    assert states(zones_of(memory, geometry)) == [(CL, 16), (CL, 16), (FU, 48)]


def test_an_older_word_must_be_borne_out_to_the_byte() -> None:
    """Within the block that wp is in, data behind it say that more was written."""
    geometry = replace(GEOMETRY, max_active_zones=0, max_open_zones=0)
    memory = memory_of(geometry, "w1:3 w2:3 x3:15 Q")
    spoil(memory, geometry, SectionKind.TABLE, SectionKind.STATE)
    memory[2 * 32 * 512 + 7 * 512] = 1
    zones = zones_of(memory, geometry)
    assert states(zones)[1:4] == [(CL, 3), (CL, 8), (Condition.OFFLINE, 0)]


def test_random_write_areas_are_salvaged_where_their_data_bear_them_out() -> None:
    areas = Geometry(
        size=128, zone_size=32, zone_capacity=24, zrwa_size=8, zrwa_granularity=4, max_active_zones=2
    )  # fmt: skip
    word = pack_word(CL, 4, Attribute.ZRWA)
    records = [
        Record(epoch=5, seq=1, entries=((0, pack_word(CL, 8, Attribute.ZRWA)), (1, word), (2, word), (3, word))),
        Record(epoch=5, seq=2, entries=((3, pack_word(CL, 4)),)),
        Record(epoch=5, seq=3, entries=((0, pack_word(CL, 8, Attribute.ZRWA)),)),
    ]
    memory = fresh_memory(areas)
    journal_of(memory, areas, records)
    # The area of zone 1 ends at sector 12. Zone 2 has data behind its area, and zone 3 none at all.
    for zone_no, nr_sectors in ((0, 8), (1, 9), (2, 24)):
        start = zone_no * 32 * 512
        memory[start : start + nr_sectors * 512] = b"d" * nr_sectors * 512
    spoil(memory, areas, SectionKind.JOURNAL, at=512)
    zones = zones_of(memory, areas)
    assert states(zones)[1:] == [(CL, 4), (FU, 24), (EM, 0)]
    # More were active than may be, so the one with the least room was finished, and its area flushed.
    assert states(zones)[0] == (CL, 8)
    assert list(zones.states.attributes) == [Attribute.ZRWA, Attribute.ZRWA, 0, 0]
