import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from zonefs_emu.daemon import control, framing, rendezvous
from zonefs_emu.daemon.client import call, open_target
from zonefs_emu.daemon.control import ControlServer
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice


@pytest.fixture
async def server(image: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    device = ZonedDevice.open(image)
    listener, _ = rendezvous.listen(image, backlog=16)
    await nursery.start(ControlServer(listener, Verbs(device)).run)
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
    device = ZonedDevice.open(image)
    verbs = Verbs(device)
    ended = trio.Event()

    def endless(_request: object, _payload: bytes) -> Iterator[Message]:
        try:
            while True:
                yield {"more": True}, bytes(4096)
        finally:
            ended.set()

    verbs._verbs = {**verbs._verbs, "endless": endless}
    listener, _ = rendezvous.listen(image, backlog=16)
    await nursery.start(ControlServer(listener, verbs).run)

    def ask_once() -> None:
        with open_target(image) as target:
            next(target.stream({"verb": "endless"}))
            if who == "session":
                trio.from_thread.run_sync(nursery.cancel_scope.cancel)
            else:
                assert not ended.is_set()

    with trio.CancelScope(shield=True), trio.fail_after(60):
        await trio.to_thread.run_sync(ask_once)
        await ended.wait()
    device.close()


GARBAGE: list[tuple[bytes, str]] = [
    (b"GET / HTTP/1.1\r\n\r\n", "does not speak our protocol"),
    (b"\0" * 12, "does not speak our protocol"),
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
    assert f"user {os.geteuid() + 1} may not control this image" in sentence(answer)


async def test_the_kernels_word_counts(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    peer_uid: Callable[[trio.SocketStream], int] = control._peer_uid

    def noted(stream: trio.SocketStream) -> int:
        seen.append(peer_uid(stream))
        return seen[-1]

    monkeypatch.setattr(control, "_peer_uid", noted)
    assert await is_alive(server)
    assert seen == [os.geteuid()]


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
