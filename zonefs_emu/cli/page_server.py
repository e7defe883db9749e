"""``watch --http``: the page of :mod:`zonefs_emu.cli.page`, live, over HTTP for browsers of this machine.

Read-only. Any program of this machine can send requests to this server, and so can the pages of any site, through the
user's browser. So a request needs the token of the printed address, the Host of this server, and no Origin of another
one. Requests are bounded in bytes, in time and in connections, and an error costs its connection.

The image is read only while a page is open, and its zones only when the device's counters have changed. h11 handles
HTTP without I/O; a server framework would bring an event loop of its own.
"""

import hmac
import json
import logging
import re
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import h11
import trio

from zonefs_emu.cli.common import info_of, zones_of
from zonefs_emu.cli.page import ZONE_COUNTERS, pack, page, shape
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.ending import EndBySignal
from zonefs_emu.daemon.framing import Json
from zonefs_emu.errors import UsageError, ZonedError, host_sentence, printable
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Zone

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 8
_HTTP_PORT: Final = 80
_REQUEST_BYTES_MAX: Final = 16 << 10
_REQUEST_S: Final = 10.0
_SEND_S: Final = 30.0
#: A browser that is more than this many events behind is disconnected; it connects again by itself.
_BACKLOG: Final = 16
#: More changed zones than this are sent as all zones, compressed.
_CHANGES_MAX: Final = 2000
_REFUSALS: Final = 5
_RECEIVE_BYTES: Final = 1 << 14
_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Connection", "close"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The image at one moment. *news*: sentences on front-ends, faults and refusals."""

    time_ns: int
    info: dict[str, Json]
    counters: dict[str, Json]
    zones: tuple[Zone, ...]
    news: tuple[str, ...]


