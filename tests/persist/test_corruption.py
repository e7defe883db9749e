"""Every byte of the metadata flipped, every length cut: the right state, or an error that says what and where.

With two copies of all that matters a single flipped byte must not even be an error, the live table apart; and that one
is looked at only if the last process was killed on this very boot.
"""

import random
from collections.abc import Iterator

import pytest

from tests.persist.worlds import BOOT, GEOMETRY, NEXT_BOOT, UUID_OF_TESTS, Snapshot, World, fresh_memory, snapshot
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import BadMagicError, CorruptImageError
from zonefs_emu.persist.codec.header import SectionKind, plan_header
from zonefs_emu.persist.image import Image
from zonefs_emu.testing.backings import MemoryBacking

HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
PROGRAM = "w1:2 f w2:6 o3 f r1 x4:13 w1:1 f a3:2 k0:4"
#: How the image was left, and on which boot it is opened again.
CASES = {"clean": (" Q", BOOT), "killed": ("", BOOT), "power cut": ("", NEXT_BOOT)}


class PlainBacking(MemoryBacking):
    """Memory that may be cut to *length_now*, and does not look for holes: the tests open it very often."""

    def __init__(self, memory: bytearray) -> None:
        super().__init__(memory)
        self.length_now = len(memory)

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.memory[offset : min(offset + length, self.length_now)])

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        if start < end:
            yield start, end - start


def left_behind(case: str) -> tuple[PlainBacking, bytes]:
    end, boot_id = CASES[case]
    memory = fresh_memory()
    World(MemoryBacking(memory)).run(PROGRAM + end)
    return PlainBacking(memory), boot_id


def load(backing: PlainBacking, boot_id: bytes) -> tuple[Image, Snapshot]:
    image = Image.load(backing, backing.length_now, boot_id, readonly=True)
    return image, snapshot(image, backing.memory)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL])
@pytest.mark.parametrize("copy", [0, 1])
def test_any_flipped_byte_of_what_has_two_copies_leaves_the_right_state(kind: SectionKind, copy: int) -> None:
    images = [left_behind(case) for case in CASES]
    expected = [load(backing, boot_id)[1] for backing, boot_id in images]
    section = HEADER.section(kind, copy)
    rng = random.Random(kind)
    offsets = [[offset] for offset in range(section.offset, section.offset + min(section.length, 4096))]
    # The empty part of the journal: the same byte of all its sectors at once.
    end = section.offset + section.length
    offsets += [list(range(first, end, 512)) for first in range(section.offset + 4096, section.offset + 4608)]
    cases = list(zip(images, expected, strict=True))
    for number, together in enumerate(offsets):
        flip = rng.randrange(1, 256)
        # One way of being left for each byte, in turn: all three for each take three times as long and read the same.
        (backing, boot_id), right = cases[number % len(cases)]
        for offset in together:
            backing.memory[offset] ^= flip
        assert load(backing, boot_id)[1] == right, (together, flip)
        for offset in together:
            backing.memory[offset] ^= flip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_flipped_byte_of_the_live_table_is_named_where_that_counts(case: str) -> None:
    backing, boot_id = left_behind(case)
    _, expected = load(backing, boot_id)
    section = HEADER.section(SectionKind.LIVE)
    for offset in range(section.offset, section.offset + section.length):
        for flip in (1, 0x80, 0xFF):
            backing.memory[offset] ^= flip
            zone_no = (offset - section.offset) // 8
            if case == "killed" and zone_no < GEOMETRY.nr_zones:
                with pytest.raises(CorruptImageError, match=f"live table, zone {zone_no} at byte "):
                    load(backing, boot_id)
            else:
                assert load(backing, boot_id)[1] == expected
            backing.memory[offset] ^= flip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SectionKind.REFUSALS, SectionKind.FAULTS, SectionKind.COUNTERS])
