"""Real sockets, and a host in Python: data in and out of capsules, what hosts do wrong, delays, events, keep alive."""

import errno
import gc
import random
import socket
import struct
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.memory_budget import memory_budget
from tests.nvme.conftest import BLOCK, CAPACITY, NR_ZONES, ZONE
from tests.nvme_tcp.conftest import Target, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode, SendAction
from zonefs_emu.nvme.controller import Feature, Register
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme_tcp import queue_connection
from zonefs_emu.nvme_tcp.pdu import COMMON, PduType
from zonefs_emu.nvme_tcp.queue_connection import Connection
from zonefs_emu.testing.nvme_initiator import NvmeQueue


def pattern(nr_bytes: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(nr_bytes)


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("in_capsule_max", [0, 8192, 128 << 10])
def test_data_comes_and_goes_whole(target: Target, digests: bool, in_capsule_max: int) -> None:
    with target.host(header_digest=digests, data_digest=digests) as host:
        queue = host.queue(1)
        queue.in_capsule_max = in_capsule_max
        slba = 0
        for nr_blocks in (1, 2, 29, 32, 33, 64, 31):
            data = pattern(nr_blocks * BLOCK, nr_blocks)
            assert queue.write(1, slba, data, BLOCK).status == 0
            assert queue.read(1, slba, nr_blocks, BLOCK).data == data
            slba += nr_blocks
        appended = queue.append(1, ZONE, pattern(BLOCK), BLOCK)
        assert (appended.status, appended.result) == (0, ZONE)
        assert queue.append(1, ZONE, pattern(20 * BLOCK), BLOCK).result == ZONE + 1
        assert list(host.zones(queue, 1, 2)) == [(14, CAPACITY, 0, (1 << 64) - 1), (2, CAPACITY, ZONE, ZONE + 21)]
        assert queue.flush(1).status == 0
        assert queue.flush(0xFFFFFFFF).status == 0


def test_commands_in_one_packet_are_answered_in_their_order(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        sent = b""
        for number in range(100):
            asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(number, 0, 0), length=BLOCK, inline=True)
            sent += queue.capsule(asked, bytes((number,)) * BLOCK)
        threading.Thread(target=queue.sock.sendall, args=(sent,)).start()
        replies = [queue.receive() for _ in range(100)]
        assert [reply.status for reply in replies] == [0] * 100
        assert [reply.sq_head for reply in replies] == [n % 128 for n in range(2, 102)]
        assert queue.read(1, 0, 100, BLOCK).data == b"".join(bytes((n,)) * BLOCK for n in range(100))


def test_refusals_have_their_status_and_are_not_to_be_retried(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        refused = queue.write(1, 5, bytes(BLOCK), BLOCK)
        assert (refused.status, refused.do_not_retry) == (0x1BC, True)
        assert queue.read(1, NR_ZONES * ZONE, 1, BLOCK).status == 0x080
        assert queue.call(0xC1, nsid=1).status == 0x001
        assert queue.call(IoOpcode.READ, nsid=2, cdws=(0, 0, 0), room=BLOCK).status == 0x00B
        assert queue.call(IoOpcode.READ, nsid=1, cdws=(0, 0, 0xFFFF), room=BLOCK).status == 0x002
        entries = host.log(Log.ERROR, room=4032).data
        statuses = [struct.unpack_from("<QHHH", entries, 64 * number) for number in range(6)]
        assert [entry[0] for entry in statuses] == [5, 4, 3, 2, 1, 0]
        assert [entry[1] for entry in statuses] == [1, 1, 1, 1, 1, 0]
        assert [entry[3] >> 1 for entry in statuses] == [0x4002, 0x400B, 0x4001, 0x4080, 0x41BC, 0]


def test_zone_management(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        assert queue.manage(1, SendAction.OPEN, ZONE).status == 0
        assert queue.manage(1, SendAction.CLOSE, ZONE).status == 0
        assert queue.manage(1, SendAction.CLOSE, ZONE * 2).status == 0x1BF
        assert queue.manage(1, SendAction.FINISH, ZONE).status == 0
        assert queue.manage(1, SendAction.RESET, select_all=True).status == 0
        assert [zone[0] for zone in host.zones(queue, 1, NR_ZONES)] == [1] * NR_ZONES


def test_data_that_does_not_fit_its_command(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        short = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 1), length=BLOCK, inline=True)
        queue.sock.sendall(queue.capsule(short, bytes(BLOCK)))
        assert queue.receive().status == 0x00F
        outside = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 1), length=BLOCK)
        queue.sock.sendall(queue.capsule(outside))
        assert queue.receive().status == 0x00F
        assert queue.write(1, 0, bytes(BLOCK), BLOCK).status == 0