class PageServer:
    """Serves the page of *image* to browsers. While a page is open, the image is read every *interval_s* seconds.

    The URL is known once :meth:`run` has called ``started`` of its task status.
    """

    def __init__(self, image: Path, *, interval_s: float, host: str = "127.0.0.1", port: int = 0) -> None:
        self._image = image
        self._interval_s = interval_s
        self._host, self._port = host, port
        self._token = secrets.token_urlsafe(16)
        self._clients: set[trio.MemorySendChannel[tuple[str, Json]]] = set()
        self._connections = 0
        self._looking = trio.Event()
        self._last: _Look | None = None

    @property
    def url(self) -> str:
        """The address of the page, with the token for access."""
        return f"http://{self._authority}/?token={self._token}"

    @property
    def _authority(self) -> str:
        return f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. An error of the image is shown on the page, and the next look may succeed.

        Raises:
            OSError: the address cannot be used.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except OSError as error:
            # The error itself does not name the address.
            raise OSError(error.errno, error.strerror or str(error), self._authority) from None
        self._port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_on)
            await nursery.start(partial(trio.serve_listeners, self._serve, listeners))
            task_status.started()

    # -- looking ------------------------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            if not self._clients:
                self._last = None
                self._looking = trio.Event()
                await self._looking.wait()
            try:
                await self._look_and_tell()
            except (ZonedError, OSError) as error:
                sentence = host_sentence(error) if isinstance(error, OSError) else str(error)
                self._tell("news", [printable(sentence)])
            await trio.sleep(self._interval_s)

    async def _look_and_tell(self) -> None:
        before = self._last
        look = self._last = await trio.to_thread.run_sync(_look, self._image, before)
        if before is None:
            return
        if look.info["uuid"] != before.info["uuid"]:
            # Another image has taken the place: a page of another shape loads itself again.
            self._tell("zones", _all_zones(look))
            self._tell("news", list(look.news))
            return
        if look.zones is not before.zones:
            pairs = zip(look.zones, before.zones, strict=True)
            changed = [zone for zone, old in pairs if (zone.cond, zone.wp) != (old.cond, old.wp)]
            if len(changed) > _CHANGES_MAX:
                self._tell("zones", _all_zones(look))
            elif changed or look.info != before.info:
                changes: list[Json] = [[zone.zone_no, int(zone.cond), zone.wp - zone.start] for zone in changed]
                self._tell("changes", {"zones": changes, "info": shape(look.info)})
        self._tell("rates", {**_rates(before, look)})
        self._tell("news", list(look.news))

    def _tell(self, event: str, data: Json) -> None:
        for client in tuple(self._clients):
            try:
                client.send_nowait((event, data))
            except trio.WouldBlock:
                self._clients.discard(client)
                client.close()

    @asynccontextmanager
    async def _events(self) -> AsyncIterator["trio.MemoryReceiveChannel[tuple[str, Json]]"]:
        """Yield the events of one client: all zones first, then changes."""
        sender, receiver = trio.open_memory_channel[tuple[str, Json]](_BACKLOG)
        look = await trio.to_thread.run_sync(_look, self._image, self._last)
        self._last = self._last or look
        sender.send_nowait(("zones", _all_zones(look)))
        self._clients.add(sender)
        self._looking.set()
        try:
            yield receiver
        finally:
            self._clients.discard(sender)
            sender.close()

    # -- serving ------------------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Answer the one request of a connection; an error of the client ends its connection only."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES_MAX)
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                sentence = f"{CONNECTIONS_MAX} connections are served already, which is the most: close a page\n"
                await _answer(connection, stream, 503, sentence)
                return
            request = None
            with trio.move_on_after(_REQUEST_S):
                request = await _request(connection, stream)
            if request is not None:
                await self._respond(connection, stream, request)
        except (h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except (ZonedError, OSError) as error:
            sentence = host_sentence(error) if isinstance(error, OSError) else str(error)
            if connection.our_state is h11.SEND_RESPONSE:
                await _answer(connection, stream, 500, f"{printable(sentence)}\n")
        except Exception:  # the boundary of a connection: the others go on
            log.exception("a connection of a browser was ended")
        finally:
            self._connections -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()

    async def _respond(self, connection: h11.Connection, stream: trio.SocketStream, request: h11.Request) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            await _answer(connection, stream, *refusal)
            return
        path, query = _target(request)
        if path == "/":
            text = await trio.to_thread.run_sync(_page, self._image)
            await _answer(connection, stream, 200, text, "text/html; charset=utf-8")
        elif path == "/events":
            await self._send_events(connection, stream)
        elif path == "/zone":
            number = query.get("number", [""])[0]
            if not re.fullmatch(r"\d{1,9}", number, re.ASCII):
                await _answer(connection, stream, 400, "the parameter number= must be the number of a zone\n")
                return
            found = await trio.to_thread.run_sync(_zone_counters, self._image, int(number))
            await _answer(connection, stream, 200, json.dumps(found), "application/json")
        else:
            await _answer(connection, stream, 404, "only /, /events and /zone are served\n")

    def _refusal(self, request: h11.Request) -> tuple[int, str] | None:
        """Return the status and the sentence for a *request* that is refused, or None."""
        headers = {name: value.decode("ascii", "replace") for name, value in request.headers}
        own = {self._authority, f"localhost:{self._port}"}
        if self._port == _HTTP_PORT:
            # Browsers leave out the default port of HTTP.
            own |= {name.removesuffix(f":{_HTTP_PORT}") for name in own}
        if headers.get(b"host") not in own:
            return 421, f"the Host of a request must be {self._authority}\n"
        if headers.get(b"origin", f"http://{self._authority}") not in {f"http://{name}" for name in own}:
            return 403, "pages of other sites may send no requests to this server\n"
        try:
            _, query = _target(request)
        except ValueError:
            return 400, "the target of the request is no address\n"
        if not hmac.compare_digest(query.get("token", [""])[0].encode(), self._token.encode()):
            return 403, "the token is missing or wrong: open the address that zonefs-emu watch has printed\n"
        if request.method != b"GET":
            return 405, "only GET is served: the page cannot change anything\n"
        return None

    async def _send_events(self, connection: h11.Connection, stream: trio.SocketStream) -> None:
        async with self._events() as events, trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_end, stream, nursery.cancel_scope)
            # Caught inside the nursery, which would make a group of it.
            with suppress(trio.BrokenResourceError):
                await _send(
                    connection,
                    stream,
                    h11.Response(status_code=200, headers=[*_HEADERS, ("Content-Type", "text/event-stream")]),
                )
                async for event, data in events:
                    message = f"event: {event}\ndata: {json.dumps(data)}\n\n"
                    await _send(connection, stream, h11.Data(data=message.encode()))
            nursery.cancel_scope.cancel()


def _look(image: Path, before: _Look | None) -> _Look:
    """Read the state of *image*; the zones are those of *before* if the counters have not changed."""
    with open_target(image, readonly=True) as target:
        info = info_of(target)
        counters = call(target, {"verb": "stats"})[0]["device"]
        assert isinstance(counters, dict)
        same = (
            before is not None
            and info["uuid"] == before.info["uuid"]
            and counters == before.counters
            and shape(info) == shape(before.info)
        )
        zones = before.zones if before is not None and same else tuple(zones_of(target))
        refusals = call(target, {"verb": "why", "count": _REFUSALS})[0]["refusals"]
        faults = call(target, {"verb": "faults"})[0]["faults"]
    assert isinstance(refusals, list)
    assert isinstance(faults, list)
    front_ends = info["front_ends"]
    assert isinstance(front_ends, list)
    news = [f"{each['name']} at {each['where']}" for each in front_ends if isinstance(each, dict)]
    news += [f"fault: {json.dumps(each)}" for each in faults]
    news += [f"refused: {each['sentence']}" for each in refusals if isinstance(each, dict)]
    return _Look(
        time_ns=time.monotonic_ns(), info=info, counters=counters, zones=zones, news=tuple(map(printable, news))
    )  # fmt: skip


