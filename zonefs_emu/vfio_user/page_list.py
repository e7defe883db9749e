"""Where the data of a command is: its PRP entries, as slices of guest memory.

Entry 1 may begin anywhere in a page; every further page is whole. Entry 2 is the second page or, if there are more, the
address of a list of pages, whose last entry leads on to another list if it is not enough.

The length of the data bounds all loops, and the caller has compared it with the longest transfer (MDTS) before. Lists
are read once, because a guest may change them meanwhile.

Source: NVM Express Base Specification 2.0, "Physical Region Page Entry and List".
"""

import struct
from typing import Final

from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme.identify import PAGE_SHIFT
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.virtio.memory import BadAddressError, GuestMemory

PAGE_BYTES: Final = 1 << PAGE_SHIFT
_PAGE_MASK: Final = PAGE_BYTES - 1
_ENTRY_BYTES: Final = 8


def slices(memory: GuestMemory, prp1: int, prp2: int, nr_bytes: int) -> list[memoryview]:
    """Return the *nr_bytes* that the entries *prp1* and *prp2* lead to; adjacent pages are one slice.

    Raises:
        RefusedError: NVME_PRP if entry 1 is no multiple of 4, a further page no multiple of 4096, or a list no multiple
            of 8; NVME_MEMORY if a page or a list does not lie in *memory*.
    """
    if not nr_bytes:
        return []
    if prp1 & 3:
        raise RefusedError(NvmeRule.NVME_PRP, f"PRP entry 1 is {prp1:#x}")
    try:
        first = PAGE_BYTES - (prp1 & _PAGE_MASK)
        if nr_bytes <= first:
            return memory.slices(prp1, nr_bytes)
        left = nr_bytes - first
        pages = [prp2] if left <= PAGE_BYTES else _list(memory, prp2, -(-left // PAGE_BYTES))
        return _joined(memory, prp1, first, pages, left)
    except BadAddressError as error:
        raise RefusedError(NvmeRule.NVME_MEMORY, str(error)) from None


def _list(memory: GuestMemory, address: int, nr_pages: int) -> list[int]:
    """Return the addresses of *nr_pages* pages, from the list at *address* and those that it leads to."""
    pages: list[int] = []
    while True:
        if address & (_ENTRY_BYTES - 1):
            raise RefusedError(NvmeRule.NVME_PRP, f"a PRP list is at {address:#x}")
        room = (PAGE_BYTES - (address & _PAGE_MASK)) // _ENTRY_BYTES
        left = nr_pages - len(pages)
        count = min(left, room)
        found = struct.unpack(f"<{count}Q", memory.read(address, count * _ENTRY_BYTES))
        if left <= room:
            pages += found
            return pages
        # The last entry of a full list is the address of the next list. It begins a page, so no list is empty.
        pages += found[:-1]
        address = found[-1]
        if address & _PAGE_MASK:
            raise RefusedError(NvmeRule.NVME_PRP, f"a PRP list goes on at {address:#x}")


def _joined(memory: GuestMemory, start: int, length: int, pages: list[int], left: int) -> list[memoryview]:
    found: list[memoryview] = []
    for page in pages:
        if page & _PAGE_MASK:
            raise RefusedError(NvmeRule.NVME_PRP, f"a page of the data is at {page:#x}")
        part = min(left, PAGE_BYTES)
        left -= part
        if page == start + length:
            length += part
        else:
            found += memory.slices(start, length)
            start, length = page, part
    found += memory.slices(start, length)
    return found
