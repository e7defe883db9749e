"""Who may connect to what, several hosts, the discovery service, and the limits of all connections together."""

import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.at_rest import assert_at_rest, threads_of
from tests.nvme.conftest import BLOCK
from tests.nvme_tcp.conftest import Target, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.nvme.command import AdminOpcode
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN
from zonefs_emu.nvme_tcp import server
from zonefs_emu.nvme_tcp.fabrics import DYNAMIC, Connect, FabricsType
from zonefs_emu.nvme_tcp.host_keys import Access, DhchapKey
from zonefs_emu.nvme_tcp.server import listen
from zonefs_emu.testing.nvme_initiator import HostKeys, NvmeHost

HOST_ID = bytes(range(16))


def connect(target: Target, **changes: object) -> tuple[int, int]:
    """Return status and result of a Connect command of a new connection."""
    asked = Connect(0, 0, 31, 0, 5000, HOST_ID, DYNAMIC, target.nqn, "nqn.h")
    queue = target.queue()
    reply = queue.connect(asked._replace(**changes))  # type: ignore[arg-type]  # a table of arguments
    queue.close()
    return reply.status, reply.result


def test_idle_hosts_cost_nothing(device: ZonedDevice) -> None:
    others = threads_of()
    with serving(device) as target, target.host() as host, target.host(host_nqn="nqn.another") as another:
        for each in (host, another):
            assert not each.queue(1).read(1, 0, 1, BLOCK).status
        assert_at_rest(threads_of() - others)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, (0, 1)),
        ({"record_format": 1}, (0x180, 0)),
        ({"subsystem_nqn": "nqn.other"}, (0x182, 1 << 16 | 256)),
        ({"subsystem_nqn": ""}, (0x182, 1 << 16 | 256)),
        ({"sq_size": 0}, (0x182, 44)),
        ({"sq_size": 128}, (0x182, 44)),
        ({"cntlid": 1}, (0x182, 1 << 16 | 16)),
        ({"qid": 1, "cntlid": 1}, (0x182, 1 << 16 | 16)),
        ({"qid": 1}, (0x182, 1 << 16 | 16)),
    ],
)
def test_a_wrong_connect_names_the_field(target: Target, changes: dict[str, object], answer: tuple[int, int]) -> None:
    assert connect(target, **changes) == answer
    explained = [EXPLAINER.answers(refusal)["nvme"] for refusal in target.device.refusals.last(2)]
    assert [int(words[:3], 16) for words in explained] == [answer[0]] * bool(answer[0])


def test_data_of_a_connect_command_are_in_its_capsule(target: Target) -> None:
    queue = target.queue()
    for kind, nr_sent, status in ((0x5A, 0, 0x011), (0x00, 1024, 0x011), (0x01, 0, 0x00F), (0x01, 1023, 0x00F)):
        asked = queue.command(AdminOpcode.FABRICS, nsid=FabricsType.CONNECT)._replace(prp2=1024 | kind << 56)
        queue.sock.sendall(queue.capsule(asked, bytes(nr_sent)))
        assert queue.receive().status == status
    queue.close()


def test_an_io_queue_belongs_to_the_host_of_its_controller(target: Target) -> None:
    with target.host() as host:
        mine = {"qid": 1, "cntlid": host.cntlid, "sq_size": 127, "host_id": host._host_id, "host_nqn": host._host_nqn}
        wrong = 0x182, 1 << 16 | 16
        assert connect(target, **(mine | {"host_nqn": "nqn.h"})) == wrong
        assert connect(target, **(mine | {"host_id": HOST_ID})) == wrong
        assert connect(target, **(mine | {"cntlid": host.cntlid + 1})) == wrong
        assert connect(target, **(mine | {"qid": 17})) == (0x182, 42)
        assert connect(target, **mine) == (0, host.cntlid)
        queue = host.queue(2)
        assert connect(target, **(mine | {"qid": 2})) == (0x182, 42), "the queue is there already"
        assert queue.read(1, 0, 1, BLOCK).status == 0


def test_a_second_connect_on_one_connection(target: Target) -> None:
    with target.host() as host:
        reply = host.admin.connect(Connect(0, 0, 31, 0, 0, HOST_ID, DYNAMIC, target.nqn, "nqn.h"))
        assert reply.status == 0x00C


def test_hosts_see_one_truth(target: Target) -> None:
    with target.host(host_nqn="nqn.a") as one, target.host(host_nqn="nqn.b") as two:
        assert one.cntlid != two.cntlid
        for number, queue in enumerate((one.queue(1), two.queue(1), one.queue(2))):
            assert queue.write(1, number, bytes(BLOCK), BLOCK).status == 0
        assert next(two.zones(two.queue(2), 1, 1))[3] == 3
        assert target.server.statistics()["hosts"] == 2
    while target.server.statistics()["queues"]:
        pass
    assert target.server.statistics()["hosts"] == 0


def test_the_end_of_a_controller_ends_its_queues(target: Target) -> None:
    host = target.host()
    queue = host.queue(1)
    host.admin.close()
    assert queue.sock.recv(1) == b""
    host.close()


def test_discovery_names_the_address_at_which_the_host_is(target: Target) -> None:
    with NvmeHost("127.0.0.1", target.port, DISCOVERY_NQN, keep_alive_ms=0) as host:
        page = host.log(Log.DISCOVERY, room=2048).data
        assert struct.unpack_from("<QQ", page) == (0, 1)
        assert page[1024 + 32 : 1024 + 64].rstrip() == str(target.port).encode()
        assert page[1024 + 256 : 1024 + 512].rstrip(b"\0") == target.nqn.encode()
        assert page[1024 + 512 : 1024 + 768].rstrip() == b"127.0.0.1"
        with pytest.raises(ConnectionError, match="182h"):
            host.queue(1)
        assert target.server.statistics()["hosts"] == 0


