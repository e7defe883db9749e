"""Each I/O command, in blocks; the rules themselves are tested with the device."""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.nvme.conftest import CAPACITY, NR_ZONES, UUID_1, ZONE, command, geometry, new_device
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import Command, IoOpcode, SendAction, encode, parse
from zonefs_emu.nvme.identify import MDTS_BYTES
from zonefs_emu.nvme.namespace import NOTHING, Namespace, Transfer, flush_all, refuse_command, require_zns
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem

SHAPE = partial(Geometry, zone_size=1024, zone_capacity=1024)
FUA = 1 << 30
ALL = 1 << 8


def at(slba: int, *rest: int) -> tuple[int, ...]:
    return slba & 0xFFFFFFFF, slba >> 32, *rest


def do(namespace: Namespace, opcode: int, *cdws: int, data: bytes = b"") -> Answer:
    asked = command(opcode, cdws=cdws)
    transfer = namespace.transfer(asked)
    if transfer.from_host:
        assert transfer.nr_bytes == len(data)
        return namespace.execute(asked, (memoryview(data),))
    room = memoryview(bytearray(transfer.nr_bytes))
    half = len(room) // 2 & ~511
    answer = namespace.execute(asked, (room[:half], room[half:]) if half else (room,) if room else ())
    return answer._replace(data=bytes(room))


def write(namespace: Namespace, slba: int, data: bytes, block_bytes: int, flags: int = 0) -> Answer:
    return do(namespace, IoOpcode.WRITE, *at(slba, len(data) // block_bytes - 1 | flags), data=data)


def send(namespace: Namespace, action: int, slba: int = 0, flags: int = 0) -> NvmeStatus:
    return do(namespace, IoOpcode.ZONE_SEND, *at(slba, 0, action | flags)).status


def report(
    namespace: Namespace, slba: int = 0, *, room: int = 64 * (NR_ZONES + 1), listed: int = 0, partial: bool = True
) -> tuple[int, list[tuple[int, int, int, int]]]:
    answer = do(namespace, IoOpcode.ZONE_RECEIVE, *at(slba, room // 4 - 1, listed << 8 | partial << 16))
    assert answer.status is NvmeStatus.SUCCESS
    data = answer.data
    zones = []
    for offset in range(64, len(data) - 63, 64):
        kind, state, capacity, start, wp = struct.unpack_from("<BB6xQQQ", data, offset)
        if kind:
            assert kind == 2
            zones.append((state >> 4, capacity, start, wp))
    return int.from_bytes(data[:8], "little"), zones


def test_writes_reads_and_appends_count_in_blocks(namespace: Namespace, block_bytes: int) -> None:
    one, two = b"a" * block_bytes, b"b" * 2 * block_bytes
    assert write(namespace, 0, one, block_bytes).status is NvmeStatus.SUCCESS
    appended = do(namespace, IoOpcode.ZONE_APPEND, *at(0, 1), data=two)
    assert (appended.status, appended.result) == (NvmeStatus.SUCCESS, 1)
    assert do(namespace, IoOpcode.ZONE_APPEND, *at(ZONE, 1), data=two).result == ZONE
    found = do(namespace, IoOpcode.READ, *at(0, 3))
    assert (found.status, found.data) == (NvmeStatus.SUCCESS, one + two + bytes(block_bytes))


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (lambda n, b: write(n, 1, b"x" * b, b), 0x1BC),
        (lambda n, b: write(n, NR_ZONES * ZONE, b"x" * b, b), 0x080),
        (lambda n, b: write(n, 1 << 60, b"x" * b, b), 0x080),
        (lambda n, _: do(n, IoOpcode.READ, *at(NR_ZONES * ZONE - 1, 1)), 0x080),
        (lambda n, b: do(n, IoOpcode.ZONE_APPEND, *at(1, 0), data=bytes(b)), 0x002),
        (lambda n, b: do(n, IoOpcode.ZONE_APPEND, *at(0, 32), data=bytes(33 * b)), 0x002),
        (lambda n, b: do(n, IoOpcode.ZONE_APPEND, *at(0, 1 << 25), data=bytes(b)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(0, 0, SendAction.CLOSE)), 0x1BF),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(1, 0, SendAction.OPEN)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(0, 0, SendAction.OPEN | 1 << 9)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(0, 0, SendAction.SET_DESCRIPTOR)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(0, 0, 0)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(0, 0, SendAction.OFFLINE)), 0x1BF),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(1, 0, SendAction.OFFLINE)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_SEND, *at(NR_ZONES * ZONE, 0, SendAction.OFFLINE)), 0x080),
        (lambda n, _: do(n, IoOpcode.ZONE_RECEIVE, *at(0, 15, 1)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_RECEIVE, *at(0, 15, 8 << 8)), 0x002),
        (lambda n, _: do(n, IoOpcode.ZONE_RECEIVE, *at(NR_ZONES * ZONE, 15, 0)), 0x080),
        (lambda n, _: do(n, IoOpcode.WRITE_ZEROES, *at(0, 0xFFFF)), 0x002),
    ],
)  # fmt: skip
def test_what_is_refused_is_answered_and_in_why(
    namespace: Namespace, block_bytes: int, asked: Callable[[Namespace, int], Answer], status: int
) -> None:
    answer = asked(namespace, block_bytes)
    assert answer.status == status
    refusal = namespace.device.refusals.last(1)[0]
    assert f"{status:03X}h" in EXPLAINER.answers(refusal)["nvme"]
    assert EXPLAINER.explain(refusal, namespace.geometry).startswith("nvme: ")


