"""Block requests byte by byte, on a real image, without rings."""

import struct
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.vhost_user.serving import ZONE, create
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import ZoneMachine
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.virtio import blk_codec as codec, blk_config, features as bits
from zonefs_emu.virtio.blk import Blk
from zonefs_emu.virtio.blk_config import BlkOptions
from zonefs_emu.virtio.handler import Deferred
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtio.rules import BlkRule


class Driver:
    """Cuts requests into buffers and hands them to a device."""

    def __init__(self, device: ZonedDevice, options: BlkOptions | None = None) -> None:
        self.device = device
        self.blk = Blk(device.port("blk", VIRTIO), options or BlkOptions(serial="0123456789abcdefghij+more"))
        self.merged: list[int] = []

    def chain(self, readable: bytes, room: int, *, cuts: Sequence[int] = ()) -> Chain:
        """One request: the header is a buffer, the status is one, and more are made at *cuts* of the readable part."""
        borders = [0, *(cuts or [min(16, len(readable))]), len(readable)]
        view = memoryview(bytearray(readable))
        out = [view[start:end] for start, end in pairwise(borders) if end > start]
        into = [memoryview(bytearray(b"\xee" * size)) for size in ((room - 1, 1) if room else ()) if size > 0]
        return 0, out, into

    def run(self, chains: Sequence[Chain]) -> list[int]:
        lengths: list[int] = []
        index = 0
        while index < len(chains):
            done = self.blk.step(chains, index, lengths, lambda _index, spans: self.merged.append(len(spans)))
            if isinstance(done, Deferred):
                lengths.append(done.execute())
                done = 1
            index += done
        return lengths

    def request(self, kind: int, sector: int, out: bytes = b"", room: int = 1) -> tuple[int, bytes]:
        chain = self.chain(struct.pack("<IIQ", kind, 0, sector) + out, room)
        (length,) = self.run([chain])
        assert length == room
        answer = b"".join(chain[2])
        return answer[-1], answer[:-1]


@pytest.fixture
def driver(device: ZonedDevice) -> Driver:
    return Driver(device)


def data(nr_sectors: int, byte: bytes = b"d") -> bytes:
    return byte * (512 * nr_sectors)


