"""Tests of log_store.py: all but the last pass with its bug.

pytest examples
"""

import random

import pytest

from examples.log_store import LogStore
from zonefs_emu.testing.zoned_device import DeviceUnderTest

# Eight small zones: compaction begins after a few dozen records.
pytestmark = pytest.mark.zoned(size=8 << 16, zone_size=1 << 16)

careless_and_careful = pytest.mark.parametrize("careful", [False, True], ids=["careless", "careful"])


def fill(store: LogStore, seed: int, count: int) -> dict[bytes, bytes]:
    """Put *count* values under a few keys and return what the store must then hold."""
    generator = random.Random(seed)
    expected = {}
    for _ in range(count):
        key, value = b"key %d" % generator.randrange(50), generator.randbytes(generator.randrange(6000))
        store.put(key, value)
        expected[key] = value
    return expected


def content(store: LogStore) -> dict[bytes, bytes]:
    return {key: store.get(key) for key in store}


@careless_and_careful
def test_the_newest_value_counts(zoned_device: DeviceUnderTest, *, careful: bool) -> None:
    store = LogStore(zoned_device.port, careful=careful)
    store.put(b"a", b"1")
    store.put(b"b", b"2")
    store.put(b"a", b"3")
    assert content(store) == {b"a": b"3", b"b": b"2"}


@careless_and_careful
def test_compaction_keeps_everything(zoned_device: DeviceUnderTest, *, careful: bool) -> None:
    store = LogStore(zoned_device.port, careful=careful)
    expected = fill(store, seed=1, count=300)
    assert zoned_device.device.statistics()["resets"] > 5
    assert content(store) == expected


@careless_and_careful
def test_a_restart_keeps_everything(zoned_device: DeviceUnderTest, *, careful: bool) -> None:
    expected = fill(LogStore(zoned_device.port, careful=careful), seed=2, count=300)
    assert content(LogStore(zoned_device.port)) == expected


@pytest.mark.parametrize(
    "careful",
    [
        pytest.param(False, marks=pytest.mark.xfail(reason="the bug", strict=True, raises=AssertionError)),
        True,
    ],
    ids=["careless", "careful"],
)
def test_what_was_synced_survives_a_power_cut(zoned_device: DeviceUnderTest, *, careful: bool) -> None:
    for seed in range(30):
        store = LogStore(zoned_device.port, careful=careful)
        fill(store, seed, count=15)
        store.sync()
        synced = content(store)
        since = fill(store, seed + 1000, count=15)
        zoned_device.power_cut(seed=seed, torn=True, reorder=True)
        found = content(LogStore(zoned_device.port))
        # What was put after the sync may be there or not; all else must be as it was.
        lost = sorted(key for key in synced.keys() - since.keys() if found.get(key) != synced[key])
        assert not lost, f"the power cut of seed {seed} lost {lost}"
