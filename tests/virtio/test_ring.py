"""What split and packed rings have in common, driver and device face to face."""

import mmap
import os
from collections import deque
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.virtio.rings import MEMORY_BYTES, Pair
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.ring import (
    CHAIN_BYTES_MAX,
    TRANSFER_BYTES_MAX,
    BrokenRingError,
    Chain,
    OversizedChainError,
    check_size,
)

both = pytest.mark.parametrize("is_packed", [False, True], ids=["split", "packed"])


@both
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("ordered", [False, True], ids=["weak", "ordered"])
def test_a_request_and_its_answer(is_packed: bool, indirect: bool, ordered: bool) -> None:
    pair = Pair(is_packed=is_packed, ordered=ordered)
    for turn in range(40):  # several times round the ring
        content = bytes([turn]) * 5
        number = pair.add([content, b"more"], [3, 1], indirect=indirect)
        (chain,) = pair.ring.pop(10)
        _, readable, writable = chain
        assert [bytes(part) for part in readable] == [content, b"more"]
        assert [len(part) for part in writable] == [3, 1]
        pair.ring.push([chain], [4])
        assert [tuple(done) for done in pair.driver.reap()] == [(number, 4)]
    assert not pair.ring.pop(10)


@both
def test_pop_takes_no_more_than_asked_for(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed)
    for _ in range(4):
        pair.add()
    assert len(pair.ring.pop(3)) == 3
    assert len(pair.ring.pop(3)) == 1


@both
def test_a_chain_of_many_buffers(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed, size=64)
    pair.add([bytes([index]) for index in range(30)], [1] * 30)
    ((_, readable, writable),) = pair.ring.pop(1)
    assert b"".join(readable) == bytes(range(30))
    assert len(writable) == 30


@both
@pytest.mark.parametrize("event_idx", [False, True])
@given(steps=st.lists(st.sampled_from(["add", "pop", "push", "sleep", "wake", "reap", "want"]), max_size=80))
def test_no_notification_that_is_needed_is_left_out(is_packed: bool, event_idx: bool, steps: list[str]) -> None:
    """Random traffic: a side that sleeps while there is work for it must have been notified."""
    pair = Pair(is_packed=is_packed, event_idx=event_idx)
    taken: deque[Chain] = deque()
    device_sleeps = driver_sleeps = False
    device_kicked = driver_called = False
    for step in steps:
        match step:
            case "add" if pair.driver.nr_free >= 2:
                pair.add()
                device_kicked |= pair.driver.needs_kick()
            case "pop":
                device_sleeps = False
                taken += pair.ring.pop(2)
            case "push" if taken:
                pair.ring.push([taken.popleft()], [4])
                driver_called |= pair.ring.needs_call()
            case "sleep":
                device_kicked = False
                device_sleeps = not pair.ring.sleep()
            case "wake":
                device_sleeps = False
                pair.ring.wake()
            case "reap":
                driver_sleeps = False
                pair.driver.reap()
            case "want":
                driver_called = False
                driver_sleeps = not pair.driver.want_call()
            case _:
                pass
        assert not (device_sleeps and pair.ring.has_work() and not device_kicked)
        if driver_sleeps and not driver_called:
            assert not pair.driver.reap()


@both
def test_how_many_are_available(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed, size=8)
    per_request = 2 if is_packed else 1  # of a packed ring, descriptors are counted
    assert pair.ring.nr_available == 0
    for _ in range(5):  # the ring comes round
        for number in range(1, 4):
            pair.add()
            assert pair.ring.nr_available == number * per_request
        chains = [*pair.ring.pop(1)]
        assert pair.ring.nr_available == 2 * per_request
        chains += pair.ring.pop(2)
        assert pair.ring.nr_available == 0
        pair.ring.push(chains, [4] * 3)
        pair.driver.reap()
    while pair.driver.nr_free >= 2:
        pair.add()
    assert pair.ring.nr_available == (8 if is_packed else 4), "all that there are"


