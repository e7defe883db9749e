"""Hosts over TLS: with Python's TLS and with OpenSSL's own program, with the right and the wrong key, and without any.

Without Python 3.13 only its absence can be shown.
"""

import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.at_rest import assert_at_rest, threads_of
from tests.nvme.conftest import BLOCK
from tests.nvme_tcp.conftest import Target, needs_tls, serving
from tests.readable import is_readable
from tests.requires import requires
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN
from zonefs_emu.nvme_tcp import queue_connection, server, tls_keys
from zonefs_emu.nvme_tcp.fabrics import AUTHENTICATION_REQUIRED, DYNAMIC, Connect
from zonefs_emu.nvme_tcp.host_keys import Access, DhchapKey
from zonefs_emu.nvme_tcp.pdu import COMMON, IC_BYTES, PduType
from zonefs_emu.nvme_tcp.tls_keys import Identity, TlsKey, identity_of, psk_of
from zonefs_emu.nvme_tcp.tls_stream import TlsStream, missing_tls
from zonefs_emu.testing.nvme_initiator import HostKeys, NvmeHost, NvmeQueue, encrypted

HOST = "nqn.host"
KEY = TlsKey(secret=bytes(range(32)), hash_id=1)
OTHER = TlsKey(secret=bytes(32), hash_id=1)
ACCESS = Access(hosts={HOST: None, "nqn.other": None}, tls_keys={HOST: KEY, "nqn.other": OTHER})
IC_REQUEST = COMMON.pack(PduType.IC_REQ, 0, IC_BYTES, 0, IC_BYTES) + bytes(IC_BYTES - 8)
#: What begins a handshake, of which the rest never comes.
HALF = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.fixture
def secure(device: ZonedDevice) -> Iterator[Target]:
    """A target for two hosts, each with a TLS key of its own."""
    with serving(device, access=ACCESS) as target:
        yield target


def test_what_this_python_lacks() -> None:
    lack = f"this is Python 3.{sys.version_info[1]}, whose ssl module has no pre-shared keys"
    assert missing_tls() == (lack if sys.version_info < (3, 13) else "")


def tls_of(key: TlsKey, host: str, subsystem: str, version: int = 1) -> tuple[Identity, bytes]:
    identity = identity_of(key, host, subsystem, version=version)
    psk = psk_of(key, identity)
    assert psk is not None
    return identity, psk


def wait_for_failures(target: Target, count: int = 1) -> None:
    while target.server.statistics()["failed_authentications"] != count:
        time.sleep(0.01)


def assert_served(target: Target) -> None:
    with target.host(host_nqn=HOST, tls_key=KEY) as host:
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0


# -- hosts with their key ---------------------------------------------------------------------------------------------