def test_the_limits_have_statuses_of_their_own(namespace: Namespace, block_bytes: int) -> None:
    for zone_no in (0, 1):
        assert send(namespace, SendAction.OPEN, zone_no * ZONE) == 0
    assert send(namespace, SendAction.OPEN, 2 * ZONE) == 0x1BE
    assert send(namespace, SendAction.CLOSE, 0) == 0
    assert write(namespace, 2 * ZONE, bytes(block_bytes), block_bytes).status == 0
    assert send(namespace, SendAction.CLOSE, 2 * ZONE) == 0
    assert write(namespace, 3 * ZONE, bytes(block_bytes), block_bytes).status == 0x1BD


def test_zones_are_reported_as_they_are(namespace: Namespace, block_bytes: int) -> None:
    none = (1 << 64) - 1
    write(namespace, 0, bytes(3 * block_bytes), block_bytes)
    assert send(namespace, SendAction.FINISH, ZONE) == 0
    assert send(namespace, SendAction.OPEN, 2 * ZONE) == 0
    namespace.port.set_cond(3, Condition.READONLY)
    namespace.port.set_cond(4, Condition.OFFLINE)
    expected = [
        (2, CAPACITY, 0, 3), (14, CAPACITY, ZONE, none), (3, CAPACITY, 2 * ZONE, 2 * ZONE),
        (13, CAPACITY, 3 * ZONE, none), (15, CAPACITY, 4 * ZONE, none),
        *((1, CAPACITY, n * ZONE, n * ZONE) for n in range(5, NR_ZONES)),
    ]  # fmt: skip
    assert report(namespace) == (NR_ZONES, expected)
    assert report(namespace, 4 * ZONE + 5) == (NR_ZONES - 4, expected[4:]), "the zone that holds the block is the first"
    for listed, state in enumerate((1, 2, 3, 4, 14, 13, 15), 1):
        zones = [zone for zone in expected if zone[0] == state]
        assert report(namespace, listed=listed) == (len(zones), zones)
    assert report(namespace, room=64 * 3) == (2, expected[:2])
    assert report(namespace, room=64 * 3 + 60) == (2, expected[:2])
    assert report(namespace, room=64 * 3, partial=False) == (NR_ZONES, expected[:2])
    assert report(namespace, room=64, partial=False) == (NR_ZONES, [])
    assert report(namespace, room=8, partial=False) == (NR_ZONES, [])


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        (SendAction.CLOSE, SendAction.OPEN, 4),
        (SendAction.FINISH, SendAction.OPEN, 14),
        (SendAction.RESET, SendAction.FINISH, 1),
    ],
)
def test_all_zones_at_once(namespace: Namespace, action: SendAction, before: SendAction, after: int) -> None:
    for zone_no in (1, 2):
        assert send(namespace, before, zone_no * ZONE) == 0
    assert send(namespace, action, flags=ALL) == 0
    assert [zone[0] for zone in report(namespace)[1]] == [1, after, after, *[1] * (NR_ZONES - 3)]
    if action is SendAction.CLOSE:
        assert send(namespace, SendAction.OPEN, flags=ALL) == 0
        assert report(namespace, listed=3)[0] == 2