@pytest.mark.parametrize(
    ("opcode", "changes", "nr_sent", "status"),
    [
        (IoOpcode.WRITE, {"flags": 0x00}, BLOCK, 0x002),
        (IoOpcode.WRITE, {"flags": 0x80}, BLOCK, 0x002),
        (IoOpcode.WRITE, {"prp2": BLOCK}, BLOCK, 0x011),
        (IoOpcode.WRITE, {"prp2": BLOCK | 0x5A << 56}, BLOCK, 0x011),
        (IoOpcode.WRITE, {"prp2": BLOCK | 0x40 << 56}, 0, 0x011),
        (IoOpcode.WRITE, {"prp1": BLOCK}, BLOCK, 0x016),
        (IoOpcode.WRITE, {"prp2": 512 | 0x01 << 56}, BLOCK, 0x00F),
        (IoOpcode.WRITE, {}, 0, 0x00F),
        (IoOpcode.READ, {}, 0, 0x011),
        (IoOpcode.READ, {"prp2": BLOCK | 0x5A << 56}, BLOCK, 0x011),
    ],
)
def test_a_descriptor_says_where_the_data_are(
    target: Target, opcode: int, changes: dict[str, int], nr_sent: int, status: int
) -> None:
    """Every command was carried out before, whatever its flags and the type of its descriptor."""
    with target.host() as host:
        queue = host.queue(1)
        asked = queue.command(opcode, nsid=1, cdws=(0, 0, 0), length=BLOCK, inline=True)._replace(**changes)
        queue.sock.sendall(queue.capsule(asked, bytes(nr_sent)))
        reply = queue.receive()
        assert (reply.cid, reply.status, reply.do_not_retry) == (asked.cid, status, True)
        assert struct.unpack_from("<8xHHH", host.log(Log.ERROR, room=64).data) == (1, asked.cid, (0x4000 | status) << 1)
        assert int(EXPLAINER.answers(target.device.refusals.last(1)[0])["nvme"][:3], 16) == status
        assert list(host.zones(queue, 1, 1)) == [(1, CAPACITY, 0, 0)], "nothing was written"


def test_flags_and_descriptors_of_admin_commands(target: Target) -> None:
    with target.host() as host:
        for changes, status in (({"flags": 0}, 0x002), ({"flags": 0x41}, 0x002), ({"prp2": 4096}, 0x011)):
            asked = host.admin.command(AdminOpcode.IDENTIFY, cdws=(1,), length=4096)._replace(**changes)
            host.admin.sock.sendall(host.admin.capsule(asked))
            assert host.admin.receive().status == status
        assert host.identify(1).status == 0


def test_data_behind_an_offset_of_the_capsule(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK, inline=True)._replace(prp1=512)
        queue.sock.sendall(queue.capsule(asked, bytes(512) + pattern(BLOCK)))
        assert queue.receive().status == 0
        assert queue.read(1, 0, 1, BLOCK).data == pattern(BLOCK)


def test_a_host_gets_no_more_data_than_it_has_room_for(target: Target) -> None:
    """Linux ends a connection on which more arrives."""
    with target.host() as host:
        queue = host.queue(1)
        short = queue.call(IoOpcode.READ, nsid=1, cdws=(0, 0, 1), room=BLOCK)
        assert (short.status, short.data, short.do_not_retry) == (0x00F, b"", True)
        assert host.ask(AdminOpcode.IDENTIFY, cdws=(1,), room=512).status == 0x00F
        assert queue.call(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=2 * BLOCK).data == bytes(BLOCK)


