from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import PeerError
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory, Region


def region(start: int, size: int, user: int = 0) -> Region:
    return Region(start, size, user or start + (1 << 40), memoryview(bytearray(size)))


def test_a_range_inside_a_region_is_one_slice_of_it() -> None:
    low = region(0x1000, 100)
    memory = GuestMemory([low])
    (part,) = memory.slices(0x1000 + 10, 20)
    part[:] = bytes(range(20))
    assert bytes(low.view[10:30]) == bytes(range(20))
    assert memory.read(0x1000 + 10, 20) == bytes(range(20))


def test_a_range_over_neighbours_is_split_at_their_border() -> None:
    memory = GuestMemory([region(100, 33), region(133, 17), region(150, 50)])
    assert [len(part) for part in memory.slices(130, 25)] == [3, 17, 5]


@pytest.mark.parametrize(
    ("address", "length"),
    [(99, 1), (99, 10), (130, 10), (1 << 63, 8), (100, 0), (100, -1), (100, 1 << 40), (133, 1), (200, 1), (249, 2)],
)
def test_what_is_not_all_memory_is_refused(address: int, length: int) -> None:
    memory = GuestMemory([region(100, 33), region(200 + 1, 49)])
    with pytest.raises(BadAddressError):
        memory.slices(address, length)


@pytest.mark.parametrize(("start", "size"), [(110, 5), (90, 11), (132, 1), (0, 200)])
def test_regions_must_not_overlap(start: int, size: int) -> None:
    with pytest.raises(PeerError, match="overlaps"):
        GuestMemory([region(100, 33), region(start, size)])


def test_empty_memory_has_nothing() -> None:
    with pytest.raises(BadAddressError):
        GuestMemory().slices(0, 1)


def test_rings_lie_in_one_region_at_user_addresses() -> None:
    memory = GuestMemory([region(0, 64, user=1000), region(64, 64, user=5000)])
    assert len(memory.at_user_address(5010, 54)) == 54
    assert memory.guest_address_of_user(5010, 54) == 74
    for address, length in ((1060, 10), (999, 5), (5010, 55)):
        with pytest.raises(BadAddressError):
            memory.at_user_address(address, length)


@given(
    cuts=st.lists(st.integers(1, 199), max_size=6, unique=True),
    address=st.integers(-10, 220),
    length=st.integers(-1, 230),
)
def test_slices_are_the_bytes_of_the_range(cuts: list[int], address: int, length: int) -> None:
    """Memory cut anywhere reads like memory that is not cut."""
    whole = bytes(range(200))
    borders = [0, *sorted(cuts), 200]
    memory = GuestMemory(
        Region(start, end - start, start, memoryview(bytearray(whole[start:end]))) for start, end in pairwise(borders)
    )
    if address >= 0 and length > 0 and address + length <= 200:
        assert b"".join(memory.slices(address, length)) == whole[address : address + length]
    else:
        with pytest.raises(BadAddressError):
            memory.slices(address, length)