def test_only_named_hosts(device: ZonedDevice, expect_warning: Callable[[str], None]) -> None:
    expect_warning("'nqn.stranger' may not connect; see --allow-host and --host-key; its connect is refused")
    with serving(device, access=Access(hosts={"nqn.friend": None})) as target:
        target.host(host_nqn="nqn.friend").close()
        with pytest.raises(ConnectionError, match="184h"):
            target.host(host_nqn="nqn.stranger")
        assert connect(target, sq_size=0) == (0x182, 44)
        assert device.statistics()["refused"] == 0, "a stranger does not fill the log of refusals"


def test_so_many_connections_and_no_more(
    target: Target, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("refused, because there are 3 connections already")
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 3)
    with target.host() as host:
        queues = [host.queue(number) for number in (1, 2)]
        sock = target.raw()
        assert sock.recv(1) == b""
        sock.close()
        assert [queue.read(1, 0, 1, BLOCK).status for queue in queues] == [0, 0]


def test_strangers_make_room_for_hosts(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of those that have not connected is ended. They kept all hosts out for ten seconds each."""
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 4)
    with target.host() as host, ExitStack() as ending:
        strangers = [ending.enter_context(target.raw()) for _ in range(2)]
        strangers.append(ending.enter_context(closing(target.queue())).sock)  # one that has sent its first PDU
        for number, stranger in enumerate(strangers, 1):
            assert host.queue(number).read(1, 0, 1, BLOCK).status == 0
            assert stranger.recv(1) == b""
            assert target.server.statistics()["queues"] == 4
        assert host.identify(1).status == 0


def test_a_host_that_has_yet_to_prove_its_name_makes_room(device: ZonedDevice) -> None:
    access = Access(hosts={"nqn.h": DhchapKey(secret=bytes(32), hash_id=0)})
    with serving(device, access=access) as target, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "CONNECTIONS_MAX", 1)
        stranger = target.queue()
        assert stranger.connect(Connect(0, 0, 31, 0, 0, HOST_ID, DYNAMIC, target.nqn, "nqn.h")).status == 0
        with target.host(host_nqn="nqn.h", keys=HostKeys(DhchapKey(secret=bytes(32), hash_id=0))) as host:
            assert stranger.sock.recv(1) == b""
            assert host.identify(1).status == 0
        stranger.close()


def test_the_end_of_the_server_ends_all_connections(device: ZonedDevice) -> None:
    with serving(device) as target:
        host = target.host()
        silent = target.raw()
    assert host.admin.sock.recv(1) == b""
    assert silent.recv(1) == b""
    silent.close()
    host.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_addresses(device: ZonedDevice, address: str) -> None:
    sockets = listen(address, 0)
    assert sockets
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("address", ["198.51.100.7", "no such host."])
def test_addresses_that_are_not_ours(address: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen at {address}, port 4420: "):
        listen(address, 4420)


def test_a_port_that_is_taken() -> None:
    sockets = listen("127.0.0.1", 0)
    port = sockets[0].getsockname()[1]
    with pytest.raises(UsageError, match=f"cannot listen at 127.0.0.1, port {port}: Address already in use"):
        listen("127.0.0.1", port)
    sockets[0].close()


def test_an_unforeseen_exception_costs_a_new_connection(
    target: Target, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("internal error in nvme, a new connection: ZeroDivisionError")
    with target.host() as host:
        queue = host.queue(1)
        with monkeypatch.context() as patch:
            patch.setattr(server, "Connection", lambda *_: 1 // 0)
            with pytest.raises(ConnectionError):
                target.queue()
        assert queue.read(1, 0, 1, BLOCK).status == 0
        assert connect(target)[0] == 0
    assert target.device.statistics()["internal_errors"] == 1


def test_a_host_without_threads_refuses_a_connection(
    target: Target, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("refused: can't start new thread")

    class Thread(threading.Thread):
        def start(self) -> None:
            message = "can't start new thread"
            raise RuntimeError(message)

    with target.host() as host:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Thread", Thread)
            with pytest.raises(ConnectionError):
                target.queue()
        assert target.server.statistics()["queues"] == 1
        assert host.queue(1).read(1, 0, 1, BLOCK).status == 0


def wait_until_none_is_connected() -> None:
    while any(thread.name.startswith("nvme ") for thread in threading.enumerate()):
        time.sleep(0.01)


def open_files() -> Counter[str]:
    return Counter(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


def test_an_unforeseen_exception_at_the_end_of_a_connection_leaves_nothing(
    target: Target, expect_warning: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_warning("internal error in nvme, a connection: ZeroDivisionError")
    with target.host() as host:
        host.queue(1)
    wait_until_none_is_connected()
    before = open_files()
    monkeypatch.setattr(target.server.subsystem, "give_back_cntlid", lambda _: 1 // 0)
    with target.host() as host:
        host.queue(1)
    wait_until_none_is_connected()
    # What was open before may be closed meanwhile, as it may be of an earlier test.
    assert not open_files() - before


def test_a_stop_after_the_end_writes_into_no_other_file(device: ZonedDevice) -> None:
    """As a session stops a front-end that has ended by itself."""
    with serving(device) as target:
        pass
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]  # one of them has the number of the closed one
    try:
        target.server.stop()
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in others:
            os.close(other)