def test_damaged_data_costs_the_command_and_can_be_sent_again(target: Target) -> None:
    with target.host(header_digest=True, data_digest=True) as host:
        queue = host.queue(1)
        asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK, inline=True)
        damaged = bytearray(queue.capsule(asked, bytes(BLOCK)))
        damaged[200] ^= 1
        queue.sock.sendall(damaged)
        reply = queue.receive()
        assert (reply.status, reply.do_not_retry) == (0x022, False)
        asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK)
        queue.sock.sendall(queue.capsule(asked))
        kind, _, _, _, length = COMMON.unpack(queue._read(8))
        assert kind == PduType.R2T
        queue._read(length - 8)
        damaged = bytearray(queue.data_pdu(asked.cid, asked.cid, 0, bytes(BLOCK), last=True))
        damaged[200] ^= 1
        queue.sock.sendall(damaged)
        assert queue.receive().status == 0x022
        assert queue.write(1, 0, bytes(BLOCK), BLOCK).status == 0
        assert struct.unpack_from("<8xHHH", host.log(Log.ERROR, room=64).data) == (1, asked.cid, 0x022 << 1)
        assert [refusal.request for refusal in target.device.refusals.last(9)] == ["write: 4096 bytes came damaged"] * 2


def ended(queue: NvmeQueue) -> tuple[int, int]:
    """Return why the target ends the connection: fatal error and field."""
    with pytest.raises(ConnectionError, match="ends the connection") as caught:
        queue.receive()
    words = str(caught.value).replace(",", "").split()
    assert queue.sock.recv(1) == b""
    queue.close()
    return int(words[-3]), int(words[-1])


def test_malformed_pdus_end_their_connection_only(target: Target) -> None:
    with target.host() as host:
        good = host.queue(1)
        for number, (sent, why) in enumerate(
            (
                (COMMON.pack(0x05, 0, 24, 0, 24) + bytes(16), (1, 0)),
                (COMMON.pack(0x00, 0, 128, 0, 128) + bytes(120), (2, 0)),
                (COMMON.pack(0x04, 0, 72, 0, 0xFFFFFF) + bytes(64), (1, 4)),
                (COMMON.pack(0x04, 0, 72, 60, 100) + bytes(92), (1, 3)),
                (struct.pack("<BBBBIHHII4x", 6, 4, 24, 24, 28, 7, 7, 0, 4) + bytes(4), (1, 8)),
            ),
            2,
        ):
            queue = host.queue(number)
            queue.sock.sendall(sent)
            assert ended(queue) == why
        assert good.write(1, 0, bytes(BLOCK), BLOCK).status == 0
        assert host.identify(1).status == 0


@pytest.mark.parametrize(
    ("offset", "nr_bytes", "field"),
    [(512, BLOCK, 12), (0, BLOCK + 512, 12), (0, 0, 12)],
    ids=["offset", "long", "none"],
)
def test_data_out_of_range_ends_the_connection(target: Target, offset: int, nr_bytes: int, field: int) -> None:
    with target.host() as host:
        queue = host.queue(1)
        asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK)
        queue.sock.sendall(queue.capsule(asked))
        assert queue._read(24)[0] == PduType.R2T
        payload = bytes(nr_bytes) if nr_bytes else b""
        pdu = bytearray(queue.data_pdu(asked.cid, asked.cid, offset, payload, last=True))
        if not nr_bytes:
            struct.pack_into("<I", pdu, 16, 4)
        queue.sock.sendall(pdu)
        assert ended(queue) == (4, field)
        assert list(host.zones(host.queue(2), 1, 1)) == [(1, CAPACITY, 0, 0)], "nothing was written"


