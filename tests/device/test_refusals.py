"""The log of refused operations: a ring that lasts, that damage cannot break, and sentences for people."""

import struct
import threading
import zlib
from dataclasses import replace

import pytest

from zonefs_emu.device.refusals import (
    NR_HOLDERS_MAX,
    REQUEST_BYTES,
    SLOT_BYTES,
    Refusal,
    RefusalLog,
    explain,
    now_ns,
)
from zonefs_emu.device.rules import DeviceRule, Rule
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

GEOMETRY = Geometry(size=640, zone_size=64, zone_capacity=48, max_open_zones=2, max_active_zones=3)
REFUSAL = Refusal(
    seq=1,
    time_ns=1_700_000_000_000_000_000,
    front_end="fuse",
    operation=Operation.WRITE,
    status=Status.UNALIGNED_WP,
    rule=DeviceRule.UNALIGNED_WP,
    zone_no=3,
    cond=Condition.IMP_OPEN,
    wp=200,
    sector=208,
    nr_sectors=8,
    nr_open=2,
    nr_active=3,
)


class ToyRule(Rule):
    """The rule of a front-end that only this test has."""

    TOY_TYPE = 200, "a toy has three types of requests", "the toy's manual"


RULES: dict[int, Rule] = {rule: rule for rule in (*DeviceRule, *ToyRule)}
MALFORMED = replace(
    REFUSAL, operation=None, status=Status.UNSUPPORTED, rule=ToyRule.TOY_TYPE, zone_no=-1, cond=Condition.NOT_WP, wp=0,
    sector=0, nr_sectors=0, request="a request of type 99",
)  # fmt: skip


def ring(nr_slots: int = 4) -> bytearray:
    return bytearray(nr_slots * SLOT_BYTES)


def put(log: RefusalLog, count: int) -> list[Refusal]:
    refusals = [replace(REFUSAL, seq=log.next_seq(), sector=n) for n in range(count)]
    for refusal in refusals:
        log.add(refusal)
    return refusals


