import pytest

from tests.scsi.disks import GAP_IN_RUNT, GAPS, MIXED, MIXED_4K, RUNT, ZONE, from_hex
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.scsi.inquiry import (
    Identity,
    has_gaps,
    read_capacity_10,
    read_capacity_16,
    report_luns,
    standard_inquiry,
    vpd_pages,
)

IDENTITY = Identity(serial="Z0001")


def test_standard_inquiry() -> None:
    head = from_hex("""
        14                        #  0 qualifier 0, type 14h: host-managed zoned block device
        00                        #  1 not removable
        06                        #  2 version: SPC-4
        12                        #  3 HISUP, response data format 2
        5b                        #  4 additional length: 96 bytes in all
        00 00                     #  5 no SCC, no protection; no multi port
        02                        #  7 CMDQUE
        5a 4e 46 53 45 4d 55 20   #  8 "ZNFSEMU "
        5a 4f 4e 45 44 20 44 49   # 16 "ZONED DI"
        53 4b 20 20 20 20 20 20   # 24 "SK      "
        30 30 30 31               # 32 "0001"
    """)
    versions = from_hex("""
        00 a0   # 58 SAM-5
        04 60   # 60 SPC-4
        04 c0   # 62 SBC-3
        06 20   # 64 ZBC
    """)
    data = standard_inquiry(IDENTITY)
    assert data[:36] == head
    assert data[36:58] == bytes(22)
    assert data[58:66] == versions
    assert data[66:] == bytes(30)


def test_supported_pages() -> None:
    pages = vpd_pages(IDENTITY, MIXED)
    assert pages[0x00] == from_hex("""
        14                     # 0 type
        00                     # 1 page 00h
        00 07                  # 2 length
        00 80 83 b0 b1 b2 b6   # 4 supported pages, ascending
    """)
    assert set(pages) == set(pages[0x00][4:])


def test_unit_serial_number() -> None:
    assert vpd_pages(IDENTITY, MIXED)[0x80] == from_hex("""
        14 80 00 05      # 0 page 80h, 5 bytes
        5a 30 30 30 31   # 4 "Z0001"
    """)


def test_device_identification() -> None:
    page = vpd_pages(IDENTITY, MIXED)[0x83]
    assert page[:8] == from_hex("""
        14 83 00 2d   # 0 page 83h, 45 bytes
        02            # 4 code set ASCII
        01            # 5 logical unit, T10 vendor identification
        00            # 6 reserved
        1d            # 7 29 bytes
    """)
    assert page[8:37] == b"ZNFSEMU ZONED DISK      Z0001"
    assert page[37:41] == from_hex("""
        01   # 37 code set binary
        03   # 38 logical unit, NAA
        00   # 39 reserved
        08   # 40 8 bytes
    """)
    assert page[41] >> 4 == 0x3  # locally assigned
    assert len(page) == 49


def test_identifier_follows_from_the_serial_number() -> None:
    assert Identity(serial="a").naa == Identity(serial="a", vendor="x").naa
    assert Identity(serial="a").naa != Identity(serial="b").naa