def test_write_and_read(driver: Driver) -> None:
    assert driver.request(codec.T_OUT, 2 * ZONE, data(2)) == (0, b"")
    assert driver.request(codec.T_IN, 2 * ZONE, room=1537) == (0, data(2) + bytes(512))
    assert driver.request(codec.T_IN, 2 * ZONE, b"of no use to a read", 513) == (0, data(1))


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room", "status"),
    [
        (codec.T_OUT, 2 * ZONE + 8, data(1), 1, 4),  # not at wp
        (codec.T_OUT, 2 * ZONE, data(1) + b"x", 1, 1),  # half a sector
        (codec.T_OUT, 32 * ZONE, data(1), 1, 1),  # beyond the device
        (codec.T_OUT, (1 << 64) - 1, data(1), 1, 1),
        (codec.T_IN, 32 * ZONE - 1, b"", 1025, 1),
        (codec.T_IN, 3 * ZONE - 1, b"", 1025, 3),  # across a boundary
        (codec.T_IN, 0, b"", 512, 1),  # half a sector
        (codec.T_ZONE_APPEND, 2 * ZONE + 1, data(1), 9, 3),  # not a zone start
        (codec.T_ZONE_APPEND, 0, data(1), 9, 3),  # conventional
        (codec.T_ZONE_APPEND, 2 * ZONE, data(1025), 9, 3),  # longer than max_append
        (codec.T_ZONE_APPEND, 2 * ZONE, data(1), 8, 1),  # nowhere to put the sector
        (codec.T_ZONE_APPEND, 2 * ZONE, b"x", 9, 4),
        (codec.T_ZONE_OPEN, 0, b"", 1, 3),  # conventional
        (codec.T_ZONE_OPEN, 2 * ZONE + 1, b"", 1, 3),
        (codec.T_ZONE_CLOSE, 2 * ZONE, b"", 1, 3),  # empty
        (codec.T_ZONE_RESET, 32 * ZONE, b"", 1, 3),
        (codec.T_ZONE_REPORT, 32 * ZONE, b"", 129, 3),
        (codec.T_ZONE_REPORT, 0, b"", 128, 3),  # room for no zone
        (codec.T_DISCARD, 0, bytes(16), 1, 2),
        (codec.T_WRITE_ZEROES, 0, bytes(16), 1, 2),  # not offered
        (codec.T_SECURE_ERASE, 0, bytes(16), 1, 2),
        (codec.T_GET_LIFETIME, 0, b"", 7, 2),
        (12345, 0, b"", 1, 2),
        (codec.T_OUT | codec.T_BARRIER, 0, data(1), 1, 2),  # a driver of VERSION_1 has no barriers
    ],
)
def test_refused(driver: Driver, *, kind: int, sector: int, out: bytes, room: int, status: int) -> None:
    before = driver.blk.port.report(0, 32)
    assert driver.request(kind, sector, out, room)[0] == status
    assert driver.blk.port.report(0, 32) == before


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room", "sentence"),
    [
        (12345, 0, b"", 1, "a request of type 12345 was refused (UNSUPPORTED): the type of a request must be one that"),
        (codec.T_DISCARD, 0, bytes(16), 1, "a request of type 11 (DISCARD) was refused (UNSUPPORTED): the type of"),
        (codec.T_WRITE_ZEROES, 0, bytes(16), 1, "a request of type 13 (WRITE_ZEROES) was refused (UNSUPPORTED): the"),
        (codec.T_SCSI_CMD, 0, b"", 17, "a request of type 2 (SCSI_CMD) was refused (UNSUPPORTED): the type of"),
        (codec.T_IN, 8, b"", 101, "read of 100 bytes at sector 8 was refused (UNALIGNED): start and length"),
        (codec.T_OUT, 2 * ZONE, b"xyz", 1, f"write of 3 bytes at sector {2 * ZONE} was refused (UNALIGNED): start"),
        (codec.T_ZONE_APPEND, ZONE, b"xyz", 9, f"append of 3 bytes at sector {ZONE} was refused (UNALIGNED): start"),
        (codec.T_ZONE_APPEND, ZONE, data(1), 8, f"append at sector {ZONE} with 7 writable bytes was refused (UNSUP"),
        (codec.T_ZONE_REPORT, 32 * ZONE, b"", 129, f"zone report from sector {32 * ZONE} was refused (OUT_OF_RANGE)"),
        (codec.T_ZONE_REPORT, 5, b"", 128, "zone report from sector 5 with room for 127 bytes was refused (UNS"),
    ],
)  # fmt: skip
def test_malformed_requests_are_explained(
    driver: Driver, *, kind: int, sector: int, out: bytes, room: int, sentence: str
) -> None:
    status, _ = driver.request(kind, sector, out, room)
    (refusal,) = driver.device.refusals.last(10)
    text = EXPLAINER.explain(refusal, driver.device.geometry)
    assert text.startswith(f"blk: {sentence}")
    assert text.endswith("]")
    assert "[virtio 1.4 blk, " in text or "; virtio 1.4 blk, " in text
    rule = EXPLAINER.rules[refusal.rule]
    assert not isinstance(rule, BlkRule) or codec.STATUS_OF_RULE[rule] == status


def test_zone_requests_of_a_driver_without_zones_are_explained(driver: Driver) -> None:
    driver.blk.accept(bits.VERSION_1)
    assert driver.request(codec.T_ZONE_REPORT, ZONE, room=129)[0] == codec.S_UNSUPP
    (refusal,) = driver.device.refusals.last(10)
    assert refusal.rule == BlkRule.BLK_NOT_ZONED
    assert EXPLAINER.explain(refusal, driver.device.geometry).startswith(
        f"blk: ZONE_REPORT at sector {ZONE} was refused (UNSUPPORTED): "
    )