def test_any_flipped_byte_of_logs_and_statistics_is_harmless(kind: SectionKind) -> None:
    backing, boot_id = left_behind("clean")
    _, expected = load(backing, boot_id)
    section = HEADER.section(kind)
    step = 1 if kind is SectionKind.COUNTERS else 61
    for offset in range(section.offset, section.offset + section.length, step):
        backing.memory[offset] ^= 0x55
        image, found = load(backing, boot_id)
        device = ZonedDevice(image)
        device.refusals.last(10)
        assert found == expected
        backing.memory[offset] ^= 0x55


def refusal(backing: PlainBacking, boot_id: bytes) -> BadMagicError | CorruptImageError | None:
    """How opening is refused, None if it is not."""
    try:
        load(backing, boot_id)
    except (BadMagicError, CorruptImageError) as error:
        return error
    return None


@pytest.mark.slow
def test_every_cut_length_is_an_error_that_says_so() -> None:
    """Every one at the two ends of the file, and in between those around the ends of sectors."""
    backing, boot_id = left_behind("clean")
    whole = HEADER.file_bytes
    ends = range(8192), range(whole - 8192, whole)
    between = range(8192, whole - 8192, 512)
    for length in (*ends[0], *(near for end in between for near in (end - 1, end, end + 1)), *ends[1]):
        backing.length_now = length
        error = refusal(backing, boot_id)
        if length < HEADER.metadata_offset + 4096:
            assert isinstance(error, BadMagicError)
            assert str(error).startswith(f"no zonefs_emu header at byte {max(length - 4096, 0)}: found ")
        else:
            assert isinstance(error, CorruptImageError)
            assert (
                str(error) == f"the length of the file at byte {length}: found {length} bytes, expected {whole} bytes"
            )


def test_a_file_with_something_appended_is_an_error() -> None:
    backing, boot_id = left_behind("clean")
    for more in (1, 512, 4096, 10_000):
        longer = PlainBacking(backing.memory + bytes(more))
        with pytest.raises(CorruptImageError, match=f"found {HEADER.file_bytes + more} bytes, expected"):
            load(longer, boot_id)


@pytest.mark.parametrize("kind", [SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL])
@pytest.mark.parametrize("case", CASES)
def test_the_same_byte_of_both_copies_is_an_error_that_says_where(kind: SectionKind, case: str) -> None:
    backing, boot_id = left_behind(case)
    _, expected = load(backing, boot_id)
    first, second = HEADER.section(kind, 0), HEADER.section(kind, 1)
    errors = 0
    for at in range(0, min(first.length, 4096), 3):
        for section in (first, second):
            backing.memory[section.offset + at] ^= 0x10
        error = refusal(backing, boot_id)
        if error:
            errors += 1
            assert "at byte" in str(error)
        else:
            # The last record of a journal that was in use counts only if it is whole: it may never have been answered.
            assert load(backing, boot_id)[1] == expected or (kind is SectionKind.JOURNAL and case != "clean")
        for section in (first, second):
            backing.memory[section.offset + at] ^= 0x10
    assert errors > 200


def test_opening_heals_what_one_copy_lost() -> None:
    backing, _ = left_behind("clean")
    for kind in (SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL):
        backing.memory[HEADER.section(kind, 0).offset + 100] ^= 0x10
    before = load(backing, BOOT)[1]
    Image.load(backing, backing.length, BOOT).close()
    for kind in (SectionKind.STATE, SectionKind.TABLE):
        backing.memory[HEADER.section(kind, 1).offset + 100] ^= 0x10
    assert load(backing, BOOT)[1] == before


def test_random_damage_never_crashes() -> None:
    """Whole sectors overwritten: the image opens, or an ImageError says where it is wrong."""
    rng = random.Random(1)
    for case in CASES:
        backing, boot_id = left_behind(case)
        sound = bytes(backing.memory)
        for _ in range(300):
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(HEADER.metadata_offset, HEADER.file_bytes - 512)
                backing.memory[at : at + 512] = rng.choice((rng.randbytes(512), bytes(512), sound[:512]))
            error = refusal(backing, boot_id)
            assert error is None or "at byte" in str(error)
            backing.memory[:] = sound
