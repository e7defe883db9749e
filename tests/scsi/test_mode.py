import pytest

from tests.scsi.disks import from_hex
from zonefs_emu.scsi.mode import ALL_PAGES, ModePages, ModeParameterError, PageControl

CACHING_OFF = bytes.fromhex("08 12 00 00 0000 0000 0000 0000 00 00 0000 00 000000")
DESCRIPTOR_SENSE = bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")


def new_pages(*, readonly: bool = False, nr_blocks: int = 0x1234) -> ModePages:
    return ModePages(nr_blocks=nr_blocks, block_bytes=512, readonly=readonly)


def test_caching_page_as_linux_asks_for_it() -> None:
    assert new_pages().sense_6(0x08, 0, PageControl.CURRENT, descriptors=True) == from_hex("""
        1f            #  0 mode data length: 31 bytes follow
        00            #  1 medium type
        10            #  2 not write protected, DPO and FUA supported
        08            #  3 block descriptor length
        00 00 12 34   #  4 number of blocks
        00 00 02 00   #  8 block length
        08            # 12 page 08h
        12            # 13 18 bytes follow
        04            # 14 WCE
        00            # 15 retention priorities
        00 00 00 00 00 00 00 00   # 16 prefetch
        00 00 00 00 00 00 00 00   # 24 flags, segments
    """)


def test_ten_byte_header_with_long_block_descriptor() -> None:
    pages = new_pages(nr_blocks=1 << 33, readonly=True)
    assert pages.sense_10(0x1C, 0, PageControl.CURRENT, descriptors=True, long_lba=True) == from_hex("""
        00 22                     #  0 mode data length: 34 bytes follow
        00                        #  2 medium type
        90                        #  3 write protected, DPO and FUA supported
        01                        #  4 LONGLBA
        00                        #  5 reserved
        00 10                     #  6 block descriptor length
        00 00 00 02 00 00 00 00   #  8 number of blocks
        00 00 00 00               # 16 reserved
        00 00 02 00               # 20 block length
        1c 0a 08 00               # 24 page 1Ch, DEXCPT
        00 00 00 00 00 00 00 00   # 28 interval timer, report count
    """)


def test_short_block_descriptor_saturates() -> None:
    data = new_pages(nr_blocks=1 << 33).sense_10(0x1C, 0, PageControl.CURRENT, descriptors=True, long_lba=False)
    assert data is not None
    assert data[8:12] == b"\xff\xff\xff\xff"


def test_all_pages_are_ascending_and_well_formed() -> None:
    data = new_pages().sense_6(ALL_PAGES, 0xFF, PageControl.CURRENT, descriptors=False)
    assert data is not None
    assert data[0] == len(data) - 1
    codes = []
    offset = 4
    while offset < len(data):
        codes.append(data[offset])
        offset += 2 + data[offset + 1]
    assert offset == len(data)
    assert codes == [0x01, 0x08, 0x0A, 0x1C]


def test_only_the_write_cache_and_the_sense_format_can_be_changed() -> None:
    data = new_pages().sense_6(ALL_PAGES, 0, PageControl.CHANGEABLE, descriptors=False)
    assert data is not None
    assert data[4:] == from_hex("""
        01 0a 00000000000000000000                   # error recovery: nothing
        08 12 04 00 0000000000000000000000000000 0000   # caching: WCE
        0a 0a 04 00 0000000000000000                 # control: D_SENSE
        1c 0a 00000000000000000000                   # informational exceptions: nothing
    """)


@pytest.mark.parametrize(("page", "subpage"), [(0x0A, 0x05), (0x02, 0), (0x3F, 0x01)])
def test_pages_that_are_not_there(page: int, subpage: int) -> None:
    """0Ah/05h is what Linux probes; no page has subpages."""
    assert new_pages().sense_6(page, subpage, PageControl.CURRENT, descriptors=True) is None
    assert new_pages().sense_10(page, subpage, PageControl.CURRENT, descriptors=True, long_lba=False) is None


def test_select_changes_what_can_be_changed_and_reset_undoes_it() -> None:
    pages = new_pages()
    pages.select(bytes(8) + CACHING_OFF + DESCRIPTOR_SENSE, header_bytes=8)
    assert (pages.write_cache, pages.descriptor_sense) == (False, True)
    current = pages.sense_6(0x08, 0, PageControl.CURRENT, descriptors=False)
    default = pages.sense_6(0x08, 0, PageControl.DEFAULT, descriptors=False)
    assert current is not None
    assert default is not None
    assert (current[6], default[6]) == (0x00, 0x04)
    pages.reset()
    assert (pages.write_cache, pages.descriptor_sense) == (True, False)


@pytest.mark.parametrize("descriptor", ["00001234 00000200", "00000000 00000200"])
def test_select_takes_a_block_descriptor_that_changes_nothing(descriptor: str) -> None:
    pages = new_pages()
    pages.select(bytes.fromhex("000000 08" + descriptor) + CACHING_OFF, header_bytes=4)
    assert not pages.write_cache


def test_select_takes_a_long_block_descriptor_that_changes_nothing() -> None:
    pages = new_pages()
    header = bytes.fromhex("0000 00 00 01 00 0010")
    pages.select(header + bytes.fromhex("0000000000001234 00000000 00000200") + CACHING_OFF, header_bytes=8)
    assert not pages.write_cache


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\0\0\0", None),  # shorter than the header
        (bytes(4) + CACHING_OFF[:-1], None),  # page cut short
        (bytes.fromhex("000000 08 0000"), None),  # descriptor cut short
        (bytes.fromhex("000000 07") + bytes(7), 3),  # descriptor of no known length
        (bytes.fromhex("000000 08 00001235 00000200"), 4),  # another capacity
        (bytes.fromhex("000000 08 00000000 00001000"), 4),  # another block size
        (bytes(4) + b"\x02\x0e" + bytes(14), 4),  # unknown page
        (bytes(4) + b"\x48" + CACHING_OFF[1:], 4),  # SPF
        (bytes(4) + b"\x08\x11" + CACHING_OFF[2:], 5),  # wrong page length
        (bytes(4) + CACHING_OFF[:2] + b"\x05" + CACHING_OFF[3:], 6),  # RCD cannot be changed
        (bytes(4) + CACHING_OFF + b"\x1c\x0a\x00" + bytes(9), 26),  # the second page is wrong
    ],
)
def test_a_refused_select_changes_nothing(data: bytes, field: int | None) -> None:
    pages = new_pages()
    before = pages.sense_6(ALL_PAGES, 0, PageControl.CURRENT, descriptors=True)
    with pytest.raises(ModeParameterError) as caught:
        pages.select(data, header_bytes=4)
    assert caught.value.field == field
    assert pages.sense_6(ALL_PAGES, 0, PageControl.CURRENT, descriptors=True) == before
    assert pages.write_cache