def test_wrong_segments_of_write_zeroes_are_explained(device: ZonedDevice) -> None:
    driver = Driver(device, BlkOptions(serial="x", write_zeroes=True))
    for segments, status in (
        (bytes(15), codec.S_IOERR),
        (struct.pack("<QII", 8, 1, 2), codec.S_UNSUPP),
        (struct.pack("<QII", 8, (1 << 16) + 1, 0), codec.S_IOERR),
    ):
        assert driver.request(codec.T_WRITE_ZEROES, 0, segments)[0] == status
    assert [(refusal.rule, refusal.request) for refusal in device.refusals.last(10)] == [
        (BlkRule.BLK_SEGMENT, "WRITE_ZEROES with 15 bytes of segments"),
        (BlkRule.BLK_SEGMENT_FLAGS, "WRITE_ZEROES at sector 8 with flags 0x2"),
        (BlkRule.BLK_SEGMENT, "WRITE_ZEROES of 65537 sectors at sector 8"),
    ]


def test_both_limits_hit_is_active(driver: Driver) -> None:
    for number in range(6):
        assert driver.request(codec.T_ZONE_OPEN, (2 + number) * ZONE)[0] == 0
    assert driver.request(codec.T_ZONE_OPEN, 20 * ZONE)[0] == 5
    for number in range(2):
        driver.request(codec.T_OUT, (2 + number) * ZONE, data(1))
        driver.request(codec.T_ZONE_CLOSE, (2 + number) * ZONE)
        assert driver.request(codec.T_ZONE_OPEN, (10 + number) * ZONE)[0] == 0
    assert driver.request(codec.T_ZONE_OPEN, 20 * ZONE)[0] == 6


# 9 bytes in the standard; 16 from Linux, whose structure of a sector and a status has padding between them.
@pytest.mark.parametrize("room", [9, 16])
def test_append_says_where(driver: Driver, room: int) -> None:
    for number in range(3):
        status, where = driver.request(codec.T_ZONE_APPEND, 5 * ZONE, data(2), room)
        assert (status, int.from_bytes(where[:8], "little")) == (0, 5 * ZONE + 2 * number)


def test_report_byte_by_byte(driver: Driver) -> None:
    driver.request(codec.T_OUT, 2 * ZONE, data(3))
    driver.request(codec.T_ZONE_FINISH, 3 * ZONE)
    status, report = driver.request(codec.T_ZONE_REPORT, ZONE + 7, room=64 + 3 * 64 + 63 + 1)
    assert status == 0
    assert report[:8] == (3).to_bytes(8, "little")  # nr_zones that fit
    assert report[8:64] == bytes(56)
    first, second, third = (report[64 * number : 64 * number + 64] for number in (1, 2, 3))
    assert first[8:16] == ZONE.to_bytes(8, "little")  # the zone that holds the sector
    assert (first[24], first[25]) == (1, 0)  # conventional, NOT_WP
    assert second[0:8] == ZONE.to_bytes(8, "little")  # capacity first
    assert second[8:16] == (2 * ZONE).to_bytes(8, "little")  # then start
    assert second[16:24] == (2 * ZONE + 3).to_bytes(8, "little")  # then wp
    assert (second[24], second[25]) == (2, 2)  # SWR, implicitly open
    assert third[25] == 14  # FULL
    assert second[26:64] == bytes(38)


def test_reset_all(driver: Driver) -> None:
    driver.request(codec.T_OUT, 2 * ZONE, data(3))
    driver.request(codec.T_ZONE_FINISH, 3 * ZONE)
    assert driver.request(codec.T_ZONE_RESET_ALL, 0)[0] == 0
    assert {zone.cond for zone in driver.blk.port.report(2, 30)} == {Condition.EMPTY}


def test_identity_is_twenty_bytes(driver: Driver) -> None:
    assert driver.request(codec.T_GET_ID, 0, room=21) == (0, b"0123456789abcdefghij")