@both
def test_notifications_are_suppressed(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed)
    pair.ring.wake()
    pair.add()
    pair.driver.needs_kick()
    for _ in range(6):
        chains = pair.ring.pop(1)
        pair.driver.reap()
        pair.driver.want_call()
        pair.add()
        assert not pair.driver.needs_kick(), "the device is awake"
        pair.ring.push(chains, [4])
        assert pair.ring.needs_call(), "the driver asked for this one"
        assert not pair.ring.needs_call(), "and for no other"


@both
def test_the_ring_goes_on_where_base_says(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed)
    for _ in range(5):
        pair.add()
        pair.ring.push(pair.ring.pop(1), [4])
        pair.driver.reap()
    pair.add([b"after"])
    kind = type(pair.ring)
    views = pair.views()
    again = kind(pair.size, *views, pair.memory, event_idx=True, base=pair.ring.base, fence=pair.fence, ordered=True)
    ((_, readable, _),) = again.pop(1)
    assert bytes(readable[0]) == b"after"


@both
def test_writable_addresses_are_kept_while_pages_are_logged(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed)
    pair.ring.logged = {}
    pair.add([b"x"], [3, 2])
    ((token, _, _),) = pair.ring.pop(1)
    assert [length for _, length in pair.ring.logged[token]] == [3, 2]


def take_all(pair: Pair, limit: int) -> list[tuple[Chain, bool]]:
    """Pop until there is nothing; return each chain, and whether it was too long."""
    found: list[tuple[Chain, bool]] = []
    while True:
        try:
            chains = pair.ring.pop(limit)
        except OversizedChainError as error:
            found.append((error.chain, True))
            continue
        if not chains:
            return found
        found += [(chain, False) for chain in chains]


