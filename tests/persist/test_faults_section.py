"""The text of the faults in its two copies, where the host fails; for crashes see test_crashes.py."""

import pytest

from tests.persist.worlds import GEOMETRY, UUID_OF_TESTS, fresh_memory
from zonefs_emu.errors import CorruptImageError, UsageError
from zonefs_emu.persist.codec.faults import decode_faults
from zonefs_emu.persist.codec.header import SectionKind, plan_header
from zonefs_emu.persist.faults_section import FaultsSection
from zonefs_emu.testing.backings import FailingBacking, MemoryBacking

HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS, label="tests")


def section(memory: bytearray, *, fail_at: int = 0) -> tuple[FaultsSection, bytes]:
    found = FaultsSection(FailingBacking(memory, fail_at=fail_at), HEADER)
    return found, found.load()


def damage(memory: bytearray, copy: int) -> None:
    memory[HEADER.section(SectionKind.FAULTS, copy).offset + 30] ^= 0xFF


def test_what_was_saved_last_is_loaded_with_its_version() -> None:
    memory = fresh_memory()
    faults, text = section(memory)
    assert (text, faults.version) == (b"", 0)
    faults.version = 3
    faults.save(b"durable", durably=True)
    faults.save(b"kept", durably=False)
    again, text = section(memory)
    assert (text, again.version) == (b"kept", 3)
    again.save(b"newest", durably=True)
    assert section(memory)[1] == b"newest"


def test_generations_count_what_was_saved_durably() -> None:
    """A text that is kept until then has the next number, each time the same."""
    memory = fresh_memory()
    faults, _ = section(memory)
    found = []
    for durably in (True, True, False, False, True):
        faults.save(b"text", durably=durably)
        copies = [HEADER.section(SectionKind.FAULTS, copy) for copy in (0, 1)]
        blocks = [decode_faults(bytes(memory[each.offset : each.offset + each.length]), HEADER.seed) for each in copies]
        found.append(sorted(block[0] for block in blocks if block is not None))
    assert found == [[1, 1], [2, 2], [2, 3], [2, 3], [3, 3]]


def test_a_text_that_is_kept_without_a_sync_leaves_the_durable_copy() -> None:
    memory = fresh_memory()
    faults, _ = section(memory)
    faults.save(b"durable", durably=True)
    for text in (b"one", b"two"):
        faults.save(text, durably=False)
        found = []
        for copy in (0, 1):
            torn = bytearray(memory)
            damage(torn, copy)
            found.append(section(torn)[1])
        assert sorted(found) == sorted((text, b"durable"))


@pytest.mark.parametrize("fail_at", range(1, 5))
def test_a_save_that_fails_leaves_the_old_or_the_new_text(fail_at: int) -> None:
    memory = fresh_memory()
    section(memory)[0].save(b"old", durably=True)
    faults, _ = section(memory, fail_at=fail_at)
    with pytest.raises(OSError, match="Input/output error"):
        faults.save(b"new", durably=True)
    assert section(memory)[1] in ((b"old", b"new") if fail_at <= 2 else (b"new",))
    # The copy that was not written yet may be the only good one: it is not the first to be overwritten.
    faults.save(b"newer", durably=True)
    assert section(memory)[1] == b"newer"


def test_after_a_save_that_stopped_half_way_the_finished_copy_is_overwritten_last() -> None:
    """The texts are so long that half of one is damaged."""
    memory = fresh_memory()
    section(memory)[0].save(b"old" * 6000, durably=True)
    second = HEADER.section(SectionKind.FAULTS, 1 - section(memory)[0]._first)
    end = second.offset + second.length
    kept = bytes(memory[second.offset : end])
    faults, _ = section(memory, fail_at=3)
    with pytest.raises(OSError, match="Input/output error"):
        faults.save(b"new" * 6000, durably=True)
    memory[second.offset : end] = kept  # refused as a whole
    assert isinstance(faults._backing, FailingBacking)
    faults._backing.fail_at = faults._backing.calls + 1
    with pytest.raises(OSError, match="Input/output error"):
        faults.save(b"newer" * 4000, durably=True)
    assert section(memory)[1] == b"new" * 6000


def test_damage_in_both_copies_and_a_text_that_is_too_long() -> None:
    memory = fresh_memory()
    faults, _ = section(memory)
    with pytest.raises(UsageError, match="the faults take 40000 bytes"):
        faults.save(bytes(40000), durably=True)
    faults.save(b"text", durably=True)
    for copy in (0, 1):
        damage(memory, copy)
    with pytest.raises(CorruptImageError, match="fault table"):
        FaultsSection(MemoryBacking(memory), HEADER)