def test_flush(driver: Driver) -> None:
    for kind in (codec.T_FLUSH, codec.T_FLUSH_OUT):
        assert driver.request(kind, 0)[0] == 0


@pytest.mark.parametrize("kind", [codec.T_SCSI_CMD, codec.T_SCSI_CMD_OUT])
def test_legacy_scsi_pass_through_is_answered(driver: Driver, kind: int) -> None:
    """ "errors" in the trailing scsi_inhdr says that nothing was done."""
    status, answer = driver.request(kind, 0, bytes(16), 96 + 16 + 1)
    assert status == codec.S_UNSUPP
    assert answer[96:] == struct.pack("<IIII", 255, 0, 0, 0)
    assert driver.request(kind, 0, bytes(16), 1) == (codec.S_UNSUPP, b"")


def test_legacy_barriers_are_kept(driver: Driver) -> None:
    driver.blk.accept(0)
    assert driver.request(codec.T_OUT | codec.T_BARRIER, 0, data(1, b"b"))[0] == 0
    assert driver.request(codec.T_IN, 0, room=513) == (0, data(1, b"b"))


def test_a_driver_without_zoned_is_tolerated_but_held_to_the_rules(driver: Driver) -> None:
    driver.blk.accept(bits.VERSION_1 | blk_config.F_FLUSH)
    assert driver.request(codec.T_OUT, 2 * ZONE, data(1))[0] == 0
    assert driver.request(codec.T_OUT, 2 * ZONE, data(1))[0] == codec.S_IOERR
    for kind in (codec.T_ZONE_OPEN, codec.T_ZONE_RESET_ALL, codec.T_ZONE_REPORT, codec.T_ZONE_APPEND):
        assert driver.request(kind, 2 * ZONE, room=129)[0] == codec.S_UNSUPP


def test_write_zeroes_writes_at_wp(device: ZonedDevice) -> None:
    driver = Driver(device, BlkOptions(serial="x", write_zeroes=True))
    segment = struct.pack("<QII", 2 * ZONE, 2047, 1)
    assert driver.request(codec.T_WRITE_ZEROES, 0, segment)[0] == 0
    assert driver.blk.port.zone(2).wp == 2 * ZONE + 2047
    assert driver.request(codec.T_WRITE_ZEROES, 0, segment)[0] == codec.S_ZONE_UNALIGNED_WP
    assert driver.request(codec.T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 1, 2))[0] == codec.S_UNSUPP
    assert driver.request(codec.T_WRITE_ZEROES, 0, struct.pack("<QII", 0, 1 << 31, 0))[0] == codec.S_IOERR
    assert driver.request(codec.T_WRITE_ZEROES, 0, segment + segment)[0] == codec.S_IOERR


def test_write_through_makes_each_write_stable(driver: Driver) -> None:
    def nr_flushes() -> int:
        return driver.device.statistics()["flushes"]

    before = nr_flushes()
    driver.request(codec.T_OUT, 2 * ZONE, data(1))
    assert nr_flushes() == before
    driver.blk.set_config(0, bytes(96))  # some front-ends write the whole space; only writeback counts
    assert driver.blk.config()[32] == 0
    assert driver.request(codec.T_OUT, 2 * ZONE + 1, data(1))[0] == 0
    assert driver.request(codec.T_ZONE_APPEND, 2 * ZONE, data(1), 9)[0] == 0
    assert nr_flushes() == before + 2
    driver.blk.reset()
    assert driver.blk.config()[32] == 1
    driver.blk.accept(bits.VERSION_1)  # neither CONFIG_WCE nor FLUSH: "every completed write must be stable"
    driver.request(codec.T_OUT, 0, data(1))
    assert nr_flushes() == before + 3


