import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from zonefs_emu.daemon import control, framing, rendezvous
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.control import ControlServer
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError, UsageError
from zonefs_emu.front_ends.known import EXTENSIONS, open_target


class VerbsAndMore(Verbs):
    """The verbs of a daemon, and those of a test."""

    def __init__(self, device: ZonedDevice, more: dict[str, Callable[[object, bytes], Iterator[Message]]]) -> None:
        self._more = more
        super().__init__(device, pid=os.getpid(), extensions=EXTENSIONS)

    def _begin(self) -> None:
        super()._begin()
        self._verbs = {**self._verbs, **self._more}


async def serve(
    image: Path, device: ZonedDevice, nursery: trio.Nursery, **more: Callable[[object, bytes], Iterator[Message]]
) -> None:
    listener, _ = rendezvous.listen(image, backlog=16)
    await nursery.start(ControlServer(listener, VerbsAndMore(device, more)).run)


@pytest.fixture
async def server(image: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    device = ZonedDevice.open(image)
    listener, _ = rendezvous.listen(image, backlog=16)
    await nursery.start(ControlServer(listener, Verbs(device, extensions=EXTENSIONS)).run)
    yield image
    nursery.cancel_scope.cancel()
    device.close()


def ask(image: Path, verb: str) -> dict[str, Json]:
    with open_target(image) as target:
        assert target.live
        return call(target, {"verb": verb})[0]


async def is_alive(image: Path) -> bool:
    return (await trio.to_thread.run_sync(ask, image, "info"))["label"] == "test"


def converse(image: Path, *pieces: bytes, half_close: bool = True) -> bytes:
    """Send *pieces* as they are, and return all that comes back."""
    peer = rendezvous.connect(image)
    assert peer is not None
    with peer:
        peer.settimeout(20)
        answer = bytearray()
        # The server may close before it has taken all that we send.
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                peer.sendall(piece)
            if half_close:
                peer.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while part := peer.recv(65536):
                answer += part
        return bytes(answer)


def sentence(answer: bytes) -> str:
    object_bytes, _ = framing.decode_header(answer[:12])
    return str(framing.decode_object(answer[12 : 12 + object_bytes])["error"])


async def test_many_requests_on_one_connection(server: Path) -> None:
    def converse_properly() -> None:
        with open_target(server) as target:
            for i in range(10):
                assert call(target, {"verb": "append", "zone_no": 1}, bytes(4096))[0]["append_sector"] == 2048 + 8 * i
            assert len(list(target.stream({"verb": "report"}))) == 2

    await trio.to_thread.run_sync(converse_properly)


@pytest.mark.parametrize("who", ["client", "session"])
async def test_a_verb_that_nobody_listens_to_any_more_is_ended(image: Path, nursery: trio.Nursery, who: str) -> None:
    ended = threading.Event()

    def endless(_request: object, _payload: bytes) -> Iterator[Message]:
        try:
            while True:
                yield {"more": True}, bytes(4096)
        finally:
            ended.set()

    device = ZonedDevice.open(image)
    await serve(image, device, nursery, endless=endless)

    def ask_once() -> None:
        with open_target(image) as target:
            next(target.stream({"verb": "endless"}))
            if who == "session":
                trio.from_thread.run_sync(nursery.cancel_scope.cancel)
            else:
                assert not ended.is_set()

    with trio.CancelScope(shield=True), trio.fail_after(60):
        await trio.to_thread.run_sync(ask_once)
        await trio.to_thread.run_sync(ended.wait)
    device.close()


GARBAGE: list[tuple[bytes, str]] = [
    (b"GET / HTTP/1.1\r\n\r\n", "does not speak zonefs_emu's protocol"),
    (b"\0" * 12, "does not speak zonefs_emu's protocol"),
    (os.urandom(5000), ""),
    (b"Z", "closed the connection in the middle"),
    (b"ZFE1", "closed the connection in the middle"),
    (struct.pack("<4sII", b"ZFE1", 10, 0), "closed the connection in the middle"),
    (struct.pack("<4sII", b"ZFE1", 0xFFFFFFFF, 0), "too long"),
    (struct.pack("<4sII", b"ZFE1", 2, 0xFFFFFFFF), "too long"),
    (struct.pack("<4sII", b"ZFE1", 2, 0) + b"[]", "not a JSON object"),
    (struct.pack("<4sII", b"ZFE1", 50_000, 0) + b"[" * 50_000, "not a JSON object"),
    (struct.pack("<4sII", b"ZFE1", 2, 100) + b"{}" + b"x" * 50, "closed the connection in the middle"),
    (framing.encode({"verb": "sing"}), "there is no verb 'sing'"),
    (framing.encode({"verb": "write", "zone_no": 1e300}, bytes(4096)), "must be a number"),
]


@pytest.mark.parametrize(("garbage", "expected"), GARBAGE)
async def test_garbage_costs_its_connection_and_nothing_else(garbage: bytes, expected: str, server: Path) -> None:
    answer = await trio.to_thread.run_sync(converse, server, garbage)
    if expected:
        assert expected in sentence(answer)
    assert await is_alive(server)


async def test_a_request_in_single_bytes_is_understood(server: Path) -> None:
    request = framing.encode({"verb": "stats"})
    pieces = [request[i : i + 1] for i in range(len(request))]
    answer = await trio.to_thread.run_sync(lambda: converse(server, *pieces))
    assert b"nr_open" in answer


async def test_a_client_that_goes_away_in_the_middle_of_a_report(server: Path) -> None:
    def leave() -> None:
        peer = rendezvous.connect(server)
        assert peer is not None
        # Reset, so that the server's next send fails.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sendall(framing.encode({"verb": "report"}) * 100)
        peer.close()

    for _ in range(5):
        await trio.to_thread.run_sync(leave)
    assert await is_alive(server)


async def test_a_message_that_never_ends_is_given_up(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MESSAGE_S", 0.1)
    answer = await trio.to_thread.run_sync(lambda: converse(server, b"ZFE1", half_close=False))
    assert "did not finish it" in sentence(answer)


async def test_a_silent_client_is_sent_away(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "FIRST_S", 0.1)
    assert await trio.to_thread.run_sync(lambda: converse(server, half_close=False)) == b""


async def test_a_client_that_does_not_read_holds_up_nobody(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MESSAGE_S", 0.5)
    peer = rendezvous.connect(server)
    assert peer is not None
    with peer:
        peer.sendall(framing.encode({"verb": "read", "sector": 0, "nr_sectors": 2048}) * 4)
        assert await is_alive(server)
        await trio.sleep(1)
        assert await is_alive(server)


async def test_clients_beyond_the_limit_are_told(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONNECTIONS_MAX", 2)
    held = [rendezvous.connect(server) for _ in range(2)]
    with trio.fail_after(10):
        while b"already connected" not in await trio.to_thread.run_sync(lambda: converse(server)):  # noqa: ASYNC110  (the event is in a thread)
            await trio.sleep(0.01)
    for peer in held:
        assert peer is not None
        peer.close()
    with trio.fail_after(10):
        while b"already connected" in await trio.to_thread.run_sync(lambda: converse(server)):  # noqa: ASYNC110  (the event is in a thread)
            await trio.sleep(0.01)
    assert await is_alive(server)


async def test_another_user_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_peer_uid", lambda stream: os.geteuid() + 1)
    request = framing.encode({"verb": "info"})
    answer = await trio.to_thread.run_sync(converse, server, request)
    assert "may not control this image: only user root and root may" in sentence(answer)


async def test_the_kernels_word_counts(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    peer_uid: Callable[[trio.SocketStream], int] = control._peer_uid

    def noted(stream: trio.SocketStream) -> int:
        seen.append(peer_uid(stream))
        return seen[-1]

    monkeypatch.setattr(control, "_peer_uid", noted)
    assert await is_alive(server)
    assert seen == [os.geteuid()]


async def test_a_client_that_was_welcomed_is_answered_by_a_session_that_ends(
    image: Path, nursery: trio.Nursery
) -> None:
    device = ZonedDevice.open(image)
    listener, _ = rendezvous.listen(image, backlog=16)
    ending = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[object]) -> None:
        with ending:
            await ControlServer(listener, Verbs(device, extensions=EXTENSIONS)).run(task_status=task_status)
        device.close()

    await nursery.start(serve)
    # The daemon answers the hello in open_target().
    held = await trio.to_thread.run_sync(open_target, image)
    target = held.__enter__()
    ending.cancel()
    with trio.fail_after(10):
        await trio.testing.wait_all_tasks_blocked()
        assert not device.image.is_closed
        assert (await trio.to_thread.run_sync(lambda: call(target, {"verb": "info"})))[0]["label"] == "test"
        held.__exit__(None, None, None)
        while not device.image.is_closed:  # noqa: ASYNC110  (nothing tells)
            await trio.sleep(0.01)


async def test_a_client_that_asks_nothing_after_its_hello_is_not_waited_for_long(
    image: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "NEXT_S", 0.05)
    device = ZonedDevice.open(image)
    listener, _ = rendezvous.listen(image, backlog=16)
    async with trio.open_nursery() as session:
        await session.start(ControlServer(listener, Verbs(device, extensions=EXTENSIONS)).run)
        held = await trio.to_thread.run_sync(open_target, image)
        target = held.__enter__()
        session.cancel_scope.cancel()
    with pytest.raises(PeerError, match="ended before it answered"):
        await trio.to_thread.run_sync(lambda: call(target, {"verb": "info"}))
    held.__exit__(None, None, None)
    device.close()


async def test_several_clients_at_once(server: Path) -> None:
    def append(results: list[int]) -> None:
        with open_target(server) as target:
            for _ in range(50):
                sector = call(target, {"verb": "append", "zone_no": 1}, bytes(4096))[0]["append_sector"]
                assert isinstance(sector, int)
                results.append(sector)

    results: list[int] = []
    threads = [threading.Thread(target=append, args=(results,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    assert sorted(results) == [2048 + 8 * i for i in range(200)]


def _broken(_request: object, _payload: bytes) -> Iterator[Message]:
    yield {"more": True}, b"the first reply"
    message = "a bug"
    raise AssertionError(message)


def _too_long(_request: object, _payload: bytes) -> Iterator[Message]:
    yield {"more": True}, bytes(framing.PAYLOAD_BYTES_MAX + 1)
    yield {}, b"a reply that would be taken for the answer to the next request"


@pytest.mark.parametrize(
    ("verb", "error"), [(_broken, "AssertionError: a bug"), (_too_long, "ValueError: a message of .* is too long")]
)
async def test_an_unforeseen_error_is_the_answer_to_its_verb(
    verb: Callable[[object, bytes], Iterator[Message]], error: str, image: Path, nursery: trio.Nursery,
    expect_warning: Callable[[str], None],
) -> None:  # fmt: skip
    expect_warning(f"internal error in cli, verb broken: {error}")
    device = ZonedDevice.open(image)
    await serve(image, device, nursery, broken=verb)

    def ask_and_go_on() -> None:
        with open_target(image) as target:
            with pytest.raises(
                UsageError, match=f"^internal error: {error}; the daemon's log has the traceback"
            ) as met:
                list(target.stream({"verb": "broken"}))
            assert met.value.exit_code == 1
            # The connection goes on, and so does everything else.
            assert call(target, {"verb": "info"})[0]["label"] == "test"
            counters = call(target, {"verb": "stats"})[0]["device"]
            assert isinstance(counters, dict)
            assert counters["internal_errors"] == 1
            refusals = call(target, {"verb": "why"})[0]["refusals"]
            assert isinstance(refusals, list)
            assert isinstance(refusals[0], dict)
            assert "an error of its own" in str(refusals[0]["sentence"])
            assert "verb broken" in str(refusals[0]["sentence"])

    await trio.to_thread.run_sync(ask_and_go_on)
    nursery.cancel_scope.cancel()
    device.close()


def _broken_afterwards(_request: object, _payload: bytes) -> Iterator[Message]:
    yield {"done": True}, b""
    message = "a bug in a request without a reader"
    raise AssertionError(message)


async def test_nothing_follows_the_last_reply(image: Path, nursery: trio.Nursery) -> None:
    """An error after it would be taken for the reply to the next request, and each reply for that of the next."""
    device = ZonedDevice.open(image)
    await serve(image, device, nursery, broken=_broken_afterwards)

    def ask_and_go_on() -> None:
        with open_target(image) as target:
            for _ in range(3):
                assert call(target, {"verb": "broken"})[0] == {"done": True}
                assert call(target, {"verb": "info"})[0]["label"] == "test"

    await trio.to_thread.run_sync(ask_and_go_on)
    nursery.cancel_scope.cancel()
    device.close()


async def test_an_unforeseen_error_costs_its_connection(
    server: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in cli, a connection to the control socket: RuntimeError: a bug")

    def broken(_stream: trio.SocketStream) -> int:
        message = "a bug"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(control, "_peer_uid", broken)
        answer = await trio.to_thread.run_sync(converse, server)
    assert sentence(answer).startswith("internal error: RuntimeError: a bug")
    assert await is_alive(server)


@pytest.mark.parametrize("delayed", ["read", "write", "flush"])
async def test_a_verb_in_an_injected_delay_holds_up_no_other(delayed: str, image: Path, nursery: trio.Nursery) -> None:
    requests: dict[str, tuple[dict[str, Json], bytes]] = {
        "read": ({"verb": "read", "sector": 0, "nr_sectors": 8}, b""),
        "write": ({"verb": "write", "zone_no": 1}, bytes(4096)),
        "flush": ({"verb": "flush"}, b""),
    }
    device = ZonedDevice.open(image)
    begun, may_end = threading.Semaphore(0), threading.Event()

    def sleep_ns(_duration_ns: int) -> None:
        begun.release()
        may_end.wait()

    device.sleep_ns = sleep_ns
    await serve(image, device, nursery)
    answered: list[Json] = []

    def ask(request: dict[str, Json], payload: bytes) -> None:
        with open_target(image) as target:
            answered.append(call(target, request, payload)[0])

    def ask_for_everything() -> None:
        fault: dict[str, Json] = {"effect": "delay", "operations": [delayed], "every": True}
        fault |= {"delay_min_ns": 1, "delay_max_ns": 1}
        with open_target(image) as target:
            call(target, {"verb": "inject", "fault": fault})
        waiting = [threading.Thread(target=ask, args=requests[delayed]) for _ in range(8)]
        for thread in waiting:
            thread.start()
        for _ in waiting:
            begun.acquire()
        with open_target(image) as target:
            for name, (request, payload) in requests.items():
                if name != delayed:
                    call(target, request, payload)
            call(target, {"verb": "manage", "operation": "open", "zone_no": 2})
            call(target, {"verb": "set-cond", "zone_no": 3, "cond": 13})
            call(target, {"verb": "remove-fault", "id": 1})
            list(target.stream({"verb": "mkfs", "features": "", "label": "", "name": "it"}))
        assert answered == []
        may_end.set()
        for thread in waiting:
            thread.join()

    await trio.to_thread.run_sync(ask_for_everything)
    assert len(answered) == 8
    nursery.cancel_scope.cancel()
    device.close()


async def test_a_client_that_does_not_read_is_not_waited_for_at_the_end(server: Path, nursery: trio.Nursery) -> None:
    peer = rendezvous.connect(server)
    assert peer is not None
    with peer:
        peer.sendall(framing.encode({"verb": "read", "sector": 0, "nr_sectors": 2048}) * 4)
        # The reply does not fit into the socket's buffer.
        await trio.to_thread.run_sync(peer.recv, 12)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(20) as scope:
            while nursery.child_tasks:  # noqa: ASYNC110  (a nursery has no event for its last task)
                await trio.sleep(0.05)
        assert not scope.cancelled_caught
