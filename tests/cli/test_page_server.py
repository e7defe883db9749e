"""The live page: who is let in, and what a browser sees of an image at work."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import h11
import pytest

from tests.browser import browser
from tests.cli.conftest import fails, held, ok
from tests.requires import requires
from zonefs_emu.cli.page_server import CONNECTIONS_MAX, PageServer


@pytest.fixture
def url(fresh: Path) -> Iterator[str]:
    """The address of the page of ``fresh``, which a daemon has."""
    command = [sys.executable, "-m", "zonefs_emu", "watch", str(fresh), "--http", "--interval", "0.1"]
    with held(fresh), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        assert process.wait(timeout=20) == 0


def connect(url: str) -> socket.socket:
    found = re.search(r":(\d+)/", url)
    assert found is not None
    port = int(found[1])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.parametrize("nr_browsers", [0, 1, 4])
def test_signals_that_come_while_it_ends_are_dropped(fresh: Path, nr_browsers: int) -> None:
    """An exception of a signal handler would meet the event loop in the middle of its end, which it cannot survive."""
    command = [sys.executable, "-m", "zonefs_emu", "watch", str(fresh), "--http", "--interval", "0.1"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as kept,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        host, token = url.removeprefix("http://").split("/?token=")
        for _ in range(nr_browsers):
            browser_socket = kept.enter_context(connect(url))
            browser_socket.sendall(f"GET /events?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert browser_socket.recv(9) == b"HTTP/1.1 "
        while process.poll() is None:
            process.terminate()
        assert process.stderr.read() == ""
        # One that comes when the event loop is gone ends the interpreter, as it ends that of any verb.
        assert process.returncode in {0, 128 + signal.SIGTERM, -signal.SIGTERM}


def ask(url: str, text: str) -> str:
    """Send *text*, in which HOST and TOKEN are the server's, and return all that comes."""
    host, token = url.removeprefix("http://").split("/?token=")
    with connect(url) as peer:
        answer = b""
        # A server that closes without having read all resets the connection.
        with suppress(ConnectionResetError, BrokenPipeError):
            peer.sendall(text.replace("HOST", host).replace("TOKEN", token).replace("\n", "\r\n").encode())
            while part := peer.recv(1 << 16):
                answer += part
    return answer.decode()


def test_the_page_is_served_to_those_who_have_its_address(url: str) -> None:
    answer = ask(url, "GET /?token=TOKEN HTTP/1.1\nHost: HOST\n\n")
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    assert "connect-src 'self'" in head
    assert body.startswith("<!doctype html>")
    assert '"live": true' in body


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET / HTTP/1.1\nHost: HOST\n\n", 403),
        ("GET /?token=guess HTTP/1.1\nHost: HOST\n\n", 403),
        ("GET /?token=TOKEN HTTP/1.1\nHost: evil.example\n\n", 421),
        ("GET /events?token=TOKEN HTTP/1.1\nHost: HOST\nOrigin: http://evil.example\n\n", 403),
        ("POST /?token=TOKEN HTTP/1.1\nHost: HOST\n\n", 405),
        ("GET /etc/passwd?token=TOKEN HTTP/1.1\nHost: HOST\n\n", 404),
        ("GET //[?token=TOKEN HTTP/1.1\nHost: HOST\n\n", 400),
    ],
)
def test_others_are_not_let_in(url: str, request_text: str, status: int) -> None:
    assert ask(url, request_text).startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize("text", ["no HTTP at all\n\n", "GET / HTTP/1.1\nHost: HOST\nX: " + "x" * 100_000 + "\n\n"])
def test_what_is_no_request_ends_its_connection_alone(url: str, text: str) -> None:
    assert ask(url, text) == ""
    assert ask(url, "GET /?token=TOKEN HTTP/1.1\nHost: HOST\n\n").startswith("HTTP/1.1 200")


def test_connections_are_few(url: str) -> None:
    peers = [connect(url) for _ in range(CONNECTIONS_MAX)]
    try:
        assert ask(url, "").startswith("HTTP/1.1 503")
    finally:
        for peer in peers:
            peer.close()