@pytest.mark.parametrize(
    "refusal",
    [
        REFUSAL,
        replace(REFUSAL, zone_no=-1, cond=Condition.NOT_WP, wp=0),
        replace(REFUSAL, holders=(5,)),
        replace(REFUSAL, holders=tuple(range(NR_HOLDERS_MAX))),
        replace(REFUSAL, operation=Operation.SET_COND, status=Status.UNSUPPORTED, rule=(1 << 16) - 1),
        replace(REFUSAL, zone_no=(1 << 24) - 1, wp=(1 << 63) - 1, sector=(1 << 64) - 1, nr_sectors=(1 << 64) - 1),
        replace(REFUSAL, front_end=""),
        MALFORMED,
        replace(MALFORMED, operation=Operation.READ, zone_no=3, request="é" * (REQUEST_BYTES // 2)),
    ],
)
def test_what_is_put_in_comes_out(refusal: Refusal) -> None:
    memory = ring(8)
    RefusalLog(memoryview(memory)).add(refusal)
    assert RefusalLog(memoryview(memory)).last(10) == [refusal]


def test_a_slot_byte_by_byte() -> None:
    """The slots are part of the image format."""
    memory = ring()
    RefusalLog(memoryview(memory)).add(replace(REFUSAL, seq=2, holders=(5, 7)))
    data = bytes.fromhex(
        "0200000000000000"  # seq 2
        "00002a36fe9c9717"  # time_ns
        "667573650000000000000000000000000000000000000000"  # front_end
        "01 03 02 00"  # WRITE, UNALIGNED_WP, IMP_OPEN, nothing
        "0300 0200"  # rule, number of holders
        "03000000 02000000 03000000"  # zone_no, nr_open, nr_active
        "c800000000000000 d000000000000000 0800000000000000"  # wp, sector, nr_sectors
        "05000000 07000000"  # holders
    ).ljust(SLOT_BYTES - 4, b"\0")
    assert memory[SLOT_BYTES : 2 * SLOT_BYTES].hex(" ") == (data + struct.pack("<I", zlib.crc32(data))).hex(" ")


def test_a_slot_of_a_malformed_request_byte_by_byte() -> None:
    memory = ring(16)
    RefusalLog(memoryview(memory)).add(MALFORMED)
    data = bytes.fromhex(
        "0100000000000000"  # seq 1
        "00002a36fe9c9717"  # time_ns
        "667573650000000000000000000000000000000000000000"  # front_end
        "ff 12 00 14"  # no operation, UNSUPPORTED, NOT_WP, 20 bytes of request
        "c800 0000"  # rule 200, no holders
        "ffffffff 02000000 03000000"  # no zone, nr_open, nr_active
        "0000000000000000 0000000000000000 0000000000000000"  # wp, sector, nr_sectors
    ) + b"a request of type 99".ljust(168, b"\0")
    # The second of the last two slots, which are for such requests.
    assert memory[15 * SLOT_BYTES :].hex(" ") == (data + struct.pack("<I", zlib.crc32(data))).hex(" ")


def test_malformed_requests_push_out_only_their_like() -> None:
    memory = ring(16)
    log = RefusalLog(memoryview(memory))
    put(log, 3)
    for number in range(100):
        log.add(replace(MALFORMED, seq=log.next_seq(), request=f"garbage {number}"))
    put(log, 1)
    for again in (log, RefusalLog(memoryview(memory))):
        found = again.last(1000)
        assert [refusal.seq for refusal in found] == [1, 2, 3, 102, 103, 104]
        assert [refusal.request for refusal in found] == ["", "", "", "garbage 98", "garbage 99", ""]
    put(RefusalLog(memoryview(memory)), 12)
    assert [refusal.seq for refusal in RefusalLog(memoryview(memory)).last(1000)] == [*range(3, 4), *range(102, 117)]


def test_a_log_whose_refusals_all_lie_in_one_ring_is_read_and_continued() -> None:
    """As images have it that were written before malformed requests had a ring of their own."""
    memory = ring(16)
    for seq in range(25, 41):
        one = ring(16)
        RefusalLog(memoryview(one)).add(replace(REFUSAL, seq=seq))
        memory[seq % 16 * SLOT_BYTES : (seq % 16 + 1) * SLOT_BYTES] = one[SLOT_BYTES : 2 * SLOT_BYTES]
    log = RefusalLog(memoryview(memory))
    assert [refusal.seq for refusal in log.last(100)] == list(range(25, 41))
    put(log, 1)
    log.add(replace(MALFORMED, seq=log.next_seq()))
    # Of each part the oldest: 25 lay in slot 9, 30 in slot 14.
    assert [refusal.seq for refusal in log.last(100)] == [*range(26, 30), *range(31, 43)]


def test_requests_that_no_field_holds_are_cut() -> None:
    memory = ring()
    log = RefusalLog(memoryview(memory))
    log.add(replace(REFUSAL, sector=-1, nr_sectors=1 << 70, front_end="é" * 20))
    (found,) = log.last(1)
    assert (found.sector, found.nr_sectors, found.front_end) == ((1 << 64) - 1, 0, "é" * 12)
    log.add(replace(REFUSAL, seq=2, front_end="x" + "é" * 20))
    assert log.last(1)[0].front_end == "x" + "é" * 11 + "\N{REPLACEMENT CHARACTER}"
    log = RefusalLog(memoryview(ring(8)))
    log.add(replace(MALFORMED, request="x" * 200))
    assert log.last(1)[0].request == "x" * REQUEST_BYTES


def test_an_empty_log() -> None:
    log = RefusalLog(memoryview(ring()))
    assert (log.last_seq, log.last(10)) == (0, [])
    assert RefusalLog(memoryview(b"")).last_seq == 0


def test_the_ring_keeps_the_last_ones_in_order() -> None:
    memory = ring()
    log = RefusalLog(memoryview(memory))
    refusals = put(log, 11)
    assert log.last_seq == 11
    assert log.last(100) == refusals[-4:]
    assert log.last(2) == refusals[-2:]
    assert log.last(0) == []
    assert log.last(100, after=9) == refusals[-2:]
    assert log.last(1, after=9) == refusals[-1:]
    assert log.last(100, after=11) == []
    assert log.last(100, after=50) == []


def test_the_ring_goes_on_after_a_restart() -> None:
    memory = ring()
    put(RefusalLog(memoryview(memory)), 6)
    log = RefusalLog(memoryview(memory))
    assert log.last_seq == 6
    put(log, 1)
    assert [refusal.seq for refusal in log.last(100)] == [4, 5, 6, 7]


def test_every_damaged_byte_of_a_slot_leaves_that_slot_out_and_no_other() -> None:
    memory = ring()
    put(RefusalLog(memoryview(memory)), 6)
    for at in range(2 * SLOT_BYTES, 3 * SLOT_BYTES):  # number 6, the newest
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(memory)
            damaged[at] ^= flip
            log = RefusalLog(memoryview(damaged))
            assert [refusal.seq for refusal in log.last(100)] == [3, 4, 5]
            put(log, 1)
            assert [refusal.seq for refusal in log.last(100)] == [3, 4, 5, 6]


def test_a_number_that_is_damaged_does_not_move_the_end_of_the_ring() -> None:
    memory = ring()
    put(RefusalLog(memoryview(memory)), 3)
    memory[0:SLOT_BYTES] = b"\xff" * SLOT_BYTES
    log = RefusalLog(memoryview(memory))
    assert log.last_seq == 3
    put(log, 1)
    assert [refusal.seq for refusal in log.last(100)] == [1, 2, 3, 4]


def test_a_slot_that_is_there_twice_counts_once() -> None:
    memory = ring()
    put(RefusalLog(memoryview(memory)), 2)
    memory[3 * SLOT_BYTES :] = memory[2 * SLOT_BYTES : 3 * SLOT_BYTES]
    assert [refusal.seq for refusal in RefusalLog(memoryview(memory)).last(100)] == [1, 2]


@pytest.mark.parametrize("at", [40, 41, 42], ids=["operation", "status", "condition"])
def test_what_only_a_later_version_knows_is_left_out(at: int) -> None:
    memory = ring()
    put(RefusalLog(memoryview(memory)), 2)
    slot = memory[SLOT_BYTES : 2 * SLOT_BYTES]
    slot[at] = 0xEE
    struct.pack_into("<I", slot, SLOT_BYTES - 4, zlib.crc32(slot[: SLOT_BYTES - 4]))
    memory[SLOT_BYTES : 2 * SLOT_BYTES] = slot
    log = RefusalLog(memoryview(memory))
    assert [refusal.seq for refusal in log.last(100)] == [2]
    assert log.last_seq == 2


def test_threads_get_slots_of_their_own() -> None:
    log = RefusalLog(memoryview(ring(640)))
    threads = [threading.Thread(target=put, args=(log, 100)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = log.last(1000)
    assert [refusal.seq for refusal in found] == list(range(1, 501))
    assert sorted(refusal.sector for refusal in found) == sorted(list(range(100)) * 5)


def test_the_time_is_the_time_of_day() -> None:
    assert now_ns() > 1_600_000_000_000_000_000


# -- sentences ------------------------------------------------------------------------------------------------------

HEAD = "fuse: write of 8 sectors at sector 208 was refused"
WP_RULE = "a sequential zone is written at its write pointer only, in multiples of the write granularity"
WP_CLAUSE = "[ZBC-2 UNALIGNED WRITE COMMAND; virtio 1.4 blk, ZONE_UNALIGNED_WP; ZNS 1.1 Zone Invalid Write]"
OPEN_CLAUSE = "[ZBC-2 INSUFFICIENT ZONE RESOURCES; virtio 1.4 blk, ZONE_OPEN_RESOURCE; ZNS 1.1 Too Many Open Zones]"


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (
            REFUSAL,
            (
                f"{HEAD} (UNALIGNED_WP): {WP_RULE}; "
                f"zone 3 is IMP_OPEN with wp at sector 200 and its capacity ends at sector 240 {WP_CLAUSE}"
            ),
        ),
        (
            replace(REFUSAL, status=Status.ZONE_FULL, rule=DeviceRule.ZONE_FULL, cond=Condition.FULL),
            (
                f"{HEAD} (ZONE_FULL): a full zone takes no writes until it is reset; zone 3 is FULL "
                "[ZBC-2 zone condition FULL; ZNS 1.1 Zone Is Full]"
            ),
        ),
        (
            replace(REFUSAL, status=Status.OUT_OF_RANGE, rule=DeviceRule.OUT_OF_RANGE, zone_no=-1, sector=640),
            (
                "fuse: write of 8 sectors at sector 640 was refused (OUT_OF_RANGE): "
                "a request must end at or before the last sector of the device "
                "[ZBC-2 LOGICAL BLOCK ADDRESS OUT OF RANGE; virtio 1.4 blk, VIRTIO_BLK_S_ZONE_INVALID_CMD]"
            ),
        ),
        (
            replace(
                REFUSAL,
                operation=Operation.RESET,
                status=Status.CONVENTIONAL,
                rule=DeviceRule.CONVENTIONAL,
                cond=Condition.NOT_WP,
                nr_sectors=0,
                sector=192,
            ),
            (
                "fuse: reset at sector 192 was refused (CONVENTIONAL): a conventional "
                "zone has no write pointer, so it is "
                "neither managed nor appended to; zone 3 is NOT_WP "
                "[ZBC-2 INVALID FIELD IN CDB; virtio 1.4 blk, Device Operation]"
            ),
        ),
        (
            replace(
                REFUSAL,
                status=Status.OPEN_RESOURCE,
                rule=DeviceRule.OPEN_RESOURCE,
                cond=Condition.EMPTY,
                wp=192,
                holders=(1, 4),
            ),
            (
                f"{HEAD} (OPEN_RESOURCE): max_open_zones zones are open and none of "
                "them implicitly, so none can be closed "
                "for this one; zone 3 is EMPTY with wp at sector 192 and its capacity ends at sector 240; "
                f"2 zones are open: 1, 4 {OPEN_CLAUSE}"
            ),
        ),
        (
            replace(
                REFUSAL,
                status=Status.ACTIVE_RESOURCE,
                rule=DeviceRule.ACTIVE_RESOURCE,
                cond=Condition.EMPTY,
                wp=192,
                holders=(1, 4),
            ),
            (
                f"{HEAD} (ACTIVE_RESOURCE): max_active_zones zones are active: finish or reset one first; "
                "zone 3 is EMPTY with wp at sector 192 and its capacity ends at sector 240; "
                "3 zones are active: 1, 4 and 1 more [virtio 1.4 blk, "
                "ZONE_ACTIVE_RESOURCE; ZNS 1.1 Too Many Active Zones]"
            ),
        ),
        (
            replace(
                REFUSAL,
                operation=Operation.FLUSH,
                status=Status.POISONED,
                rule=DeviceRule.POISONED,
                zone_no=-1,
                nr_sectors=0,
            ),
            (
                "fuse: flush was refused (POISONED): nothing is written: the image is "
                "open read-only, or an earlier host "
                "failure left it in doubt until it is opened again (unmount it and mount it, or restart the daemon "
                "that serves it) [docs/errors.md, after a host failure]"
            ),
        ),
        (
            MALFORMED,
            (
                "fuse: a request of type 99 was refused (UNSUPPORTED): a toy has three types of requests "
                "[the toy's manual]"
            ),
        ),
        (
            replace(REFUSAL, rule=417, zone_no=-1),
            f"{HEAD} (UNALIGNED_WP): by rule 417, which only a later version knows",
        ),
    ],
    ids=["wp", "full", "range", "conventional", "open", "active", "flush", "malformed", "later"],
)
def test_one_sentence(refusal: Refusal, sentence: str) -> None:
    assert explain(refusal, GEOMETRY, RULES) == sentence