def _rates(before: _Look, look: _Look) -> dict[str, float]:
    """Return how many commands of each kind were done per second between two looks."""
    elapsed_s = max(look.time_ns - before.time_ns, 1) / 1e9

    def rate(name: str) -> float:
        new, old = look.counters.get(name, 0), before.counters.get(name, 0)
        return (new - old) / elapsed_s if isinstance(new, int) and isinstance(old, int) else 0.0

    return {name: rate(name) for name in ("writes", "appends", "reads", "resets", "flushes", "refused")}


def _zone_counters(image: Path, zone_no: int) -> dict[str, Json]:
    """Return the counters of one zone that are not 0.

    Raises:
        ZonedError: there is no such zone, or the counters are switched off. OSError: *image* cannot be opened.
    """
    with open_target(image, readonly=True) as target:
        counters = call(target, {"verb": "stats", "zone_no": zone_no})[0]["zone"]
    assert isinstance(counters, dict)
    return {name: counters[name] for name in ZONE_COUNTERS if counters.get(name)}


def _all_zones(look: _Look) -> dict[str, Json]:
    return {"zones": pack(look.zones), "info": shape(look.info)}


def _page(image: Path) -> str:
    with open_target(image, readonly=True) as target:
        return page(zones_of(target), info_of(target), title=printable(image.name), counters={}, live=True)


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request:
    """Return the request that a client sends.

    Raises:
        h11.RemoteProtocolError: it is no request, or longer than _REQUEST_BYTES_MAX.
        trio.BrokenResourceError: the client is gone.
    """
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            message = "no request"
            raise h11.RemoteProtocolError(message)


def _target(request: h11.Request) -> tuple[str, dict[str, list[str]]]:
    """Return the path and the parameters of the target of *request*.

    Raises:
        ValueError: it is no address.
    """
    target = urlsplit(request.target.decode("ascii", "replace"))
    return target.path, parse_qs(target.query)


async def _cancel_at_end(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel *scope* when the client has closed *stream*. Nothing that it sends meanwhile is used.

    Without this, the end of a page would be seen when the next event is sent, which may be an hour later.
    """
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(_RECEIVE_BYTES):
            pass
    scope.cancel()


async def _answer(
    connection: h11.Connection, stream: trio.SocketStream, status: int, text: str,
    kind: str = "text/plain; charset=utf-8",
) -> None:  # fmt: skip
    body = text.encode()
    headers = [*_HEADERS, ("Content-Type", kind), ("Content-Length", str(len(body)))]
    await _send(connection, stream, h11.Response(status_code=status, headers=headers))
    await _send(connection, stream, h11.Data(data=body))
    await _send(connection, stream, h11.EndOfMessage())


async def _send(connection: h11.Connection, stream: trio.SocketStream, event: h11.Event) -> None:
    data = connection.send(event)
    assert data is not None
    try:
        with trio.fail_after(_SEND_S):
            await stream.send_all(data)
    except trio.TooSlowError:
        message = "the client reads nothing"
        raise trio.BrokenResourceError(message) from None


def parse_place(text: str) -> tuple[str, int]:
    """Return the address and port in *text*: ADDRESS:PORT, ADDRESS or :PORT; 127.0.0.1 and any port by default.

    Raises:
        UsageError: it has another form, or another address than 127.0.0.1 or localhost.
    """
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "0")
    host = host or "127.0.0.1"
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 0xFFFF:
        message = f"'{text}' is not ADDRESS:PORT, such as 127.0.0.1:8080"
        raise UsageError(message)
    if host not in ("127.0.0.1", "localhost"):
        message = f"the page is served at 127.0.0.1 only, as it is not encrypted, and not at {host}: use a tunnel"
        raise UsageError(message)
    return "127.0.0.1", int(port)


def serve(image: Path, place: str, *, interval_s: float, ready: Callable[[str], None]) -> None:
    """Serve the page of *image* at *place* until interrupted; call *ready* with its URL.

    Raises:
        UsageError: as :func:`parse_place`. ZonedError: *image* is no image, or cannot be used.
        OSError: *image* cannot be opened, or the address cannot be used.
    """
    host, port = parse_place(place)
    # Checked here, so that the command fails and not the first browser.
    with open_target(image, readonly=True):
        pass
    server = PageServer(image, interval_s=interval_s, host=host, port=port)
    ended = threading.Event()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            ready(server.url)
            await trio.to_thread.run_sync(ended.wait, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    try:
        # The signal handler of other verbs raises an exception, which must not interrupt the event loop, not even while
        # it ends. So a thread waits for signals until the loop is gone; trio's receiver would be closed before that.
        with EndBySignal() as ending, ending.watching(ended.set):
            trio.run(main)
            if ending.came:
                # As after the signal of another verb, later ones are ignored: the interpreter prints what a handler
                # raises while an object is destroyed.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
