"""virtio-scsi frames byte by byte, around the real target on a real image."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.vhost_user.serving import ZONE
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import ZBC
from zonefs_emu.scsi.commands import ENQUIRIES
from zonefs_emu.scsi.rules import HostRule
from zonefs_emu.scsi.target import Target
from zonefs_emu.virtio.handler import Deferred
from zonefs_emu.virtio.ring import BrokenRingError, Chain
from zonefs_emu.virtio.scsi import (
    RESPONSE_OF_RULE,
    ControlQueue,
    EventQueue,
    RequestQueue,
    Response,
    decode_address,
)

DISK = b"\x01\x00\x40\x00\x00\x00\x00\x00"
READ_CAPACITY = bytes.fromhex("9e 10 0000000000000000 00000020 00 00")


@pytest.fixture
def target(device: ZonedDevice) -> Target:
    return Target(device.port("scsi", ZBC), serial="serial", power_on=False)


def chain(readable: Sequence[bytes], writable: Sequence[int]) -> Chain:
    out = [memoryview(bytearray(part)) for part in readable]
    return 0, out, [memoryview(bytearray(b"\xee" * size)) for size in writable]


def header(cdb: bytes, lun: bytes = DISK) -> bytes:
    # lun[8], id, task attribute, priority, crn, cdb[32]
    return lun + (0x1234).to_bytes(8, "little") + bytes(3) + cdb.ljust(32, b"\0")


def execute(target: Target, request: Chain) -> tuple[int, bytes]:
    queue = RequestQueue(target)
    lengths: list[int] = []
    done = queue.step([request], 0, lengths, lambda _index, _spans: None)
    if isinstance(done, Deferred):
        lengths.append(done.execute())
    return lengths[0], b"".join(request[2])


def response(answer: bytes) -> tuple[int, int, int, int]:
    sense_length, residual, _, status, code = struct.unpack_from("<IIHBB", answer)
    return sense_length, residual, status, code


@pytest.mark.parametrize(
    ("field", "lun"),
    [
        ("0100400000000000", 0),
        ("0100000000000000", 0),
        ("0100400100000000", 1),
        ("0100000100000000", 1),
        ("0101400000000000", -2),  # target 1
        ("01ff400000000000", -2),
        ("0000400000000000", -2),
        ("c101000000000000", 0xC101),
        ("0100400000010000", -1),  # a second level
    ],
)
def test_addresses(field: str, lun: int) -> None:
    assert decode_address(bytes.fromhex(field)) == lun


@pytest.mark.parametrize("cut", ["usual", "odd"])
def test_data_in(target: Target, cut: str) -> None:
    if cut == "usual":
        request = chain([header(READ_CAPACITY)], [108, 32])
    else:
        whole = header(READ_CAPACITY)
        request = chain([whole[:5], whole[5:]], [1, 100, 20, 19])
    length, answer = execute(target, request)
    assert length == 140
    assert response(answer) == (0, 0, 0, Response.OK)
    assert answer[108:116] == (32 * ZONE - 1).to_bytes(8, "big")


@pytest.mark.parametrize("cut", ["usual", "odd"])
def test_data_out_and_flush(target: Target, cut: str) -> None:
    write = b"\x8a\x08" + (2 * ZONE).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"\0\0"  # FUA: may wait
    parts = [header(write), b"w" * 512]
    if cut == "odd":
        whole = b"".join(parts)
        parts = [whole[:20], whole[20:60], whole[60:]]
    length, answer = execute(target, chain(parts, [108]))
    assert (length, response(answer)) == (108, (0, 0, 0, Response.OK))
    read = b"\x88\0" + (2 * ZONE).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"\0\0"
    _, answer = execute(target, chain([header(read)], [108, 512]))
    assert answer[108:] == b"w" * 512


def test_sense_data(target: Target) -> None:
    write = b"\x8a\0" + (2 * ZONE + 5).to_bytes(8, "big") + (1).to_bytes(4, "big") + b"\0\0"
    _, answer = execute(target, chain([header(write), b"w" * 512], [108]))
    sense_length, residual, status, code = response(answer)
    assert (residual, status, code) == (512, 2, Response.OK)
    sense = answer[12 : 12 + sense_length]
    assert (sense[2] & 0xF, sense[12], sense[13]) == (5, 0x21, 0x04)  # UNALIGNED WRITE COMMAND


def test_residual_and_overrun(target: Target) -> None:
    _, answer = execute(target, chain([header(READ_CAPACITY)], [108, 50]))
    assert response(answer) == (0, 18, 0, Response.OK)
    read = b"\x88\0" + bytes(8) + (2).to_bytes(4, "big") + b"\0\0"
    _, answer = execute(target, chain([header(read)], [108, 512]))
    assert response(answer)[3] == Response.OVERRUN


def test_targets_that_are_not_there(target: Target) -> None:
    length, answer = execute(target, chain([header(READ_CAPACITY, b"\x01\x05\x40" + bytes(5))], [108, 32]))
    assert (length, response(answer)[3]) == (108, Response.BAD_TARGET)


@pytest.mark.parametrize(("readable", "room"), [(50, 108), (51, 107), (0, 0), (51, 0)])
def test_a_request_without_its_frame_breaks_the_ring(target: Target, readable: int, room: int) -> None:
    with pytest.raises(BrokenRingError, match="header and"):
        execute(target, chain([bytes(readable)] if readable else [], [room] if room else []))


def control(target: Target, request: bytes, room: int) -> bytes:
    lengths: list[int] = []
    frame = chain([request], [room])
    ControlQueue(target).step([frame], 0, lengths, lambda _index, _spans: None)
    return bytes(frame[2][0][: lengths[0]])


@pytest.mark.parametrize(
    ("subtype", "lun", "answer"),
    [
        (0, DISK, Response.OK),  # ABORT TASK: there is none
        (5, DISK, Response.OK),  # LOGICAL UNIT RESET
        (2, DISK, Response.FUNCTION_REJECTED),  # CLEAR ACA
        (99, DISK, Response.FUNCTION_REJECTED),
        (5, b"\x01\x00\x40\x01" + bytes(4), Response.INCORRECT_LUN),
        (5, b"\x01\x09\x40\x00" + bytes(4), Response.BAD_TARGET),
    ],
)
def test_task_management(target: Target, subtype: int, lun: bytes, answer: Response) -> None:
    request = struct.pack("<II8sQ", 0, subtype, lun, 7)
    assert control(target, request, 1) == bytes([answer])


@pytest.mark.parametrize("kind", [1, 2])
def test_asynchronous_notifications_are_none(target: Target, kind: int) -> None:
    assert control(target, struct.pack("<I8sI", kind, DISK, 0xFF), 5) == bytes(5)


@pytest.mark.parametrize(("request_bytes", "room"), [(b"", 1), (bytes(23), 1), (bytes(24), 0), (b"\x09" * 24, 9)])
def test_broken_control_requests(target: Target, request_bytes: bytes, room: int) -> None:
    frame = chain([request_bytes] if request_bytes else [], [room] if room else [])
    with pytest.raises(BrokenRingError):
        ControlQueue(target).execute(frame)


def test_events_wait_for_a_driver_that_wants_them() -> None:
    events = EventQueue()
    events.parameters_changed()
    assert events.next_event() is None
    events.wants_changes = True
    events.parameters_changed()
    events.parameters_changed()
    event = events.next_event()
    # le32 event, lun, le32 reason: PARAM_CHANGE, ASC 2Ah, ASCQ 09h
    assert event == b"\3\0\0\0" + DISK + b"\x2a\x09\0\0"
    assert events.next_event() is None
    events.put_back(event)
    assert events.next_event() == event
    events.put_back(event)
    events.clear()
    assert events.next_event() is None


LAST_HOLDS = {
    Response.OVERRUN: HostRule.VSCSI_OVERRUN,
    Response.BAD_TARGET: HostRule.VSCSI_TARGET,
    Response.FUNCTION_REJECTED: HostRule.VSCSI_TASK,
    Response.INCORRECT_LUN: HostRule.VSCSI_TASK_LUN,
    Response.FAILURE: HostRule.VSCSI_OVERSIZED,
}


def test_every_rule_on_the_way_has_its_response() -> None:
    assert {response: rule for rule, response in RESPONSE_OF_RULE.items()} == LAST_HOLDS
    assert set(RESPONSE_OF_RULE) == set(HostRule)


def test_what_the_host_refuses_is_explained(target: Target, device: ZonedDevice) -> None:
    read = b"\x88\0" + bytes(8) + (2).to_bytes(4, "big") + b"\0\0"
    cdb = "CDB 88 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00"
    execute(target, chain([header(read)], [108, 512]))
    execute(target, chain([header(read, b"\x01\x05\x40" + bytes(5))], [108, 1024]))
    control(target, struct.pack("<II8sQ", 0, 99, DISK, 7), 1)
    control(target, struct.pack("<II8sQ", 0, 5, b"\x01\0\x40\x09" + bytes(4), 7), 1)
    control(target, struct.pack("<II8sQ", 0, 5, b"\x01\x09\x40\0" + bytes(4), 7), 1)
    assert [(EXPLAINER.name(refusal), refusal.request) for refusal in device.refusals.last(10)] == [
        ("VSCSI_OVERRUN", f"READ(16) ({cdb}, 512 bytes of buffers)"),
        ("VSCSI_TARGET", f"READ(16) ({cdb})"),
        ("VSCSI_TASK", "task management function 99"),
        ("VSCSI_TASK_LUN", "task management function 5 at LUN 9"),
        ("VSCSI_TARGET", "task management"),
    ]
    assert EXPLAINER.explain(device.refusals.last(1)[0], device.geometry) == (
        "scsi: task management was refused (UNSUPPORTED): the host has one target, which is number 0 "
        "[virtio 1.4 SCSI host, VIRTIO_SCSI_S_BAD_TARGET]"
    )


def test_a_scan_for_targets_is_no_refusal(target: Target, device: ZonedDevice) -> None:
    for number in range(1, 20):
        for cdb in (bytes.fromhex("12 00 00 0024 00"), bytes(6), bytes.fromhex("a0 00 00 000000 00001000 00 00")):
            _, answer = execute(target, chain([header(cdb, bytes((1, number, 0x40)) + bytes(5))], [108, 4096]))
            assert response(answer)[3] == Response.BAD_TARGET
    assert device.refusals.last_seq == 0


@given(frame=st.binary(min_size=51, max_size=60), out=st.integers(0, 600), room=st.integers(108, 800))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frame_is_answered_and_each_refusal_noted(
    target: Target, device: ZonedDevice, frame: bytes, out: int, room: int
) -> None:
    for lun in (frame[:8], DISK):
        before = device.refusals.last_seq
        request = chain([lun + frame[8:], bytes(out)] if out else [lun + frame[8:]], [room])
        length, answer = execute(target, request)
        assert 108 <= length <= room
        _, _, status, code = response(answer)
        assert code in set(map(int, Response))
        refused = bool(status or code) and frame[19] not in ENQUIRIES
        assert (device.refusals.last_seq > before) == refused


@given(
    kind=st.integers(0, 4),
    rest=st.binary(max_size=40)
    | st.tuples(st.integers(0, 12), st.just(DISK)).map(lambda t: bytes([t[0], 0, 0, 0]) + t[1]),
    room=st.integers(0, 12),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_control_request_is_answered_or_breaks_the_ring(
    target: Target, device: ZonedDevice, kind: int, rest: bytes, room: int
) -> None:
    frame = chain([kind.to_bytes(4, "little") + rest], [room] if room else [])
    before = device.refusals.last_seq
    try:
        length = ControlQueue(target).execute(frame)
    except BrokenRingError:
        return
    assert length <= room
    assert (device.refusals.last_seq > before) == (frame[2][0][0] in LAST_HOLDS if kind == 0 else False)


def test_a_request_that_cannot_be_served_is_answered_with_failure(target: Target, device: ZonedDevice) -> None:
    request = chain([header(bytes(6))], [100, 8, 512])
    assert RequestQueue(target).fail(request) == 108
    assert response(b"".join(request[2])) == (0, 0, 0, Response.FAILURE)
    management = chain([struct.pack("<II8sQ", 0, 99, DISK, 7)], [1])
    assert ControlQueue(target).fail(management) == 1
    assert bytes(management[2][0]) == bytes((Response.FAILURE,))
    query = chain([struct.pack("<I8sI", 1, DISK, 0)], [5])
    assert ControlQueue(target).fail(query) == 5
    assert bytes(query[2][0]) == bytes(4) + bytes((Response.FAILURE,))
    assert device.refusals.last_seq == 0
    for queue, frame in ((RequestQueue(target), chain([], [107])), (ControlQueue(target), chain([], []))):
        with pytest.raises(BrokenRingError, match="for the answer"):
            queue.fail(frame)


def test_a_request_that_is_too_long_is_explained(target: Target, device: ZonedDevice) -> None:
    for queue, frame in (
        (RequestQueue(target), chain([header(bytes(6))], [108, 512])),
        (ControlQueue(target), chain([bytes(24)], [1])),
    ):
        queue.refuse_oversized(frame)
    assert [(refusal.rule, refusal.request) for refusal in device.refusals.last(10)] == [
        (HostRule.VSCSI_OVERSIZED, "a request with 671 bytes of buffers"),
        (HostRule.VSCSI_OVERSIZED, "a request with 25 bytes of buffers"),
    ]


def test_the_request_that_was_judged_is_the_one_that_is_executed(target: Target, device: ZonedDevice) -> None:
    """The guest's other processor changes the CDB in between."""
    flush, read_capacity = bytes.fromhex("35 00 00000000 00 0000 00"), READ_CAPACITY
    queue = RequestQueue(target)
    request = chain([header(flush)], [108, 32])
    deferred = queue.step([request], 0, [], lambda _index, _spans: None)
    assert isinstance(deferred, Deferred)
    request[1][0][:] = header(read_capacity)
    assert deferred.execute() == 140
    assert device.statistics()["flushes"] == 1