@pytest.mark.parametrize("serial", ["", "x" * 253, "tab\t", "größe"])
def test_serial_numbers_that_scsi_does_not_allow(serial: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Identity(serial=serial)


def test_longest_serial_number_fits_everywhere() -> None:
    pages = vpd_pages(Identity(serial="x" * 252), MIXED)
    assert len(pages[0x80]) == 256
    assert pages[0x83][7] == 255


def test_block_limits() -> None:
    assert vpd_pages(IDENTITY, RUNT)[0xB0] == from_hex("""
        14 b0 00 3c   #  0 page B0h, 60 bytes
        00            #  4 WSNZ
        00            #  5 no COMPARE AND WRITE
        00 08         #  6 optimal transfer granularity: 8 blocks, the write granularity
        00 01 00 00   #  8 maximum transfer: 65,536 blocks of 512 bytes
        00 00 00 00   # 12 optimal transfer length: not reported
        00 00 00 00   # 16 prefetch
        00 00 00 00   # 20 UNMAP: none
    """) + bytes(40)


def test_block_limits_count_blocks() -> None:
    page = vpd_pages(IDENTITY, MIXED_4K)[0xB0]
    assert (page[6:8], page[8:12]) == (b"\0\1", (8192).to_bytes(4, "big"))


def test_block_device_characteristics() -> None:
    assert vpd_pages(IDENTITY, MIXED)[0xB1] == from_hex("""
        14 b1 00 3c   # 0 page B1h, 60 bytes
        00 01         # 4 medium rotation rate: not rotating
        00 00         # 6 product type, form factor
        02            # 8 ZONED 00b (the type says it), FUAB
    """) + bytes(55)


def test_logical_block_provisioning() -> None:
    assert vpd_pages(IDENTITY, MIXED)[0xB2] == bytes.fromhex("14 b2 0004 00 00 00 00")


def test_zoned_characteristics() -> None:
    assert vpd_pages(IDENTITY, MIXED)[0xB6] == from_hex("""
        14 b6 00 3c   #  0 page B6h, 60 bytes
        01            #  4 URSWRZ
        00 00 00      #  5 reserved
        ff ff ff ff   #  8 optimal open zones: not reported
        ff ff ff ff   # 12 optimal non-sequentially written zones: not reported
        00 00 00 03   # 16 at most 3 open zones
        00 00 00      # 20 reserved
        01            # 23 zones of constant length
    """) + bytes(40)


def test_zoned_characteristics_with_gap_zones() -> None:
    assert vpd_pages(IDENTITY, GAPS)[0xB6][16:32] == from_hex("""
        ff ff ff ff               # 16 no limit of open zones
        00 00 00                  # 20 reserved
        08                        # 23 zones start at constant offsets
        00 00 00 00 00 00 08 00   # 24 of 2048 blocks
    """)


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (MIXED, False),
        (GAPS, True),
        (GAP_IN_RUNT, True),
        (Geometry(size=ZONE + 512, zone_size=ZONE, zone_capacity=1024, conventional=((0, 1),)), False),
        (Geometry(size=2 * ZONE, zone_size=ZONE, zone_capacity=1024, conventional=((0, 2),)), False),
    ],
)
def test_has_gaps(geometry: Geometry, expected: bool) -> None:
    assert has_gaps(geometry) is expected


def test_read_capacity() -> None:
    assert read_capacity_16(RUNT) == from_hex("""
        00 00 00 00 00 00 1b ff   #  0 last LBA: 3 zones of 2048 blocks and a runt of 1024
        00 00 02 00               #  8 512-byte blocks
        10                        # 12 RC_BASIS 01b: the capacity is the whole device's
        03                        # 13 8 logical blocks in a physical one: the write granularity
        00 00                     # 14 LBPME 0, lowest aligned 0
    """) + bytes(16)
    assert read_capacity_10(RUNT) == bytes.fromhex("00001bff 00000200")
    assert read_capacity_10(MIXED_4K) == bytes.fromhex("000007ff 00001000")
    assert read_capacity_16(MIXED_4K)[8:14] == bytes.fromhex("00001000 10 00")


def test_read_capacity_10_of_a_large_disk_asks_for_the_other_command() -> None:
    large = Geometry(size=1 << 33, zone_size=1 << 20, zone_capacity=1 << 20)
    assert read_capacity_10(large)[:4] == b"\xff\xff\xff\xff"
    assert read_capacity_16(large)[:8] == ((1 << 33) - 1).to_bytes(8, "big")


def test_report_luns() -> None:
    assert report_luns(0) == bytes.fromhex("00000008 00000000 0000000000000000")
    assert report_luns(1) == bytes.fromhex("00000008 00000000 c101000000000000")
    assert report_luns(2) == bytes.fromhex("00000010 00000000 0000000000000000 c101000000000000")
    assert report_luns(3) is None