def test_events_are_all_zones_and_then_what_changes(url: str, fresh: Path) -> None:
    host, token = url.removeprefix("http://").split("/?token=")
    with connect(url) as peer, peer.makefile("rb") as lines:
        peer.sendall(f"GET /events?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

        def event(name: str) -> str:
            while line := lines.readline().decode():
                if line == f"event: {name}\n":
                    return lines.readline().decode()
            raise AssertionError

        assert '"nr_zones": 8' in event("zones")
        ok("write", fresh, "--zone", 3, stdin=bytes(4096))
        assert '"zones": [[3, 2, 8]]' in event("changes")
        assert '"writes": 0' not in event("rates")
        fails("write", fresh, "--zone", 3, "--offset", "512K", stdin=bytes(4096))
        while "refused: cli" not in event("news"):
            pass


def test_the_counters_of_a_zone_are_told_on_request(url: str, fresh: Path) -> None:
    ok("write", fresh, "--zone", 3, stdin=bytes(4096))
    ok("read", fresh, "--zone", 3)
    asked = "GET /zone?token=TOKEN&number={} HTTP/1.1\nHost: HOST\n\n"
    assert ask(url, asked.format(3)).endswith('\r\n\r\n{"writes": 1, "reads": 1}')
    assert ask(url, asked.format(4)).endswith("\r\n\r\n{}")
    assert ask(url, asked.format("")).startswith("HTTP/1.1 400 ")
    assert ask(url, asked.format("-1")).startswith("HTTP/1.1 400 ")
    assert ask(url, asked.format(8)).startswith("HTTP/1.1 500 ")


def test_addresses_that_are_none(fresh: Path) -> None:
    assert "is not ADDRESS:PORT" in fails("watch", fresh, "--http", "127.0.0.1:http", code=2)
    assert "is not ADDRESS:PORT" in fails("watch", fresh, "--http", "127.0.0.1:" + "1" * 5000, code=2)
    refusal = fails("watch", fresh, "--http", "0.0.0.0:0", code=2)
    assert "at 127.0.0.1 only, as it is not encrypted, and not at 0.0.0.0" in refusal
    assert "No such file" in fails("watch", fresh.with_name("absent"), "--http", "127.0.0.1:0")


def test_an_address_that_is_in_use_is_named(fresh: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"{place}: Address already in use" in fails("watch", fresh, "--http", place)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:80", "127.0.0.1:80"])
def test_browsers_leave_out_the_port_of_http(fresh: Path, host: str) -> None:
    server = PageServer(fresh, interval_s=1, port=80)
    token = server.url.partition("?")[2]
    headers = [("Host", host), ("Origin", f"http://{host}")]
    request = h11.Request(method="GET", target=f"/?{token}", headers=headers)
    assert server._refusal(request) is None


def test_an_image_that_is_replaced_is_shown(tmp_path: Path) -> None:
    image, other = tmp_path / "a.img", tmp_path / "b.img"
    ok("create", image, "--size", "32M", "--zone-size", "4M")
    ok("create", other, "--size", "64M", "--zone-size", "4M")
    command = [sys.executable, "-m", "zonefs_emu", "watch", str(image), "--http", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        host, token = url.removeprefix("http://").split("/?token=")
        with connect(url) as peer, peer.makefile("rb") as lines:
            peer.sendall(f"GET /events?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            seen = b""
            while b"event: rates" not in seen:
                seen = lines.readline()
                assert seen
            other.replace(image)
            while b'"nr_zones": 16' not in seen:
                seen = lines.readline()
                assert seen, "the server has ended"
        process.terminate()
        assert process.stderr.read() == ""


def test_pages_that_were_closed_are_no_clients(fresh: Path) -> None:
    command = [sys.executable, "-m", "zonefs_emu", "watch", str(fresh), "--http", "--interval", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        host, token = url.removeprefix("http://").split("/?token=")
        for _ in range(2 * CONNECTIONS_MAX):
            with connect(url) as peer:
                peer.sendall(f"GET /events?token={token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert peer.recv(12) == b"HTTP/1.1 200"
        process.terminate()


@pytest.mark.slow
def test_a_browser_sees_a_write(url: str, fresh: Path, tmp_path: Path) -> None:
    requires("chromium")
    with browser(tmp_path / "browser") as page:
        page.open(url)
        # What it has from its own first event on is live.
        page.run("(async () => { while (!seen.length) await new Promise(r => setTimeout(r, 10)) })()")
        page.run("say(4)")
        ok("write", fresh, "--zone", 4, stdin=bytes(8192))
        page.run("(async () => { while (written[4] != 16) await new Promise(r => setTimeout(r, 10)) })()")
        assert page.text("limits") == "1 of 3 open, 1 of 4 active"
        # Its counters, and the rates, come a moment later.
        page.run(
            "(async () => { while (!byId('detail').textContent.endsWith(', 1 writes') ||"
            " !byId('rates').textContent.startsWith('writes '))"
            " await new Promise(r => setTimeout(r, 10)) })()"
        )
        assert page.run("document.querySelector('#rates polyline').points.length") >= 2
        counts = page.text("filters")
        assert re.search(r"oi implicitly open 1", counts)