def test_a_host_may_take_readonly_zones_offline(namespace: Namespace) -> None:
    for zone_no in (1, 2, 3):
        namespace.port.set_cond(zone_no, Condition.READONLY)
    assert send(namespace, SendAction.OFFLINE, ZONE) == 0
    assert send(namespace, SendAction.OFFLINE, ZONE) == 0, "again"
    assert report(namespace, listed=7)[0] == 1
    assert send(namespace, SendAction.OFFLINE, flags=ALL) == 0
    assert report(namespace, listed=7)[0] == 3


def test_compare(namespace: Namespace, block_bytes: int) -> None:
    data = b"c" * block_bytes + b"d" * block_bytes
    write(namespace, 0, data, block_bytes)
    assert do(namespace, IoOpcode.COMPARE, *at(0, 1), data=data).status == 0
    assert do(namespace, IoOpcode.COMPARE, *at(0, 1), data=data[:-1] + b"e").status == 0x285
    assert do(namespace, IoOpcode.COMPARE, *at(NR_ZONES * ZONE, 0), data=bytes(block_bytes)).status == 0x080


def copy(namespace: Namespace, to: int, *ranges: tuple[int, int], flags: int = 0) -> int:
    data = b"".join(struct.pack("<8xQH14x", slba, nr_blocks - 1) for slba, nr_blocks in ranges)
    return do(namespace, IoOpcode.COPY, *at(to, len(ranges) - 1 | flags), data=data).status


def test_copy(namespace: Namespace, block_bytes: int) -> None:
    data = [bytes((number,)) * block_bytes for number in range(8)]
    write(namespace, 0, b"".join(data), block_bytes)
    assert copy(namespace, ZONE, (6, 2), (0, 1), (3, 2), flags=FUA) == 0
    found = do(namespace, IoOpcode.READ, *at(ZONE, 4)).data
    assert found == b"".join(data[number] for number in (6, 7, 0, 3, 4))
    assert report(namespace)[1][1][3] == ZONE + 5
    assert copy(namespace, ZONE, (0, 1)) == 0x1BC, "a copy writes at the write pointer"
    assert copy(namespace, 2 * ZONE, (0, 1), (NR_ZONES * ZONE, 1)) == 0x080
    assert copy(namespace, 2 * ZONE, (0, 1), flags=1 << 8) == 0x002, "another format"
    most = MDTS_BYTES // block_bytes
    assert copy(namespace, 2 * ZONE, (0, most), (0, 1)) == 0x183
    assert copy(namespace, 2 * ZONE, *[(0, 1)] * 129) == 0x183
    assert report(namespace)[1][2][3] == 2 * ZONE, "what is refused has no part"
    assert copy(namespace, 2 * ZONE, *[(0, 1)] * 128) == 0


def test_write_zeroes_moves_the_write_pointer(namespace: Namespace, block_bytes: int) -> None:
    assert do(namespace, IoOpcode.WRITE_ZEROES, *at(0, 9)).status == 0
    assert report(namespace)[1][0] == (2, CAPACITY, 0, 10)
    assert do(namespace, IoOpcode.READ, *at(0, 9)).data == bytes(10 * block_bytes)
    assert do(namespace, IoOpcode.WRITE_ZEROES, *at(0, 9)).status == 0x1BC


@pytest.mark.parametrize("opcode", [IoOpcode.WRITE, IoOpcode.ZONE_APPEND, IoOpcode.WRITE_ZEROES])
@pytest.mark.parametrize(("flags", "cached"), [(0, True), (FUA, True), (0, False)])
def test_what_makes_a_write_durable(
    namespace: Namespace, block_bytes: int, opcode: IoOpcode, flags: int, cached: bool
) -> None:
    before = namespace.device.statistics()["flushes"]
    namespace.caches_writes = cached
    data = b"" if opcode is IoOpcode.WRITE_ZEROES else bytes(block_bytes)
    assert do(namespace, opcode, *at(0, flags), data=data).status == 0
    assert namespace.device.statistics()["flushes"] - before == (1 if flags or not cached else 0)


def test_flush(namespace: Namespace) -> None:
    before = namespace.device.statistics()["flushes"]
    assert do(namespace, IoOpcode.FLUSH).status == 0
    assert namespace.device.statistics()["flushes"] == before + 1


@pytest.fixture
def two_devices(tmp_path: Path) -> Iterator[tuple[ZonedDevice, ZonedDevice]]:
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    with new_device(directories[0]) as first, new_device(directories[1]) as second:
        yield first, second