def test_a_driver_that_cannot_flush_begins_with_a_write_through_cache(driver: Driver) -> None:
    without_flush = bits.VERSION_1 | blk_config.F_CONFIG_WCE
    driver.blk.accept(without_flush)
    assert driver.blk.config()[32] == 0
    before = driver.device.statistics()["flushes"]
    driver.request(codec.T_OUT, 0, data(1))
    assert driver.device.statistics()["flushes"] == before + 1
    driver.blk.set_config(32, b"\1")
    driver.blk.accept(without_flush | bits.LOG_ALL)
    assert driver.blk.config()[32] == 1  # what the driver has set
    driver.blk.reset()
    assert driver.blk.config()[32] == 0
    driver.blk.accept(without_flush | blk_config.F_FLUSH)
    assert driver.blk.config()[32] == 1


def test_a_read_only_image_offers_ro(tmp_path: Path) -> None:
    device = ZonedDevice.open(create(tmp_path / "image"), readonly=True)
    driver = Driver(device)
    assert driver.blk.offered & blk_config.F_RO
    assert driver.request(codec.T_IN, 0, room=513)[0] == 0
    for kind, out, room in (
        (codec.T_OUT, data(1), 1),
        (codec.T_ZONE_RESET, b"", 1),
        (codec.T_ZONE_RESET_ALL, b"", 1),
        (codec.T_ZONE_APPEND, data(1), 9),
    ):
        with driver.blk.port.refusals.collect() as refused:
            assert driver.request(kind, 2 * ZONE, out, room)[0] == codec.S_IOERR
        assert "the image is open read-only" in EXPLAINER.explain(refused[-1], device.geometry)
    driver = Driver(device, BlkOptions(serial="x", write_zeroes=True))
    assert driver.request(codec.T_WRITE_ZEROES, 0, struct.pack("<QII", 8, 1, 0))[0] == codec.S_IOERR
    # Cut in a way that is not the fast one.
    short = driver.chain(struct.pack("<IIQ", codec.T_OUT, 0, 2 * ZONE) + b"abc", 1, cuts=[8])
    with driver.blk.port.refusals.collect() as refused:
        driver.run([short])
    assert short[2][0][0] == codec.S_IOERR
    assert refused[-1].rule == DeviceRule.UNALIGNED
    device.close()


def writes(driver: Driver, *parts: tuple[int, int]) -> list[Chain]:
    return [
        driver.chain(struct.pack("<IIQ", codec.T_OUT, 0, at) + data(count, bytes([at % 251])), 1) for at, count in parts
    ]


def test_adjacent_writes_are_one(driver: Driver) -> None:
    chains = writes(driver, *((2 * ZONE + 2 * index, 2) for index in range(20)))
    driver.run(chains)
    assert driver.merged == [20]
    assert driver.device.statistics()["writes"] == 1
    assert all(chain[2][0][0] == 0 for chain in chains)
    assert driver.request(codec.T_IN, 2 * ZONE, room=20 * 1024 + 1) == (
        0,
        b"".join(data(2, bytes([(2 * ZONE + 2 * index) % 251])) for index in range(20)),
    )


def test_merged_writes_that_are_refused_get_their_own_answers(driver: Driver) -> None:
    driver.request(codec.T_OUT, 2 * ZONE, data(4))
    chains = writes(driver, (2 * ZONE, 4), (2 * ZONE + 4, 1), (2 * ZONE + 5, 1))
    driver.run(chains)
    assert [chain[2][0][0] for chain in chains] == [4, 0, 0]
    refused = [(refusal.sector, refusal.nr_sectors) for refusal in driver.device.refusals.last(10)]
    assert refused == [(2 * ZONE, 6), (2 * ZONE, 4)], "the whole, then the part that is refused by itself"