@both
@given(
    shapes=st.lists(
        st.tuples(
            st.lists(st.sampled_from([1, 16, 1 << 17, (1 << 18) - 4096, (1 << 18) + 1]), max_size=4),
            st.lists(st.sampled_from([1, 512, 1 << 17, (1 << 18) - 4096, (1 << 18) + 1]), max_size=4),
            st.booleans(),
        ).filter(lambda shape: bool(shape[0] or shape[1])),
        max_size=6,
    ),
    repeats=st.sampled_from([1, 2, 20]),
    limit=st.sampled_from([1, 4, 64]),
    logged=st.booleans(),
    chain_bytes_max=st.sampled_from([1000, 1 << 18, 1 << 19, (1 << 20) + 5]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_chains_are_limited_in_bytes_however_they_are_made(
    *, is_packed: bool, shapes: list[tuple[list[int], list[int], bool]], repeats: int, limit: int, logged: bool,
    chain_bytes_max: int,
) -> None:  # fmt: skip
    """Descriptors that name the same memory, and more of it than there is; in tables, in several regions, logged."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("ring", "split", "packed"):
            patch.setattr(f"zonefs_emu.virtio.{module}.CHAIN_BYTES_MAX", chain_bytes_max)
        patch.setattr("zonefs_emu.virtio.packed._UNUSUAL", -1)
        pair = Pair(is_packed=is_packed, size=256)
        half = MEMORY_BYTES // 2
        memory = GuestMemory(
            [
                Region(GUEST_BASE, half, 0, pair.bytes[:half]),
                Region(GUEST_BASE + half, half, half, pair.bytes[half:]),
                # As much as one may be asked for, without there being as much.
                *(
                    Region(GUEST_BASE + MEMORY_BYTES * turn, MEMORY_BYTES, MEMORY_BYTES * turn, pair.bytes)
                    for turn in range(1, 3)
                ),
            ]
        )
        pair.ring.memory = memory
        if logged:
            pair.ring.logged = {}
        lengths: list[int] = []
        for readable, writable, indirect in shapes:
            buffers = [
                *((GUEST_BASE, length, False) for length in readable * repeats),
                *((GUEST_BASE, length, True) for length in writable * repeats),
            ]
            table = pair.heap.take(16 * len(buffers)) if indirect else None
            if pair.driver.nr_free < (1 if indirect else len(buffers)):
                break
            pair.driver.add(buffers, table)
            lengths.append(sum(length for _, length, _ in buffers))
        found = take_all(pair, limit)
        assert [was_oversized for _, was_oversized in found] == [length > chain_bytes_max for length in lengths]
        assert [sum(map(len, (*readable, *writable))) for (_, readable, writable), _ in found] == lengths
        for chain, _ in found:
            pair.ring.push([chain], [0])
        assert len(pair.driver.reap()) == len(lengths)


@both
def test_lengths_whose_sum_passes_32_bits(is_packed: bool) -> None:
    pair = Pair(is_packed=is_packed, size=256)
    fd = os.memfd_create("huge")  # sparse, and never touched
    os.ftruncate(fd, (1 << 32) - 4096)
    huge = memoryview(mmap.mmap(fd, (1 << 32) - 4096))
    os.close(fd)
    pair.ring.memory = GuestMemory([Region(GUEST_BASE, len(huge), 0, huge)])
    eighth = CHAIN_BYTES_MAX // 8
    for writable in (
        [len(huge), 4095, 1, 1],
        [len(huge)] * 200,
        [len(huge) - 1],
        [TRANSFER_BYTES_MAX, 1],
        [CHAIN_BYTES_MAX - 16],
        [CHAIN_BYTES_MAX - 15],
        *([eighth + more] * count for more in (-8200, -1, 0, 1, 100) for count in (6, 7, 8)),
    ):
        pair.driver.add([(GUEST_BASE, 16, False), *((GUEST_BASE, length, True) for length in writable)], None)
        ((chain, was_oversized),) = take_all(pair, 64)
        assert was_oversized == (sum(writable) + 16 > CHAIN_BYTES_MAX)
        pair.ring.push([chain], [0])
        assert len(pair.driver.reap()) == 1


@both
@given(data=st.data())
def test_garbage_in_a_ring_breaks_it_and_nothing_else(is_packed: bool, data: st.DataObject) -> None:
    """Any bytes in any ring: an answer or BrokenRingError, in bounded time, and only guest memory is handed out."""
    pair = Pair(is_packed=is_packed, size=data.draw(st.sampled_from([1, 2, 8])))
    for _ in range(data.draw(st.integers(0, 3))):
        if pair.driver.nr_free >= 2:
            pair.add(indirect=data.draw(st.booleans()))
    interesting = st.one_of(
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 4, 7, 0x80, 0xFF]),
    )
    for area in (*pair.areas, None):
        start, end = (area.offset, area.offset + area.length) if area else (0, 600)
        for _ in range(data.draw(st.integers(0, 12))):
            pair.bytes[data.draw(st.integers(start, end - 1))] = data.draw(interesting)
    taken: list[Chain] = []
    with suppress(BrokenRingError):  # what was handed out before the break is looked at too
        for _ in range(6):
            taken += pair.ring.pop(4)
    for _, readable, writable in taken:
        assert all(part.obj is pair.bytes.obj for part in (*readable, *writable))
        assert all(len(part) for part in (*readable, *writable))
        for part in writable:
            part[0] = 1


@pytest.mark.parametrize(
    ("size", "power_of_two", "good"),
    [
        (1, True, True),
        (256, True, True),
        (32768, True, True),
        (0, True, False),
        (3, True, False),
        (3, False, True),
        (65536, True, False),
        (32769, False, False),
        (-1, False, False),
    ],
)
def test_queue_sizes(size: int, power_of_two: bool, good: bool) -> None:
    if good:
        check_size(size, power_of_two=power_of_two)
    else:
        with pytest.raises(BrokenRingError):
            check_size(size, power_of_two=power_of_two)