def test_a_host_cannot_make_the_target_hold_more_than_its_queue(target: Target) -> None:
    """Commands that wait for data: as many as the queue has entries, and as many bytes as the limit allows."""
    with target.host() as host:
        queue = host.queue(1, sq_size=3)
        for _ in range(5):
            queue.sock.sendall(queue.capsule(queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK)))
        queue._read(4 * 24)
        assert ended(queue) == (5, 8)
        queue = host.queue(2)
        for _ in range(queue_connection.PENDING_BYTES_MAX // (512 << 10) + 1):
            asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 127), length=512 << 10)
            queue.sock.sendall(queue.capsule(asked))
        queue._read(queue_connection.PENDING_BYTES_MAX // (512 << 10) * 24)
        assert ended(queue) == (5, 8)


def test_the_memory_of_a_connection_ends_with_it(target: Target) -> None:
    """Without Python's collector, which counts objects and not bytes: a host that comes again and again fills it."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        with target.host() as host:
            queue = host.queue(1)
            for _ in range(8):
                asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 127), length=512 << 10)
                queue.sock.sendall(queue.capsule(asked))
            queue._read(8 * 24)
            assert tracemalloc.get_traced_memory()[0] > 4 << 20
        while target.server._connections:
            threading.Event().wait(0.01)
        while tracemalloc.get_traced_memory()[0] > 256 << 10:
            threading.Event().wait(0.01)
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_number_that_is_in_use(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        asked = queue.command(IoOpcode.WRITE, nsid=1, cdws=(0, 0, 0), length=BLOCK)
        queue.sock.sendall(queue.capsule(asked) * 2)
        queue._read(24)
        assert ended(queue) == (2, 10)


def test_commands_before_connect_and_before_the_controller_is_enabled(target: Target) -> None:
    queue = target.queue()
    queue.send(AdminOpcode.IDENTIFY, cdws=(1,), room=4096)
    assert ended(queue) == (2, 8)
    queue = target.queue()
    with pytest.raises(ConnectionError):
        queue.get_property(Register.CAP)
    queue.close()
    with target.host() as host:
        host.admin.set_property(Register.CC, 0)
        assert host.identify(1).status == 0x00C
        assert host.admin.get_property(0x500).status == 0x002
        assert host.admin.set_property(Register.CAP, 1).status == 0x002
        assert host.admin.disconnect().status == 0x002, "of an admin queue"
        refusals = target.device.refusals.last(4)
        assert [EXPLAINER.answers(refusal)["nvme"][:4] for refusal in refusals] == ["00Ch", "002h", "002h", "002h"]
        assert [refusal.request for refusal in refusals] == [
            "admin command identify: the controller is not ready",
            "admin command fabrics command: property get of 500h",
            "admin command fabrics command: property set of 0h",
            "admin command fabrics command: fabrics command type 08h",
        ]
        host.admin.set_property(Register.CC, 0x460061)
        entries = host.log(Log.ERROR, room=4032).data
        statuses = [struct.unpack_from("<12xH", entries, 64 * number)[0] >> 1 for number in range(5)]
        assert statuses == [0x4002, 0x4002, 0x4002, 0x400C, 0]
        assert host.admin.get_property(Register.CAP, wide=True).result >> 43 & 1


def test_disabling_the_controller_ends_its_queues(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        host.admin.set_property(Register.CC, 0)
        with pytest.raises(ConnectionError):
            queue.read(1, 0, 1, BLOCK)


def test_a_queue_that_says_goodbye(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sees the end of the connection may connect the queue again, however late the server's thread runs."""
    forget = target.server.forget

    def forget_late(connection: Connection) -> None:
        time.sleep(0.2)
        forget(connection)

    monkeypatch.setattr(target.server, "forget", forget_late)
    with target.host() as host:
        queue = host.queue(1)
        assert queue.disconnect().status == 0
        assert queue.sock.recv(1) == b""
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0


def delay(duration_ns: int, *, nr_zones: int = 0) -> Fault:
    """Delay all reads of the first zones, or of all of them."""
    return Fault(
        effect=Effect.DELAY, operations=frozenset((Operation.READ,)), nr_zones=nr_zones, every=True,
        delay_min_ns=duration_ns, delay_max_ns=duration_ns,
    )  # fmt: skip


def test_an_injected_delay_keeps_one_answer_back(target: Target) -> None:
    target.device.inject(delay(300_000_000, nr_zones=1))
    with target.host() as host:
        queue = host.queue(1)
        slow = queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=BLOCK)
        fast = queue.send(IoOpcode.READ, nsid=1, cdws=(ZONE, 0, 0), room=BLOCK)
        assert [queue.receive().cid for _ in range(2)] == [fast, slow]


