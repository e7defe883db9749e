"""PRP entries and lists: what they lead to, and what is refused."""

import struct

import pytest
from hypothesis import given, strategies as st

from tests.memory_budget import memory_budget
from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme.identify import MDTS_BYTES
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.vfio_user.page_list import PAGE_BYTES, slices
from zonefs_emu.virtio.memory import GuestMemory, Region

START = 0x100000
NR_PAGES = 600
DATA = bytearray(NR_PAGES * PAGE_BYTES)
MEMORY = GuestMemory([Region(START, len(DATA), 0, memoryview(DATA))])


def page(number: int) -> int:
    return START + number * PAGE_BYTES


def store(address: int, entries: list[int]) -> int:
    struct.pack_into(f"<{len(entries)}Q", DATA, address - START, *entries)
    return address


def places(found: list[memoryview]) -> list[tuple[int, int]]:
    """Return (guest address, length) of each slice, found by what is stored through it."""
    result = []
    for view in found:
        DATA[:] = bytes(len(DATA))
        view[0] = 255
        result.append((START + DATA.index(b"\xff"), len(view)))
    return result


def test_one_page_or_less() -> None:
    assert slices(MEMORY, page(1), 0, 0) == []
    assert places(slices(MEMORY, page(1) + 512, 0, 512)) == [(page(1) + 512, 512)]
    assert places(slices(MEMORY, page(1), 0xBAD, PAGE_BYTES)) == [(page(1), PAGE_BYTES)]


def test_two_pages() -> None:
    assert places(slices(MEMORY, page(1) + 4092, page(7), PAGE_BYTES + 4)) == [(page(1) + 4092, 4), (page(7), 4096)]
    assert places(slices(MEMORY, page(1), page(2), 2 * PAGE_BYTES)) == [(page(1), 2 * PAGE_BYTES)], "they are adjacent"


def test_a_list_in_any_order_and_adjacent_pages_are_one() -> None:
    pages = [page(number) for number in (11, 12, 5, 6, 20)]
    where = store(page(2) + 64, pages)
    found = places(slices(MEMORY, page(10) + 1024, where, 5 * PAGE_BYTES))
    assert found == [(page(10) + 1024, 3072 + 8192), (page(5), 8192), (page(20), 1024)]


def test_a_list_goes_on_in_another_page() -> None:
    """The last entry of a page leads on, if more are needed than it has."""
    pages = [page(100 + 2 * number) for number in range(128)]
    store(page(2) + PAGE_BYTES - 16, [pages[0], page(3)])
    store(page(3), pages[1:])
    found = slices(MEMORY, page(97), page(2) + PAGE_BYTES - 16, 129 * PAGE_BYTES)
    for address, view in zip([page(97), *pages], found, strict=True):
        view[:8] = address.to_bytes(8, "little")
        assert MEMORY.read(address, 8) == address.to_bytes(8, "little")
    store(page(2) + PAGE_BYTES - 16, [pages[0], pages[1]])
    assert len(slices(MEMORY, page(97), page(2) + PAGE_BYTES - 16, 3 * PAGE_BYTES)) == 3, "exactly what the page has"


@pytest.mark.parametrize(
    ("prp1", "prp2", "nr_bytes", "rule"),
    [
        (page(1) + 2, 0, 512, NvmeRule.NVME_PRP),
        (page(1), page(2) + 512, 8192, NvmeRule.NVME_PRP),
        (page(1), page(2) + 4, 12288, NvmeRule.NVME_PRP),
        (page(1), store(page(2), [page(3) + 4, page(4)]), 12288, NvmeRule.NVME_PRP),
        (0, 0, 512, NvmeRule.NVME_MEMORY),
        (page(NR_PAGES), 0, 512, NvmeRule.NVME_MEMORY),
        (page(1), page(NR_PAGES), 8192, NvmeRule.NVME_MEMORY),
        (page(1), page(NR_PAGES) - 8, 3 * 8192, NvmeRule.NVME_PRP),
        (page(1), (1 << 64) - 4096, 12288, NvmeRule.NVME_MEMORY),
    ],
)
def test_what_is_refused(prp1: int, prp2: int, nr_bytes: int, rule: NvmeRule) -> None:
    store(page(2), [page(3) + 4, page(4)])
    store(page(NR_PAGES) - 8, [3])
    with pytest.raises(RefusedError) as caught:
        slices(MEMORY, prp1, prp2, nr_bytes)
    assert caught.value.rule is rule


ADDRESSES = (
    st.integers(0, (1 << 64) - 1)
    | st.integers(START - 8192, page(NR_PAGES) + 8192)
    | st.integers(START >> 12, page(NR_PAGES) >> 12).map(lambda number: number << 12)
)


@given(prp1=ADDRESSES, prp2=ADDRESSES, nr_bytes=st.integers(0, MDTS_BYTES), entries=st.lists(ADDRESSES, max_size=600))
def test_any_list_is_as_long_as_the_data_or_refused(prp1: int, prp2: int, nr_bytes: int, entries: list[int]) -> None:
    at = prp2 & ~7
    if START <= at < page(NR_PAGES - 2):
        store(at, entries)
    try:
        with memory_budget(64 << 10):
            found = slices(MEMORY, prp1, prp2, nr_bytes)
    except RefusedError as refused:
        assert refused.rule in {NvmeRule.NVME_PRP, NvmeRule.NVME_MEMORY}  # noqa: PT017  (both outcomes are right)
    else:
        assert sum(map(len, found)) == nr_bytes
        assert len(found) <= MDTS_BYTES // PAGE_BYTES + 1
