"""Mode pages: what MODE SENSE shows and MODE SELECT may change.

May not know: devices, zones.
Invariants: only WCE (write cache) and D_SENSE (descriptor sense) can be changed; nothing is saved; a refused MODE
SELECT has changed nothing.

Sources: SPC-4 (MODE SENSE, MODE SELECT, Control, Informational Exceptions), SBC-3 (Read-Write Error Recovery, Caching).
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF
ERROR_RECOVERY: Final = 0x01
CACHING: Final = 0x08
CONTROL: Final = 0x0A
INFORMATIONAL_EXCEPTIONS: Final = 0x1C

_WCE: Final = 0x04
_D_SENSE: Final = 0x04
_WP: Final = 0x80
_DPOFUA: Final = 0x10
_LONGLBA: Final = 0x01


class PageControl(IntEnum):
    """The PC field of MODE SENSE."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


def _page(code: int, body: str) -> bytes:
    """Build a page; *body* is hexadecimal, from byte 2 on."""
    data = bytes.fromhex(body)
    return bytes((code, len(data))) + data


_DEFAULTS: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        ERROR_RECOVERY: _page(ERROR_RECOVERY, "00 00 00 00 00 00 00 00 0000"),
        # WCE: what is written is stable after SYNCHRONIZE CACHE, not before.
        CACHING: _page(CACHING, "04 00 0000 0000 0000 0000 00 00 0000 00 000000"),
        # GLTSD: no log parameters are saved. Queue algorithm 1: commands may be reordered. Busy time-out: unlimited.
        CONTROL: _page(CONTROL, "02 10 00 00 0000 ffff 0000"),
        # DEXCPT: no informational exceptions are reported, because the disk has no health to report on.
        INFORMATIONAL_EXCEPTIONS: _page(INFORMATIONAL_EXCEPTIONS, "08 00 00000000 00000000"),
    }
)
#: (page, byte of the page) -> bits that MODE SELECT may change.
_CHANGEABLE: Final[Mapping[tuple[int, int], int]] = MappingProxyType({(CACHING, 2): _WCE, (CONTROL, 2): _D_SENSE})


class ModeParameterError(Exception):
    """A parameter list breaks a rule. *field* is the number of its first wrong byte, or None if its length is wrong."""

    def __init__(self, field: int | None) -> None:
        super().__init__(field)
        self.field = field