def test_a_flush_of_all_namespaces_ends_at_the_first_failure(two_devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    first, second = two_devices
    namespaces = Subsystem(two_devices).namespaces()
    first.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.FLUSH,))))
    asked = command(IoOpcode.FLUSH, nsid=0xFFFFFFFF)
    assert flush_all(namespaces, asked).status is NvmeStatus.WRITE_FAULT
    assert second.statistics()["flushes"] == 0
    assert flush_all(namespaces, asked) == SUCCESS
    assert second.statistics()["flushes"] == 1


def test_a_refusal_is_noted_where_the_command_says_or_first(two_devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    namespaces = Subsystem(two_devices).namespaces()
    refused = RefusedError(NvmeRule.NVME_FIELD, "flags 40h")
    for nsid in (2, 1, 2, 7, 2):
        answer = refuse_command(namespaces, command(IoOpcode.READ, nsid=nsid), refused)
        assert answer.status is NvmeStatus.INVALID_FIELD
    assert [len(device.refusals.last(9)) for device in two_devices] == [2, 3]


def test_the_length_follows_from_the_command_alone(namespace: Namespace, block_bytes: int) -> None:
    assert namespace.transfer(command(IoOpcode.READ, cdws=at(0, 2))) == Transfer(3 * block_bytes, from_host=False)
    assert namespace.transfer(command(IoOpcode.ZONE_APPEND, cdws=at(0, 2))) == Transfer(3 * block_bytes, from_host=True)
    assert namespace.transfer(command(IoOpcode.ZONE_RECEIVE, cdws=at(0, 15))) == Transfer(64, from_host=False)
    assert namespace.transfer(command(IoOpcode.FLUSH)) == NOTHING


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (command(0xC1), NvmeRule.NVME_OPCODE),
        (command(IoOpcode.COMPARE)._replace(flags=0x41), NvmeRule.NVME_FIELD),
        (command(IoOpcode.WRITE)._replace(flags=0x42), NvmeRule.NVME_FIELD),
        (command(IoOpcode.WRITE, cdws=at(0, 0xFFFF)), NvmeRule.NVME_TRANSFER),
        (command(IoOpcode.ZONE_RECEIVE, cdws=at(0, 0xFFFFFFFF)), NvmeRule.NVME_TRANSFER),
    ],
)
def test_what_is_refused_before_any_data_moves(namespace: Namespace, asked: Command, rule: NvmeRule) -> None:
    with pytest.raises(RefusedError) as caught:
        namespace.transfer(asked)
    assert caught.value.rule is rule
    answer = namespace.refuse(asked, caught.value)
    assert answer.status
    assert EXPLAINER.name(namespace.device.refusals.last(1)[0]) == rule.name