def test_no_more_answers_wait_for_a_delay_than_the_queue_has_entries(target: Target) -> None:
    target.device.inject(delay(3_600_000_000_000))
    with target.host() as host:
        queue = host.queue(1, sq_size=3)
        for _ in range(5):
            queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=BLOCK)
        assert ended(queue) == (5, 8)


def test_a_flush_is_of_one_namespace_or_of_all(target: Target) -> None:
    with target.host() as host:
        queue = host.queue(1)
        assert [queue.flush(nsid).status for nsid in (1, 0xFFFFFFFF, 2, 0)] == [0, 0, 0x00B, 0x00B]


def test_the_end_does_not_wait_for_a_delay(device: ZonedDevice) -> None:
    device.inject(delay(3_600_000_000_000))
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=BLOCK)
        assert host.identify(1).status == 0


def test_a_zone_that_fails_is_an_event(target: Target) -> None:
    with target.host() as host:
        host.admin.call(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 27))
        cid = host.admin.send(AdminOpcode.ASYNC_EVENT)
        assert host.identify(1).status == 0
        target.device.port("other", VIRTIO).set_cond(3, Condition.OFFLINE)
        event = host.admin.receive()
        assert (event.cid, event.result) == (cid, 1 << 32 | 0xBFEF02)
        assert struct.unpack_from("<H6xQ", host.log(Log.CHANGED_ZONES, nsid=1).data) == (1, 3 * ZONE)


def test_a_namespace_that_fails_is_an_event(target: Target) -> None:
    with target.host() as host:
        host.admin.call(AdminOpcode.SET_FEATURES, cdws=(Feature.ASYNC_EVENTS, 1 << 8))
        cid = host.admin.send(AdminOpcode.ASYNC_EVENT)
        assert host.identify(0, nsid=1).data[99] == 0
        target.device.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")
        event = host.admin.receive()
        assert (event.cid, event.result) == (cid, 0x040002)
        assert struct.unpack_from("<2I", host.log(Log.CHANGED_NAMESPACES).data) == (1, 0)
        assert host.identify(0, nsid=1).data[99] == 1
        assert host.queue(1).write(1, 0, bytes(BLOCK), BLOCK).status == 0x280


