"""What a cut can leave, without files; for images of it see test_powercut.py."""

import pytest

from tests.device.small_zones import ZONE, opened, put
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.model.transitions import VIRTIO, Operation

device = pytest.fixture(opened)


def test_torn_writes_are_there_in_whole_blocks(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    put(port, 2 * ZONE, b"a", 32)
    kept = {cut.kept for cut in lab.history().every(torn=True)}
    assert kept == {(0,), (8,), (16,), (24,), (32,)}
    drawn = {lab.history().draw(seed, torn=True).kept for seed in range(100)}
    assert drawn == kept


def test_the_same_seed_gives_the_same_cut(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for zone_no in (2, 3, 4):
        put(port, zone_no * ZONE, b"a")
        put(port, 0, b"b")
    for reorder in (False, True):
        cuts = [lab.history().draw(seed, torn=True, reorder=reorder) for seed in range(50)]
        assert cuts == [lab.history().draw(seed, torn=True, reorder=reorder) for seed in range(50)]
        assert len({cut.kept for cut in cuts}) > 5


def test_in_order_means_none_after_the_first_lost_write(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for zone_no in (2, 3, 4, 2, 3):
        zone = port.zone(zone_no)
        put(port, zone.wp, b"a")
    for seed in range(100):
        kept = lab.history().draw(seed, torn=True).kept
        lost = next((index for index, part in enumerate(kept) if part < 16), len(kept))
        assert not any(kept[lost + 1 :])
    reordered = [lab.history().draw(seed, reorder=True).kept for seed in range(100)]
    assert any(kept[0] == 0 and kept[1] == 16 for kept in reordered)
    assert not any(kept[0] == 0 and kept[3] == 16 for kept in reordered), "a zone keeps a beginning"


def test_with_reordering_a_zone_keeps_a_beginning_of_which_the_last_write_may_be_torn(device: ZonedDevice) -> None:
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    for part in range(4):
        put(port, 2 * ZONE + 16 * part, b"a")
    put(port, 0, b"c")
    found = {lab.history().draw(seed, torn=True, reorder=True).kept for seed in range(400)}
    sequential = {(16,) * whole + (part,) + (0,) * (3 - whole) for whole in range(4) for part in (0, 8)} | {(16,) * 4}
    assert {kept[:4] for kept in found} == sequential
    assert {kept[4] for kept in found} == {0, 8, 16}


def test_every_outcome_is_another_one(device: ZonedDevice) -> None:
    """A zone that was opened comes back as it was, in any case: each one doubled the number of images."""
    port = device.port("test", VIRTIO)
    put(port, 2 * ZONE, b"a")
    assert not port.flush()
    lab = PowerCutLab(device)
    put(port, 2 * ZONE + 16, b"b")  # opens
    put(port, 3 * ZONE, b"c")
    assert not port.manage(Operation.RESET, 3 * ZONE)
    history = lab.history()
    cuts = list(history.every())
    left = [tuple(bytes(memoryview(part)) for part in history.states(cut)) for cut in cuts]
    assert len(set(left)) == len(left)
    assert [cut.kept for cut in cuts] == [(0, 0), (16, 0), (16, 16)]