def test_a_readonly_image(tmp_path: Path) -> None:
    path = tmp_path / "image"
    ZonedDevice.create(path, geometry(), uuid=UUID_1)
    device = ZonedDevice.open(path, readonly=True)
    namespace = Namespace(device, 1)
    assert write(namespace, 0, bytes(4096), 4096).status == 0x020
    assert do(namespace, IoOpcode.ZONE_APPEND, *at(0, 0), data=bytes(4096)).status == 0x020
    assert do(namespace, IoOpcode.WRITE_ZEROES, *at(0, 0)).status == 0x020
    assert send(namespace, SendAction.FINISH) == 0x020
    assert do(namespace, IoOpcode.READ, *at(0, 0)).status == 0
    assert do(namespace, IoOpcode.FLUSH).status == 0
    device.close()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (SHAPE(size=4096, conventional=((0, 2),)), r"2 conventional .*--nr-conv"),
        (SHAPE(size=4000), r"smaller than the others.*multiple of its --zone-size"),
    ],
)  # fmt: skip
def test_what_nvme_cannot_express_is_said(shape: Geometry, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        require_zns(shape)


def test_other_front_ends_see_the_same_zones(namespace: Namespace, block_bytes: int) -> None:
    other = namespace.device.port("other", VIRTIO)
    write(namespace, 0, bytes(block_bytes), block_bytes)
    assert other.zone(0).wp == block_bytes // 512
    assert not other.write(block_bytes // 512, block_bytes // 512, (bytes(block_bytes),))
    assert report(namespace)[1][0][3] == 2


# -- zone random write areas ------------------------------------------------------------------------------------------

#: Blocks of an area, and of what flushes are a multiple of.
AREA, GRANULE = 32, 8
ZRWAA = 1 << 9


@pytest.fixture
def with_areas(tmp_path: Path, block_bytes: int) -> Iterator[Namespace]:
    sectors = block_bytes // 512
    shape = geometry(block_bytes, zrwa_size=AREA * sectors, zrwa_granularity=GRANULE * sectors, max_zrwa=1)
    ZonedDevice.create(tmp_path / "areas", shape, uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "areas")
    yield Namespace(device, 1)
    device.close()


def wp_and_attributes(namespace: Namespace, slba: int = 0) -> tuple[int, int, int]:
    data = do(namespace, IoOpcode.ZONE_RECEIVE, *at(slba, 31, 1 << 16)).data
    return data[64 + 1] >> 4, int.from_bytes(data[64 + 24 : 64 + 32], "little") - slba, data[64 + 2]


def test_an_area_is_allocated_written_and_flushed(with_areas: Namespace, block_bytes: int) -> None:
    namespace = with_areas
    entry = encode(command(0x79, cdws=at(ZONE, 0, SendAction.OPEN | ZRWAA)))
    assert entry[40:48] == bytes.fromhex("0001000000000000")  # SLBA
    assert entry[52:56] == bytes.fromhex("03020000")  # ZSA 03h, bit 9: allocate ZRWA
    assert namespace.execute(parse(entry), ()).status == 0
    assert wp_and_attributes(namespace, ZONE) == (3, 0, 0x08)
    data = b"a" * block_bytes
    assert write(namespace, ZONE + 5, data, block_bytes).status == 0
    assert write(namespace, ZONE + 5, b"b" * block_bytes, block_bytes).status == 0
    assert wp_and_attributes(namespace, ZONE) == (3, 0, 0x08)
    assert do(namespace, IoOpcode.READ, *at(ZONE + 4, 1)).data == bytes(block_bytes) + b"b" * block_bytes
    assert do(namespace, IoOpcode.COMPARE, *at(ZONE + 5, 0), data=b"b" * block_bytes).status == 0
    # One block behind the area: an implicit flush of one granule.
    assert do(namespace, IoOpcode.WRITE_ZEROES, *at(ZONE + AREA, 0)).status == 0
    assert wp_and_attributes(namespace, ZONE) == (3, GRANULE, 0x08)
    entry = encode(command(0x79, cdws=at(ZONE + 2 * GRANULE - 1, 0, SendAction.FLUSH_ZRWA)))
    assert entry[40:48] == bytes.fromhex("0f01000000000000")  # the last block to be flushed
    assert entry[52:56] == bytes.fromhex("11000000")  # ZSA 11h
    assert namespace.execute(parse(entry), ()).status == 0
    assert wp_and_attributes(namespace, ZONE) == (3, 2 * GRANULE, 0x08)
    assert send(namespace, SendAction.CLOSE, ZONE) == 0
    assert wp_and_attributes(namespace, ZONE) == (4, 2 * GRANULE, 0x08)
    assert send(namespace, SendAction.FINISH, ZONE) == 0
    assert wp_and_attributes(namespace, ZONE)[::2] == (14, 0)


def test_an_area_reaches_the_capacity_by_an_explicit_flush(with_areas: Namespace) -> None:
    assert send(with_areas, SendAction.OPEN | ZRWAA) == 0
    for end in range(AREA, CAPACITY + 1, AREA):
        assert wp_and_attributes(with_areas) == (3, end - AREA, 0x08)
        assert send(with_areas, SendAction.FLUSH_ZRWA, end - 1) == 0
    assert wp_and_attributes(with_areas)[::2] == (14, 0)


@pytest.mark.parametrize(
    ("action", "slba", "status"),
    [
        (SendAction.OPEN | ZRWAA, 0, 0x1B6),  # it has one
        (SendAction.OPEN | ZRWAA, ZONE, 0x1B7),  # no more of them
        (SendAction.OPEN | ZRWAA, 2 * ZONE, 0x1B6),  # open already
        (SendAction.OPEN | ZRWAA, 1, 0x002),
        (SendAction.OPEN | ZRWAA, NR_ZONES * ZONE, 0x080),
        (SendAction.OPEN | ZRWAA | ALL, 0, 0x002),
        (SendAction.CLOSE | ZRWAA, 0, 0x002),
        (SendAction.FLUSH_ZRWA, GRANULE, 0x1B6),  # no multiple of the granularity
        (SendAction.FLUSH_ZRWA, AREA, 0x1B6),  # behind the area
        (SendAction.FLUSH_ZRWA, 2 * ZONE, 0x1B6),  # a zone without one
        (SendAction.FLUSH_ZRWA, ZONE, 0x1B6),  # an empty zone
        (SendAction.FLUSH_ZRWA, NR_ZONES * ZONE, 0x080),
        (SendAction.FLUSH_ZRWA | ALL, GRANULE - 1, 0x002),
    ],
)
def test_zone_sends_that_areas_refuse(with_areas: Namespace, action: int, slba: int, status: int) -> None:
    assert send(with_areas, SendAction.OPEN | ZRWAA) == 0
    assert send(with_areas, SendAction.OPEN, 2 * ZONE) == 0
    assert send(with_areas, SendAction.CLOSE, 2 * ZONE) == 0
    assert send(with_areas, action, slba) == status
    assert wp_and_attributes(with_areas) == (3, 0, 0x08)


def test_writes_that_areas_refuse(with_areas: Namespace, block_bytes: int) -> None:
    assert send(with_areas, SendAction.OPEN | ZRWAA) == 0
    assert send(with_areas, SendAction.FLUSH_ZRWA, GRANULE - 1) == 0
    data = b"a" * block_bytes
    assert do(with_areas, IoOpcode.ZONE_APPEND, *at(0, 0), data=data).status == 0x1B6
    assert write(with_areas, GRANULE - 1, data, block_bytes).status == 0x1BC
    assert write(with_areas, GRANULE + 2 * AREA, data, block_bytes).status == 0x1BC
    assert write(with_areas, CAPACITY, data, block_bytes).status == 0x1B8
    assert wp_and_attributes(with_areas) == (3, GRANULE, 0x08)


def test_allocating_may_wait_for_the_host_where_a_reset_is_not_durable(with_areas: Namespace, block_bytes: int) -> None:
    asked = command(IoOpcode.ZONE_SEND, cdws=at(0, 0, SendAction.OPEN | ZRWAA))
    assert not with_areas.may_wait(asked)
    assert write(with_areas, 0, b"a" * block_bytes, block_bytes).status == 0
    assert send(with_areas, SendAction.RESET) == 0
    assert with_areas.may_wait(asked)
    assert with_areas.execute(asked, ()).status == 0
    assert not with_areas.may_wait(asked)


def test_a_namespace_without_areas_has_no_flush_of_them(namespace: Namespace) -> None:
    assert send(namespace, SendAction.FLUSH_ZRWA, 7) == 0x002


def test_an_area_beside_a_descriptor_extension(tmp_path: Path, block_bytes: int) -> None:
    sectors = block_bytes // 512
    areas = {"zrwa_size": AREA * sectors, "zrwa_granularity": GRANULE * sectors, "max_zrwa": 1}
    ZonedDevice.create(tmp_path / "both", geometry(block_bytes, extension_bytes=64, **areas), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "both")
    namespace = Namespace(device, 1)
    entry = encode(command(0x79, cdws=at(ZONE, 0, SendAction.SET_DESCRIPTOR | ZRWAA)))
    assert entry[40:48] == bytes.fromhex("0001000000000000")  # SLBA
    assert entry[52:56] == bytes.fromhex("10020000")  # ZSA 10h, bit 9: allocate ZRWA
    assert namespace.transfer(parse(entry)) == (64, True)
    extension = bytes(range(64))
    assert namespace.execute(parse(entry), (extension,)).status == 0
    assert wp_and_attributes(namespace, ZONE) == (4, 0, 0x88)  # CLOSED; extension and ZRWA valid
    assert write(namespace, ZONE + 3, b"a" * block_bytes, block_bytes).status == 0
    assert wp_and_attributes(namespace, ZONE) == (2, 0, 0x88)
    report = do(namespace, IoOpcode.ZONE_RECEIVE, *at(ZONE, (64 + 128) // 4 - 1, 0x0001 | 1 << 16)).data
    assert bytes(report[128:192]) == extension
    for slba, status in ((ZONE, 0x1BF), (0, 0x1B7), (1, 0x002), (NR_ZONES * ZONE, 0x080)):
        asked = command(IoOpcode.ZONE_SEND, cdws=at(slba, 0, SendAction.SET_DESCRIPTOR | ZRWAA))
        assert namespace.execute(asked, (extension,)).status == status
    assert send(namespace, SendAction.RESET, ZONE) == 0
    assert wp_and_attributes(namespace, ZONE) == (1, 0, 0)
    device.close()


def test_a_zone_without_data_for_an_extension_gets_no_area(with_areas: Namespace) -> None:
    assert send(with_areas, SendAction.SET_DESCRIPTOR | ZRWAA) == 0x002
    assert wp_and_attributes(with_areas) == (1, 0, 0)
