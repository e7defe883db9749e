"""Which zones have old bytes, and until when."""

import threading
from array import array

from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.pending_resets import PORTION_ZONES, PendingResets

NR_ZONES = 3 * PORTION_ZONES


def never() -> None:
    raise AssertionError


def test_a_zone_keeps_its_largest_old_extent_until_a_checkpoint_covers_it() -> None:
    pending = PendingResets(NR_ZONES)
    assert pending.zone_numbers() == []
    for zone_no, nr_written in ((2 * PORTION_ZONES + 1, 8), (5, 6), (5, 2), (4, 1)):
        pending.note(zone_no, nr_written)
    assert pending.zone_numbers() == [4, 5, 2 * PORTION_ZONES + 1]
    assert [pending.old_extents[zone_no] for zone_no in pending.zone_numbers()] == [1, 6, 8]
    wps = array("Q", bytes(8 * NR_ZONES))
    pending.clear([4, 5], wps, {4: 0, 5: 0}, lock=threading.Lock(), let_others_in=never)
    assert pending.zone_numbers() == [2 * PORTION_ZONES + 1]
    assert pending._runs == {2}, "a run without old extents is not searched any more"


def test_a_zone_that_was_reset_during_the_checkpoint_stays() -> None:
    pending = PendingResets(NR_ZONES)
    pending.note(3, 6)
    pending.note(9, 6)
    wps = array("Q", bytes(8 * NR_ZONES))
    wps[9] = 5
    # The checkpoint has zone 3 with four sectors that are gone since, and zone 9 with less than it has now.
    pending.clear([3, 9], wps, {3: 4, 9: 2}, lock=threading.Lock(), let_others_in=never)
    assert pending.zone_numbers() == [3]


def test_the_lock_is_free_between_portions() -> None:
    pending = PendingResets(NR_ZONES)
    zone_numbers = range(1, NR_ZONES)
    for zone_no in zone_numbers:
        pending.note(zone_no, 1)
    lock = threading.Lock()
    left: list[int] = []

    def others() -> None:
        assert not lock.locked()
        left.append(len(pending.zone_numbers()))

    wps = array("Q", bytes(8 * NR_ZONES))
    pending.clear(zone_numbers, wps, wps, lock=lock, let_others_in=others)
    assert left == [len(zone_numbers) - PORTION_ZONES, len(zone_numbers) - 2 * PORTION_ZONES]
    assert pending.zone_numbers() == []
    assert not any(pending.old_extents)


def test_zones_to_be_overwritten_are_noted_again_if_empty_and_forgotten_without_old_bytes() -> None:
    pending = PendingResets(NR_ZONES)
    conds, wps = bytearray((Condition.IMP_OPEN,) * NR_ZONES), array("Q", bytes(8 * NR_ZONES))
    for zone_no in (1, 2, 3, 4):
        pending.note(zone_no, 6)
        assert pending.overwrite(zone_no)
    pending.clear([1, 2, 3, 4], wps, wps, lock=threading.Lock(), let_others_in=never)
    # Zone 1 is empty, zone 2 has overwritten all its old bytes, and zone 3 some; a long write is at work in zone 4.
    conds[1] = Condition.EMPTY
    wps[2], wps[3] = 6, 5
    pending.note_unwritten(conds, wps)
    assert pending.overwritten == {3: 6, 4: 6}
    assert pending.zone_numbers() == [1]
    assert pending.old_extents[1] == 6


def test_a_zone_that_is_to_be_overwritten_twice_keeps_its_largest_old_extent() -> None:
    pending = PendingResets(NR_ZONES)
    wps = array("Q", bytes(8 * NR_ZONES))
    for extent in (6, 2):
        pending.note(1, extent)
        assert pending.overwrite(1)
        pending.clear([1], wps, wps, lock=threading.Lock(), let_others_in=never)
    assert pending.overwritten == {1: 6}


def test_not_all_zones_of_a_large_device_are_to_be_overwritten() -> None:
    """Each checkpoint looks at them with the lock held."""
    pending = PendingResets(NR_ZONES)
    assert all(pending.overwrite(zone_no) for zone_no in range(PORTION_ZONES))
    assert not pending.overwrite(PORTION_ZONES)
