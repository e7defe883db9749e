import pytest

from tests.scsi.disks import from_hex
from zonefs_emu.errors import Status
from zonefs_emu.scsi import sense
from zonefs_emu.scsi.rules import ScsiRule
from zonefs_emu.scsi.sense import SENSE_OF_RULE, SENSE_OF_STATUS, Sense, SenseKey, encode


def test_every_status_has_its_sense() -> None:
    assert set(SENSE_OF_STATUS) == set(Status)
    assert [status for status, code in SENSE_OF_STATUS.items() if code.key == SenseKey.NO_SENSE] == [Status.OK]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.OUT_OF_RANGE, (0x5, 0x21, 0x00)),
        (Status.UNALIGNED_WP, (0x5, 0x21, 0x04)),
        (Status.ZONE_BOUNDARY, (0x5, 0x21, 0x05)),
        (Status.READ_BOUNDARY, (0x5, 0x21, 0x07)),
        (Status.ZONE_FULL, (0x5, 0x24, 0x00)),
        (Status.CONVENTIONAL, (0x5, 0x24, 0x00)),
        (Status.NOT_ZONE_START, (0x5, 0x24, 0x00)),
        (Status.ZONE_READONLY, (0x7, 0x27, 0x08)),
        (Status.ZONE_OFFLINE, (0x7, 0x2C, 0x0E)),
        (Status.OPEN_RESOURCE, (0x7, 0x55, 0x0E)),
        (Status.ACTIVE_RESOURCE, (0x7, 0x55, 0x0E)),
        (Status.IO_ERROR, (0x3, 0x11, 0x00)),
        (Status.NO_SPACE, (0x7, 0x27, 0x07)),
    ],
)
def test_codes_that_linux_and_libzbc_look_for(status: Status, code: tuple[int, int, int]) -> None:
    assert SENSE_OF_STATUS[status] == code


def test_every_rule_of_the_disks_own_has_its_sense() -> None:
    assert set(SENSE_OF_RULE) == set(ScsiRule)


def test_fixed_format() -> None:
    expected = from_hex("""
        70            #  0 response code: current, fixed format
        00            #  1 obsolete
        05            #  2 sense key: ILLEGAL REQUEST
        00 00 00 00   #  3 information
        0a            #  7 additional length: 10, so 18 bytes in all
        00 00 00 00   #  8 command-specific information
        24            # 12 additional sense code: INVALID FIELD IN CDB
        00            # 13 qualifier
        00            # 14 field replaceable unit
        c0 00 0e      # 15 SKSV, C/D: byte 14 of the CDB
    """)
    assert encode(sense.INVALID_FIELD_IN_CDB, descriptor=False, field=14) == expected


def test_descriptor_format() -> None:
    expected = from_hex("""
        72            #  0 response code: current, descriptor format
        05            #  1 sense key
        26            #  2 additional sense code: INVALID FIELD IN PARAMETER LIST
        00            #  3 qualifier
        00 00 00      #  4 reserved
        08            #  7 additional length
        02 06 00 00   #  8 sense key specific descriptor, 6 bytes follow
        80 01 02      # 12 SKSV, in the data: byte 258
        00            # 15 reserved
    """)
    found = encode(sense.INVALID_FIELD_IN_PARAMETER_LIST, descriptor=True, field=258, in_data=True)
    assert found == expected
    assert encode(sense.LBA_OUT_OF_RANGE, descriptor=True) == bytes.fromhex("72 05 21 00 000000 00")


@pytest.mark.parametrize("code", [value for value in vars(sense).values() if isinstance(value, Sense)])
@pytest.mark.parametrize("field", [None, 0, 15])
def test_both_formats_say_the_same(code: Sense, field: int | None) -> None:
    fixed = encode(code, descriptor=False, field=field)
    descriptor = encode(code, descriptor=True, field=field)
    assert (fixed[2], fixed[12], fixed[13]) == tuple(descriptor[1:4]) == tuple(code)
    assert len(fixed) == 8 + fixed[7]
    assert len(descriptor) == 8 + descriptor[7]
    assert max(len(fixed), len(descriptor)) <= 96  # what virtio-scsi has room for