@needs_tls
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("hash_id", [0, 1])
def test_a_host_writes_and_reads(device: ZonedDevice, version: int, digests: bool, hash_id: int) -> None:
    """Data of one record and of many, in capsules and asked for, more than a receive buffer holds."""
    key = TlsKey(secret=bytes(range(32)), hash_id=hash_id)
    data = bytes(range(256)) * (128 * BLOCK // 256)
    options = {"header_digest": digests, "data_digest": digests, "tls_key": key, "tls_version": version}
    with serving(device, access=Access(tls_keys={"": key})) as target, target.host(**options) as host:
        queue = host.queue(1)
        queue.in_capsule_max = 128 << 10
        assert isinstance(queue.sock, ssl.SSLSocket)
        assert queue.sock.version() == "TLSv1.3"
        assert queue.write(1, 0, data[:BLOCK], BLOCK).status == 0
        assert queue.write(1, 1, data[BLOCK : 32 * BLOCK], BLOCK).status == 0
        assert queue.write(1, 32, data[32 * BLOCK :], BLOCK).status == 0
        cids = [queue.send(2, nsid=1, cdws=(0, 0, 127), room=128 * BLOCK) for _ in range(16)]
        assert [(reply.cid, reply.data == data) for reply in (queue.receive() for _ in cids)] == [
            (cid, True) for cid in cids
        ]


@needs_tls
def test_commands_that_come_in_one_piece_are_all_answered(secure: Target) -> None:
    """More of them than the buffer of the connection holds: nothing wakes the connection for what OpenSSL has left."""
    with secure.host(host_nqn=HOST, tls_key=KEY) as host:
        queue = host.queue(1)
        command = queue.command(0x01, nsid=1, cdws=(0, 0, 31), length=32 * BLOCK, inline=True)
        pdus = [queue.capsule(command._replace(cid=cid), bytes(32 * BLOCK)) for cid in range(100, 130)]
        # The answers are small and wait in the buffers of the sockets. A thread that reads them meanwhile would use the
        # host's stream beside the sender, and OpenSSL's streams are for one thread at a time.
        queue.sock.sendall(b"".join(pdus))
        assert sorted(queue.receive().cid for _ in pdus) == list(range(100, 130))


@needs_tls
def test_a_small_buffer_is_told_that_more_has_come() -> None:
    """What OpenSSL has left is announced by no socket."""
    identity, psk = tls_of(KEY, HOST, "nqn.drive")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        shaking = pool.submit(encrypted, socket.create_connection(listener.getsockname()), identity, psk)
        stream = TlsStream(listener.accept()[0], lambda _: psk)
        room = memoryview(bytearray(100))

        def receive() -> int:
            while True:
                assert stream.has_more or is_readable(stream, 30)
                try:
                    return stream.receive_into(room)
                except BlockingIOError:
                    continue  # it was of the handshake, or a part of a record

        received = pool.submit(lambda: [(receive(), stream.has_more) for _ in range(3)])
        with shaking.result() as host:
            host.sendall(bytes(250))
            assert received.result() == [(100, True), (100, True), (50, False)]
    stream.close()


@contextmanager
def through_openssl(port: int, identity: str, psk: bytes) -> Iterator[int]:
    """Yield a port: ``openssl s_client`` encrypts what comes there, and takes it to *port*."""
    requires("openssl")
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-psk", psk.hex(), "-psk_identity", identity]
    words += ["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256", "-quiet"]
    with ExitStack() as ending, socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def accept() -> None:
            while True:
                sock, _ = listener.accept()
                with sock:
                    if ended.is_set():
                        return
                    process = subprocess.Popen(
                        words, stdin=sock.fileno(), stdout=sock.fileno(), stderr=subprocess.DEVNULL
                    )
                ending.callback(process.wait)
                ending.callback(process.kill)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join()


@needs_tls
@pytest.mark.parametrize("version", [0, 1])
def test_openssl_is_a_host(secure: Target, version: int) -> None:
    identity, psk = tls_of(KEY, HOST, secure.nqn, version)
    with (
        through_openssl(secure.port, str(identity), psk) as port,
        NvmeHost("127.0.0.1", port, secure.nqn, host_nqn=HOST) as host,
    ):
        queue = host.queue(1)
        assert queue.write(1, 0, b"o" * BLOCK, BLOCK).status == 0
        assert queue.read(1, 0, 1, BLOCK).data == b"o" * BLOCK


@needs_tls
def test_openssl_is_a_host_with_a_key_of_old_libnvme(secure: Target) -> None:
    retained = tls_keys._expand_label_of_old_libnvme(KEY.secret, "HostNQN", HOST)
    identity = Identity(1, HOST, secure.nqn, tls_keys._digest(retained, HOST, secure.nqn))
    psk = psk_of(KEY, identity)
    assert psk is not None
    with (
        through_openssl(secure.port, str(identity), psk) as port,
        NvmeHost("127.0.0.1", port, secure.nqn, host_nqn=HOST) as host,
    ):
        assert host.identify(1).status == 0


@needs_tls
def test_a_host_proves_its_name_by_both_keys(device: ZonedDevice) -> None:
    proof = DhchapKey(secret=bytes(32), hash_id=0)
    with (
        serving(device, access=Access(hosts={HOST: proof}, tls_keys={HOST: KEY})) as target,
        target.host(host_nqn=HOST, tls_key=KEY, keys=HostKeys(proof)) as host,
    ):
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0
        asked = Connect(0, 0, 31, 0, 0, bytes(16), DYNAMIC, target.nqn, HOST)
        queue = target.queue(tls=tls_of(KEY, HOST, target.nqn))
        assert queue.connect(asked).result & AUTHENTICATION_REQUIRED
        queue.close()


@needs_tls
def test_the_discovery_service_says_that_tls_is_required(secure: Target) -> None:
    place = "127.0.0.1", secure.port, DISCOVERY_NQN
    with NvmeHost(*place, host_nqn=HOST, keep_alive_ms=0, tls_key=KEY) as host:
        page = host.log(Log.DISCOVERY, room=2048).data
    assert (page[1024 + 3], page[1024 + 768]) == (1, 2)


@needs_tls
def test_the_drive_says_when_it_ends_a_connection(secure: Target) -> None:
    """Not by the end of the TCP connection alone, for which Python's TLS would raise SSLEOFError."""
    with secure.host(host_nqn=HOST, tls_key=KEY) as host:
        queue = host.queue(1)
        assert isinstance(queue.sock, ssl.SSLSocket)
        queue.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # unknown to the stubs of Python's library
        assert queue.disconnect().status == 0
        assert queue.sock.recv(1) == b""


@needs_tls
def test_a_host_ends_its_connection_in_order(secure: Target) -> None:
    """Python's SSLObject then returns 0 and raises nothing; the thread of the connection must end."""
    with secure.host(host_nqn=HOST, tls_key=KEY) as host:
        sock = host.queue(1).sock
        assert isinstance(sock, ssl.SSLSocket)
        sock.settimeout(60)
        sock.unwrap()  # returns when the drive has ended it as well
        while secure.server.statistics()["queues"] > 1:  # that of the admin commands stays
            time.sleep(0.01)
    assert_served(secure)


@needs_tls
def test_idle_hosts_cost_nothing(device: ZonedDevice) -> None:
    others = threads_of()
    with serving(device, access=ACCESS) as target, target.host(host_nqn=HOST, tls_key=KEY) as host:
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0
        assert_at_rest(threads_of() - others)


# -- and others -------------------------------------------------------------------------------------------------------


@needs_tls
@pytest.mark.parametrize("version", [0, 1])
def test_a_wrong_key_is_refused_logged_and_counted(
    secure: Target, expect_warning: Callable[[str], None], version: int
) -> None:
    expect_warning("the TLS handshake has failed: the TLS key of 'nqn.host' is not the one that was given for it")
    with secure.host(host_nqn="nqn.other", tls_key=OTHER) as host:
        with pytest.raises(OSError, match=r"SSL|reset"):
            secure.host(host_nqn=HOST, tls_key=OTHER, tls_version=version)
        wait_for_failures(secure)
        assert host.identify(1).status == 0
    assert_served(secure)


@needs_tls
@pytest.mark.parametrize(
    "identity", ["Client_identity", "NVMe0R01 nqn.stranger nqn.drive", "x" * 300, "\udcff"]
)  # the last is no UTF-8
def test_what_no_key_belongs_to(secure: Target, expect_warning: Callable[[str], None], identity: str) -> None:
    expect_warning("the TLS handshake has failed: ")
    with through_openssl(secure.port, identity, bytes(32)) as port, pytest.raises(ConnectionError):
        NvmeQueue("127.0.0.1", port)
    wait_for_failures(secure)
    assert_served(secure)


@needs_tls
def test_a_host_without_tls_is_told_so(secure: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the host does not speak TLS, which --tls-key requires: see nvme connect --tls")
    with secure.raw() as sock:
        sock.sendall(IC_REQUEST)
        answer = sock.recv(1024)
        assert COMMON.unpack_from(answer) == (PduType.C2H_TERM, 0, 24, 0, 24)
        assert struct.unpack_from("<HI", answer, 8) == (6, 0)
        assert sock.recv(1) == b""
    wait_for_failures(secure)
    assert_served(secure)


@needs_tls
def test_tls_at_a_port_without_keys(target: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the host speaks TLS, and this drive has no TLS key; the connection is ended")
    with pytest.raises(ssl.SSLError):
        target.host(host_nqn=HOST, tls_key=KEY)
    with target.host() as host:
        assert host.identify(1).status == 0


@needs_tls
@pytest.mark.parametrize("sent", [b"", b"\x16", HALF])
def test_silence_has_a_limit(secure: Target, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(queue_connection, "_CONNECT_S", 0.1)
    with secure.raw() as sock:
        sock.sendall(sent)
        assert sock.recv(1) == b""


@needs_tls
def test_silence_after_the_handshake_has_a_limit(secure: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_connection, "_CONNECT_S", 0.1)
    queue = secure.queue(tls=tls_of(KEY, HOST, secure.nqn))
    assert queue.sock.recv(1) == b""
    queue.close()


@needs_tls
def test_handshakes_count_as_connections_and_make_room(secure: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 3)
    with ExitStack() as ending:
        strangers = [ending.enter_context(secure.raw()) for _ in range(3)]
        for stranger in strangers:
            stranger.sendall(HALF)
        while secure.server.statistics()["queues"] != 3:
            time.sleep(0.01)
        ending.enter_context(secure.raw()).sendall(HALF)
        assert strangers[0].recv(1) == b""
        assert_served(secure)
    while secure.server.statistics()["queues"]:
        time.sleep(0.01)
    assert_served(secure)


@needs_tls
def test_garbage_ends_its_connection_only(secure: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the TLS handshake has failed: ")
    good = secure.host(host_nqn=HOST, tls_key=KEY)
    hello = client_hello(secure)
    garbage = [
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16" * 400,
        b"\x16\x03\x03\x00\x00" * 100,
        b"\x15\x03\x03\0\2\2\50",
    ]
    for at in range(0, len(hello), 7):
        garbage += [hello[:at] + b"\xff\xff" + hello[at + 2 :], hello[:at] + b"\xff" * 2000]
    for count, sent in enumerate(garbage, 1):
        with secure.raw() as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        assert good.identify(1).status == 0, count
    good.close()
    while secure.server.statistics()["queues"]:
        time.sleep(0.01)
    assert secure.device.statistics()["internal_errors"] == 0


def client_hello(target: Target) -> bytes:
    """Return what a host with its key sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if sys.version_info >= (3, 13):
        identity, psk = tls_of(KEY, HOST, target.nqn)
        context.set_psk_client_callback(lambda _: (str(identity), psk))
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


@needs_tls
def test_garbage_after_the_handshake(secure: Target) -> None:
    with secure.host(host_nqn="nqn.other", tls_key=OTHER) as other:
        host = secure.host(host_nqn=HOST, tls_key=KEY)
        raw = socket.socket(fileno=host.admin.sock.detach())
        raw.settimeout(30)
        raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        while raw.recv(4096):  # an alert
            pass
        raw.close()
        assert other.identify(1).status == 0
    while secure.server.statistics()["hosts"]:
        time.sleep(0.01)


@needs_tls
def test_the_names_of_the_key_are_the_names_of_the_host(secure: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("'nqn.other' may not connect as 'nqn.host'")
    asked = Connect(0, 0, 31, 0, 0, bytes(16), DYNAMIC, secure.nqn, HOST)
    for key, host, subsystem, answer in (
        (OTHER, "nqn.other", secure.nqn, (0x184, 0)),
        (KEY, HOST, DISCOVERY_NQN, (0x182, 1 << 16 | 256)),
    ):
        queue = secure.queue(tls=tls_of(key, host, subsystem))
        reply = queue.connect(asked)
        assert (reply.status, reply.result) == answer
        queue.close()


@needs_tls
def test_a_key_for_all_does_not_open_the_list_of_hosts(
    device: ZonedDevice, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("'nqn.stranger' may not connect")
    with serving(device, access=Access(hosts={HOST: None}, tls_keys={"": KEY})) as target:
        assert_served(target)
        with pytest.raises(ConnectionError, match="184h"):
            target.host(host_nqn="nqn.stranger", tls_key=KEY)


@needs_tls
def test_many_at_once(secure: Target, expect_warning: Callable[[str], None]) -> None:
    expect_warning("the TLS key of 'nqn.host' is not the one")
    expect_warning("the host does not speak TLS")

    def use(number: int) -> str:
        if number % 3 == 0:
            assert_served(secure)
        elif number % 3 == 1:
            with pytest.raises(OSError, match=r"SSL|reset"):
                secure.host(host_nqn=HOST, tls_key=OTHER)
        else:
            with pytest.raises(ConnectionError):
                secure.queue()
        return "done"

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(use, range(48))) == ["done"] * 48
    wait_for_failures(secure, 32)
    while secure.server.statistics()["queues"]:
        time.sleep(0.01)
