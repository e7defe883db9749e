import struct

from zonefs_emu.nvme import logs
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode
from zonefs_emu.nvme.logs import DiscoveryRecord, ErrorEntry


def test_effects_name_each_command_once() -> None:
    data = logs.effects([AdminOpcode.IDENTIFY], [IoOpcode.READ, IoOpcode.ZONE_APPEND])
    words = struct.unpack("<512I", data[:2048])
    assert {index: word for index, word in enumerate(words) if word} == {6: 1, 256 + 2: 1, 256 + 0x7D: 3}
    assert len(data) == 4096


def test_errors_are_listed_newest_first() -> None:
    data = logs.errors([ErrorEntry(1, 2, 3, 0x41BC, 100, 1), ErrorEntry(2, 0, 4, 0x4002, 0, 0)])
    assert len(data) == 128
    assert struct.unpack_from("<QHHH", data) == (2, 0, 4, 0x4002 << 1)
    assert struct.unpack_from("<QHHHHQI", data, 64) == (1, 2, 3, 0x41BC << 1, 0xFFFF, 100, 1)


def test_health_counts_in_thousands_of_sectors_rounded_up() -> None:
    counted = {
        "reads": 5, "read_sectors": 1001, "writes": 3, "appends": 4, "written_sectors": 2000, "power_cycles": 9,
        "internal_errors": 1,
    }  # fmt: skip
    data = logs.smart(counted, 77, 4)
    assert len(data) == 512
    assert (data[0], int.from_bytes(data[1:3], "little") - 273, data[3]) == (4, 40, 100)
    numbers = [int.from_bytes(data[32 + 16 * i : 48 + 16 * i], "little") for i in range(10)]
    assert numbers == [2, 2, 5, 7, 0, 9, 0, 0, 1, 77]


def test_endurance_counts_in_billions_of_bytes_rounded_up() -> None:
    counted = {
        "reads": 5,
        "read_sectors": 1,
        "writes": 3,
        "appends": 4,
        "written_sectors": 2_000_000,
        "internal_errors": 1,
    }
    data = logs.endurance_group(counted, 77, 4, 1 << 40)
    assert len(data) == 512
    assert (data[0], data[3], data[4], data[5]) == (4, 100, 10, 0)
    numbers = [int.from_bytes(data[48 + 16 * i : 64 + 16 * i], "little") for i in range(8)]
    assert numbers == [1, 2, 2, 5, 7, 1, 77, 1 << 40]


def test_changed_zones() -> None:
    assert struct.unpack_from("<H6x2Q", logs.changed_zones([512, 1024])) == (2, 512, 1024)
    many = logs.changed_zones(range(512))
    assert (many[:2], set(many[2:])) == (b"\xff\xff", {0})
    assert struct.unpack_from("<H", logs.changed_zones(range(511))) == (511,)


def test_discovery() -> None:
    records = [
        DiscoveryRecord(nqn="nqn.a", address="127.0.0.1", port=4420, is_discovery=False, needs_tls=False),
        DiscoveryRecord(nqn="nqn.b", address="::1", port=8009, is_discovery=True, needs_tls=True),
    ]
    data = logs.discovery(3, records)
    assert struct.unpack_from("<QQH", data) == (3, 2, 0)
    assert (data[1024], data[1025], data[1026]) == (3, 1, 2)
    assert (data[2048], data[2049], data[2050]) == (3, 2, 1)
    assert data[1024 + 6 : 1024 + 8] == b"\xff\xff"
    assert data[1024 + 32 : 1024 + 64] == b"4420".ljust(32)
    assert data[1024 + 256 : 1024 + 512].rstrip(b"\0") == b"nqn.a"
    assert data[1024 + 512 : 1024 + 768].rstrip() == b"127.0.0.1"
    assert len(data) == 3072
    # TREQ, whether a secure channel is required, and SECTYPE of TSAS, which kind: none, TLS 1.3.
    assert (data[1024 + 3], data[1024 + 768]) == (2, 0)
    assert (data[2048 + 3], data[2048 + 768]) == (1, 2)


def test_firmware_and_the_list_of_logs() -> None:
    assert logs.firmware("2.0")[8:16] == b"2.0     "
    assert [i for i in range(256) if logs.supported(logs.Log)[4 * i]] == sorted(logs.Log)
    assert struct.unpack_from("<3I", logs.changed_namespaces([2, 1])) == (1, 2, 0)
    assert struct.unpack_from("<I4088xI", logs.changed_namespaces(range(1, 1025))) == (1, 1024)
    assert struct.unpack_from("<2I", logs.changed_namespaces(range(1, 1026))) == (0xFFFFFFFF, 0)