def test_the_parts_of_a_refused_write_are_executed_as_they_were_merged(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's other processor turns them into resets while the device looks at the whole."""
    driver.request(codec.T_OUT, 2 * ZONE, data(4))
    chains = writes(driver, (2 * ZONE, 4), (2 * ZONE + 4, 1), (2 * ZONE + 5, 1))
    write = driver.blk._port_write

    def write_and_change(sector: int, nr_sectors: int, buffers: Sequence[memoryview]) -> Status:
        status = write(sector, nr_sectors, buffers)
        for chain in chains:
            chain[1][0][:] = header(codec.T_ZONE_RESET, 2 * ZONE)
        return status

    monkeypatch.setattr(driver.blk, "_port_write", write_and_change)
    driver.run(chains)
    assert [chain[2][0][0] for chain in chains] == [codec.S_ZONE_UNALIGNED_WP, codec.S_OK, codec.S_OK]
    assert driver.blk.port.zone(2).wp == 2 * ZONE + 6
    assert driver.merged == [0, 3, 0, 0, 0]


def test_writes_are_not_merged_over_the_capacity(driver: Driver) -> None:
    start = 3 * ZONE
    for at in range(start, start + ZONE - 2, 1023):
        driver.request(codec.T_OUT, at, data(1023))
    chains = writes(driver, (start + 2046, 1), (start + 2047, 1), (start + 2048, 1))
    driver.run(chains)
    assert [chain[2][0][0] for chain in chains] == [0, 0, 0]
    assert driver.blk.port.zone(3).cond is Condition.FULL
    assert driver.blk.port.zone(4).wp == 4 * ZONE + 1


@pytest.mark.parametrize(("readable", "room"), [(b"", 1), (bytes(15), 1), (bytes(16), 0), (b"", 0)])
def test_a_request_without_header_or_status_breaks_the_ring(driver: Driver, readable: bytes, room: int) -> None:
    with pytest.raises(BrokenRingError, match="bytes of header"):
        driver.run([driver.chain(readable, room)])


@given(
    kind=st.one_of(st.integers(0, 30), st.integers(0, (1 << 32) - 1)),
    sector=st.one_of(st.integers(0, 33 * ZONE), st.integers(0, (1 << 64) - 1)),
    out=st.one_of(st.binary(max_size=40), st.integers(0, 6).map(data)),
    room=st.one_of(st.integers(1, 40), st.integers(1, 3000)),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    features=st.sampled_from([0, bits.VERSION_1, (1 << 64) - 1]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_answered_however_it_is_cut(
    *, driver: Driver, kind: int, sector: int, out: bytes, room: int, cuts: list[int], features: int
) -> None:
    driver.blk.accept(features)
    readable = struct.pack("<IIQ", kind, 0, sector) + out
    chain = driver.chain(readable, room, cuts=sorted(at for at in cuts if at <= len(readable)))
    before = driver.device.refusals.last_seq
    (length,) = driver.run([chain])
    assert length == room
    status = chain[2][-1][-1]
    assert status <= 6
    assert (driver.device.refusals.last_seq > before) == (status != codec.S_OK)


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.mark.parametrize("cuts", [[16], [5, 16]], ids=["usual", "cut"])
@pytest.mark.parametrize(
    ("judged", "executed"),
    [
        (codec.T_GET_ID, codec.T_FLUSH),
        (codec.T_FLUSH, codec.T_GET_ID),
        (codec.T_OUT, codec.T_ZONE_FINISH),
    ],
)
def test_the_request_that_was_judged_is_the_one_that_is_executed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, judged: int, executed: int, cuts: list[int]
) -> None:
    """The guest's other processor changes the header after the only look at it."""
    chain = driver.chain(header(judged, 3 * ZONE) + data(1), 21, cuts=cuts)
    real = Blk._may_wait

    def change() -> None:
        done = 0
        for part in chain[1]:
            part[:] = (header(executed, 3 * ZONE) + data(1))[done : done + len(part)]
            done += len(part)

    def may_wait(device: Blk, request: codec.Request) -> bool:
        try:
            return real(device, request)
        finally:
            change()

    monkeypatch.setattr(Blk, "_may_wait", may_wait)
    lengths: list[int] = []
    done = driver.blk.step([chain], 0, lengths, lambda _index, _spans: None)
    if not done:
        assert isinstance(done, Deferred)
        assert done.execute() == 21
    assert chain[2][-1][-1] == codec.S_OK
    assert driver.device.statistics()["flushes"] == (judged == codec.T_FLUSH)
    assert (bytes(chain[2][0][:10]) == b"0123456789") == (judged == codec.T_GET_ID)
    assert driver.blk.port.zone(3).cond is (Condition.IMP_OPEN if judged == codec.T_OUT else Condition.EMPTY)


def long_chain(driver: Driver, kind: int, sector: int, nr_bytes: int) -> Chain:
    """A request whose data descriptors all name the same memory."""
    memory = memoryview(bytearray(1 << 20))
    data = [memory] * (nr_bytes >> 20)
    _, readable, writable = driver.chain(header(kind, sector), 1)
    return (0, [*readable, *data], writable) if kind == codec.T_OUT else (0, readable, [*data, *writable])


@pytest.mark.parametrize("kind", [codec.T_IN, codec.T_OUT])
def test_long_transfers_are_for_the_thread_that_may_wait(driver: Driver, kind: int) -> None:
    for nr_bytes, is_long in ((7 << 20, False), (8 << 20, True), (20 << 20, True)):
        chain = long_chain(driver, kind, 3 * ZONE, nr_bytes)
        done = driver.blk.step([chain], 0, [], lambda _index, _spans: None)
        assert isinstance(done, Deferred) == is_long
        if isinstance(done, Deferred):
            done.execute()
        assert chain[2][-1][-1] == codec.S_ZONE_INVALID_CMD, "it is longer than a zone of 1 MiB"


def test_what_cannot_be_served_is_answered_with_ioerr(driver: Driver) -> None:
    chain = driver.chain(header(codec.T_IN), 513)
    assert driver.blk.fail(chain) == 0
    assert chain[2][-1][-1] == codec.S_IOERR
    assert driver.blk.refuse_oversized(driver.chain(header(codec.T_OUT) + bytes(512), 1)) == 1
    assert driver.device.refusals.last(1)[0].rule == BlkRule.BLK_OVERSIZED
    assert driver.device.refusals.last(1)[0].request == "a request of 529 bytes"
    for refuse in (driver.blk.fail, driver.blk.refuse_oversized):
        with pytest.raises(BrokenRingError):
            refuse((0, [memoryview(bytearray(16))], []))


def test_segments_are_not_gathered_however_many_there_are(driver: Driver) -> None:
    """WRITE_ZEROES takes one segment of 16 bytes: the buffers of any other number are not joined."""
    driver.blk._write_zeroes = True
    chain = long_chain(driver, codec.T_OUT, 0, 600 << 20)
    chain[1][0][:] = header(codec.T_WRITE_ZEROES)
    tracemalloc.start()
    driver.blk.execute(chain)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert chain[2][-1][-1] == codec.S_IOERR
    assert peak < 1 << 20


def test_a_long_report_is_made_and_stored_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nr_zones = 20_000
    geometry = Geometry(size=nr_zones * 8, zone_size=8, zone_capacity=8)
    device = ZonedDevice.open(create(tmp_path / "many", geometry))
    driver = Driver(device)
    real_snapshot = ZoneMachine.snapshot

    def snapshot(machine: ZoneMachine, zone_no: int, cond_code: int, offset: int, attributes: int) -> Zone:
        assert not device.lock.locked(), "other commands go on meanwhile"
        return real_snapshot(machine, zone_no, cond_code, offset, attributes)

    monkeypatch.setattr(ZoneMachine, "snapshot", snapshot)
    memory = memoryview(bytearray(64 + 64 * nr_zones + 1))
    chain = 0, [memoryview(header(codec.T_ZONE_REPORT))], [memory[:1000], memory[1000:]]
    tracemalloc.start()
    driver.blk.execute(chain)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory[-1] == codec.S_OK
    assert int.from_bytes(memory[:8], "little") == nr_zones
    assert [int.from_bytes(memory[at + 8 : at + 16], "little") for at in (64, 64 * nr_zones)] == [0, 8 * nr_zones - 8]
    assert peak < 1 << 20
    device.close()