class ModePages:
    """The current mode parameters of one logical unit of *nr_blocks* blocks of *block_bytes*.

    *readonly*: MODE SENSE shows that the medium is write protected (WP).
    """

    __slots__ = ("_block_bytes", "_nr_blocks", "_pages", "_readonly", "descriptor_sense", "write_cache")

    def __init__(self, *, nr_blocks: int, block_bytes: int, readonly: bool) -> None:
        self._nr_blocks = nr_blocks
        self._block_bytes = block_bytes
        self._readonly = readonly
        self._pages: dict[int, bytes] = {}
        #: WCE and D_SENSE of the current pages. They are decoded once, because the write path tests the first.
        self.write_cache = True
        self.descriptor_sense = False
        self.reset()

    def reset(self) -> None:
        """Go back to the defaults, as a logical unit reset does."""
        self._adopt(dict(_DEFAULTS))

    def _adopt(self, pages: dict[int, bytes]) -> None:
        self._pages = pages
        self.write_cache = bool(pages[CACHING][2] & _WCE)
        self.descriptor_sense = bool(pages[CONTROL][2] & _D_SENSE)

    # -- MODE SENSE -------------------------------------------------------------------------------------------

    def sense_6(self, page: int, subpage: int, control: PageControl, *, descriptors: bool) -> bytes | None:
        """Return MODE SENSE(6) parameter data, or None if there is no such page.

        *descriptors*: with a block descriptor, because DBD is 0.
        """
        pages = self._selected(page, subpage, control)
        if pages is None:
            return None
        block = self._block_descriptor() if descriptors else b""
        return bytes((3 + len(block) + len(pages), 0, self._device_specific, len(block))) + block + pages

    def sense_10(
        self, page: int, subpage: int, control: PageControl, *, descriptors: bool, long_lba: bool
    ) -> bytes | None:
        """Return MODE SENSE(10) parameter data, or None if there is no such page.

        *descriptors*: with a block descriptor, because DBD is 0. It has 16 bytes with *long_lba* (LLBAA), else 8.
        """
        pages = self._selected(page, subpage, control)
        if pages is None:
            return None
        block = b""
        if descriptors:
            block = struct.pack(">QII", self._nr_blocks, 0, self._block_bytes) if long_lba else self._block_descriptor()
        header = struct.pack(
            ">HBBBxH",
            6 + len(block) + len(pages),
            0,
            self._device_specific,
            _LONGLBA if len(block) == 16 else 0,
            len(block),
        )
        return header + block + pages

    @property
    def _device_specific(self) -> int:
        return _DPOFUA | (_WP if self._readonly else 0)

    def _block_descriptor(self) -> bytes:
        return struct.pack(">II", min(self._nr_blocks, 0xFFFFFFFF), self._block_bytes)

    def _selected(self, page: int, subpage: int, control: PageControl) -> bytes | None:
        """Return the pages with code *page*, None if there is none. No page has subpages."""
        if subpage not in (0, ALL_SUBPAGES):
            return None
        if page == ALL_PAGES:
            return b"".join(self._one(code, control) for code in self._pages)
        return self._one(page, control) if page in self._pages else None

    def _one(self, code: int, control: PageControl) -> bytes:
        match control:
            case PageControl.CHANGEABLE:
                data = bytearray(len(_DEFAULTS[code]))
                data[:2] = _DEFAULTS[code][:2]
                for (page, offset), bits in _CHANGEABLE.items():
                    if page == code:
                        data[offset] = bits
                return bytes(data)
            case PageControl.DEFAULT:
                return _DEFAULTS[code]
            case _:
                return self._pages[code]

    # -- MODE SELECT ------------------------------------------------------------------------------------------

    def select(self, data: bytes, *, header_bytes: int) -> None:
        """Change the current parameters by the parameter list *data*; its header has 4 (MODE SELECT(6)) or 8 bytes.

        Raises:
            ModeParameterError: the header, the block descriptor or a page is cut short, the block descriptor would
                change the medium, or a page is unknown, has another length, or changes a field that cannot be changed.
                The pages are then as before.
        """
        if len(data) < header_bytes:
            raise ModeParameterError(None)
        descriptor_bytes = data[3] if header_bytes == 4 else int.from_bytes(data[6:8], "big")
        offset = header_bytes + descriptor_bytes
        if offset > len(data):
            raise ModeParameterError(None)
        self._check_block_descriptor(data[header_bytes:offset], header_bytes)
        pages = dict(self._pages)
        while offset < len(data):
            offset += self._select_page(data, offset, pages)
        self._adopt(pages)

    def _check_block_descriptor(self, descriptor: bytes, offset: int) -> None:
        """Refuse a change of the number or size of blocks. A number of blocks of 0 means "as it is" (SPC-4)."""
        match len(descriptor):
            case 0:
                return
            case 8:
                nr_blocks, block_bytes = struct.unpack(">II", descriptor)
                unchanged = nr_blocks in (0, min(self._nr_blocks, 0xFFFFFFFF))
                block_bytes &= 0xFFFFFF
            case 16:
                nr_blocks, _, block_bytes = struct.unpack(">QII", descriptor)
                unchanged = nr_blocks in (0, self._nr_blocks)
            case _:
                raise ModeParameterError(3 if offset == 4 else 6)
        if not unchanged or block_bytes != self._block_bytes:
            raise ModeParameterError(offset)

    def _select_page(self, data: bytes, offset: int, pages: dict[int, bytes]) -> int:
        """Check the page at *offset*, put it into *pages* and return its length."""
        code = data[offset] & 0x3F
        current = pages.get(code)
        # SPF, which announces a subpage, must be 0, because there are none. PS is reserved in MODE SELECT, and ignored.
        if current is None or data[offset] & 0x40:
            raise ModeParameterError(offset)
        page = data[offset : offset + len(current)]
        if len(page) < len(current):
            raise ModeParameterError(None)
        if page[1] != current[1]:
            raise ModeParameterError(offset + 1)
        for index in range(2, len(current)):
            if (page[index] ^ current[index]) & ~_CHANGEABLE.get((code, index), 0):
                raise ModeParameterError(offset + index)
        pages[code] = current[:2] + page[2:]
        return len(current)