def test_a_host_that_falls_silent_loses_its_controller(target: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the host has sent no keep alive in time; its controller is removed")
    host = target.host(keep_alive_ms=100)
    queue = host.queue(1)
    assert host.admin.sock.recv(1) == b""
    assert queue.sock.recv(1) == b""
    while target.server.statistics()["queues"]:
        time.sleep(0.01)
    host.close()


def test_an_unforeseen_exception_costs_its_command(
    target: Target, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in nvme, a command: ZeroDivisionError")
    with target.host() as host:
        queue = host.queue(1)
        with monkeypatch.context() as patch:
            patch.setattr("zonefs_emu.nvme.namespace._answer", lambda *_: 1 / 0)
            assert queue.flush(1).status == 0x006
            assert struct.unpack_from("<8xH2xH", host.log(Log.ERROR, room=64).data) == (1, 0x4006 << 1)
        assert queue.flush(1).status == 0
        assert target.device.statistics()["internal_errors"] == 1


@given(data=st.binary(max_size=400), connected=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_ends_its_connection_at_most(target: Target, data: bytes, connected: bool) -> None:
    # The buffers of two connections.
    with memory_budget(2 << 20), target.host() as host:
        sock = host.queue(1).sock if connected else target.raw()
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
        sock.close()
        assert host.identify(1).status == 0


COMMANDS = st.tuples(
    st.sampled_from([*IoOpcode, *AdminOpcode, 0xC0, 0xFF]),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    st.lists(st.integers(0, 0xFFFFFFFF) | st.integers(0, 3000), max_size=6),
    st.binary(max_size=64) | st.sampled_from([bytes(BLOCK), bytes(512)]),
    # Flags, offset, and type of the descriptor: as hosts send them, or any.
    st.none() | st.tuples(st.integers(0, 0xFF), st.integers(0, 5000), st.integers(0, 0xFF)),
)


#: The longest lengths that fields can say: 65,536 blocks, 4 GiB.
LONGEST = (0xFFFF << 16 | Log.ERROR, 0xFFFF, 0xFFFFFFFF)


@given(commands=st.lists(COMMANDS, min_size=1, max_size=8), qid=st.integers(0, 1))
@example(commands=[(opcode, 1, [0, 0, *LONGEST[2:]], b"", None) for opcode in IoOpcode], qid=1)
@example(commands=[(opcode, 0, [*LONGEST], b"", None) for opcode in AdminOpcode], qid=0)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_commands_are_answered_or_end_their_connection(
    target: Target, commands: list[tuple[int, int, list[int], bytes, tuple[int, int, int] | None]], qid: int
) -> None:
    # The buffers of four connections, what is held before it is sent, and what the host receives in one call.
    with memory_budget(8 << 20), target.host() as host, target.host() as other:
        queue = host.queue(1) if qid else host.admin
        for opcode, nsid, cdws, data, pointer in commands:
            asked = queue.command(opcode, nsid=nsid, cdws=cdws, length=len(data), inline=bool(data))
            if pointer is not None:
                flags, offset, kind = pointer
                asked = asked._replace(flags=flags, prp1=offset, prp2=len(data) | kind << 56)
            queue.sock.sendall(queue.capsule(asked, data))
        queue.sock.shutdown(socket.SHUT_WR)
        while queue.sock.recv(1 << 20):
            pass
        assert other.identify(1).status == 0
        assert other.queue(1).read(1, 0, 1, BLOCK).status == 0


def test_a_timed_drive_answers_each_command_at_its_time(device: ZonedDevice) -> None:
    """A reset of the drive takes 1.6 ms, a read 0.07 ms, and both a hundred times that here."""
    device.start_timing("zn540", scale=100)
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        assert queue.append(1, ZONE, bytes(BLOCK), BLOCK).result == ZONE
        slow = queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        quick = queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=BLOCK)
        assert [queue.receive().cid for _ in range(2)] == [quick, slow]
    assert device.timing is not None
    assert device.timing.statistics()["answers"] == 3


def test_an_answer_that_is_due_in_years_is_no_end_of_the_connection(device: ZonedDevice) -> None:
    device.start_timing("zn540", scale=1e12)
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        assert queue.call(0x55).status, "which is answered at once"
        device.stop_waiting()
        assert queue.receive().status == 0


def test_a_connection_that_has_ended_is_not_kept_for_an_answer_of_its(device: ZonedDevice) -> None:
    """It has a buffer of half a megabyte, and a host that loses patience connects again and again."""
    device.start_timing("zn540", scale=1e12)
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        assert queue.call(0x55).status, "which is answered at once"
        (connection,) = [weakref.ref(each) for each in target.server._connections if not each._is_admin]
        queue.close()
        while connection() is not None:
            threading.Event().wait(0.01)
            gc.collect()


def test_at_the_end_of_the_daemon_all_that_was_carried_out_is_answered(device: ZonedDevice) -> None:
    device.start_timing("zn540", scale=1_000_000)
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        assert host.identify(1).status == 0
        device.stop_waiting()
        assert queue.receive().status == 0
        queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        assert queue.receive().status == 0, "also what comes later"


def test_a_server_that_is_stopped_at_the_end_of_the_daemon_gives_the_answers_first(device: ZonedDevice) -> None:
    device.start_timing("zn540", scale=1_000_000)
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        for _ in range(5):
            queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(ZONE, 0, 0, 4))
        assert queue.call(0x55).status, "which is answered at once, and after the others have been read"
        device.stop_waiting()
        target.server.stop()
        assert [queue.receive().status for _ in range(5)] == [0] * 5
        assert queue.sock.recv(1) == b""


def test_a_delay_comes_on_top_of_the_time_of_the_drive(device: ZonedDevice) -> None:
    device.start_timing("zn540")
    device.inject(delay(300_000_000, nr_zones=1))
    with serving(device) as target, target.host() as host:
        queue = host.queue(1)
        slow = queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=BLOCK)
        fast = queue.send(IoOpcode.READ, nsid=1, cdws=(ZONE, 0, 0), room=BLOCK)
        assert [queue.receive().cid for _ in range(2)] == [fast, slow]
