"""Addresses, and the front-end in a session; a host connects for real."""

import os
import sys
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tests.nvme.conftest import BLOCK, UUID_1, geometry
from tests.nvme_tcp.conftest import needs_tls
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.nvme_tcp import (
    LOOPBACK,
    Address,
    NvmeTcpFrontEnd,
    exposed_key_files,
    make_access,
    parse_address,
    safe_address,
)
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN, nqn_of
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access, DhchapKey, key_text
from zonefs_emu.nvme_tcp.tls_keys import TlsKey, tls_key_text
from zonefs_emu.testing.nvme_initiator import NvmeHost

KEY = DhchapKey(secret=bytes(range(32)), hash_id=1)
TEXT = key_text(KEY)
TLS_KEY = TlsKey(secret=bytes(range(32)), hash_id=1)
TLS_TEXT = tls_key_text(TLS_KEY)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", ("127.0.0.1", 4420)),
        ("127.0.0.1:5", ("127.0.0.1", 5)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]", ("::1", 4420)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    found = parse_address(text)
    assert found == address
    assert found.is_loopback
    assert parse_address(str(found)) == found
    assert safe_address(text, OPEN, insecure=False) == found


@pytest.mark.parametrize(
    "text",
    ["", ":", ":5", "::1", "a:", "a:b", "a:65536", "a:-1", "a:1:2", "[::1", "[::1]5", "[::1]:", "[]:5", "a:\u0665"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not an address: give HOST, HOST:PORT or \[IPV6\]:PORT"):
        parse_address(text)


@pytest.mark.parametrize("text", ["0.0.0.0", "192.0.2.1:4420", "[::]", "example.org"])
def test_other_machines_reach_a_drive_only_if_the_user_says_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"can be reached from other machines, and hosts have no key: .*--insecure"):
        safe_address(text, OPEN, insecure=False)
    assert safe_address(text, OPEN, insecure=True) == parse_address(text)
    named = make_access(["nqn.a", "nqn.b"], [f"nqn.a={TEXT}"], "")
    with pytest.raises(UsageError, match=r"can be reached from other machines, and nqn.b has no key: "):
        safe_address(text, named, insecure=False)
    assert safe_address(text, make_access(["nqn.a"], [f"nqn.a={TEXT}"], ""), insecure=False) == parse_address(text)


def test_who_may_connect(tmp_path: Path) -> None:
    assert make_access([], [], "") == OPEN
    with pytest.raises(UsageError, match="is not an NVMe Qualified Name"):
        make_access(["me"], [], "")
    (tmp_path / "key").write_text(f"{TEXT}\nwhat follows is not read\n")
    access = make_access(["nqn.a", "nqn.b"], [f"nqn.b={TEXT}", f"nqn.x=y=@{tmp_path}/key"], f"@{tmp_path}/key")
    assert access.hosts == {"nqn.a": None, "nqn.b": KEY, "nqn.x=y": KEY}
    assert access.controller_key == KEY
    commands = NvmeTcpFrontEnd(Address("127.0.0.1", 4420), nqn="nqn.s", access=access).host_commands()
    assert [command[6:] for command in commands[1:]] == [
        ["-s", "4420", "--hostnqn", host, "--dhchap-secret", "KEY", "-n", "nqn.s"] for host in ("nqn.b", "nqn.x=y")
    ]
    assert not any(TEXT in word for command in commands for word in command)


@pytest.mark.parametrize(
    ("host_keys", "controller_key", "sentence"),
    [
        (["nqn.a"], "", "--host-key must be NQN=@FILE"),
        (["nqn.a=secret"], "", "--host-key must be NQN=@FILE"),
        (["iqn.a=@key"], "", "'iqn.a' is not an NVMe Qualified Name"),
        (["{}=@key"], "", "--host-key must be NQN=@FILE"),
        (["DHHC-1:00:secret=:=@key"], "", "--host-key must be NQN=@FILE"),
        (["nqn.a=@nowhere"], "", "--host-key nqn.a: nowhere: No such file"),
        (["nqn.a=@/"], "", "--host-key nqn.a: /: Is a directory"),
        (["nqn.a=@/dev/null"], "", "--host-key nqn.a: this is not a key"),
        (["nqn.a=DHHC-1:00:AAAA:"], "", "--host-key nqn.a: the key has 0 bytes"),
        (["nqn.a={}", "nqn.a={}"], "", "nqn.a has two keys"),
        (["nqn.a={}"], "@nowhere", "--controller-key: nowhere: No such file"),
        (["nqn.a=@{}"], "", "--host-key nqn.a: the text after @ must be the name of a file"),
        (["nqn.a={}"], "@{}", "--controller-key: the text after @ must be the name of a file"),
        (["nqn.a=@ {}"], "", "--host-key nqn.a: the text after @ must be the name of a file"),
        ([f"nqn.a=@{TLS_TEXT.lower()}"], "", "--host-key nqn.a: the text after @ must be the name of a file"),
        ([], "{}", "--controller-key is for hosts that have a key themselves"),
    ],
)
def test_wrong_keys_are_said_in_one_sentence(host_keys: list[str], controller_key: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_access([], [text.format(TEXT) for text in host_keys], controller_key.format(TEXT))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert TEXT not in str(caught.value)
    assert TLS_TEXT.lower() not in str(caught.value)


def test_key_files_that_every_user_can_read(tmp_path: Path) -> None:
    for name, mode in (("own", 0o600), ("group", 0o640), ("open", 0o604), ("other", 0o644)):
        (tmp_path / name).touch(mode)
        (tmp_path / name).chmod(mode)
    os.mkfifo(tmp_path / "pipe", 0o644)
    keys = [f"nqn.{name}=@{tmp_path}/{name}" for name in ("own", "group", "pipe", "open")]
    found = exposed_key_files([*keys, f"nqn.a={TEXT}"], f"@{tmp_path}/open", [f"@{tmp_path}/other"])
    assert found == [tmp_path / "open", tmp_path / "other"]
    assert exposed_key_files([], "") == []


@needs_tls
def test_who_may_connect_over_tls(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{TLS_TEXT}\n")

    def commands(access: Access) -> list[list[str]]:
        front_end = NvmeTcpFrontEnd(Address("127.0.0.1", 4420), nqn="nqn.s", access=access)
        return [[command[1], *command[8:]] for command in front_end.host_commands()]

    named = make_access(["nqn.b"], [f"nqn.c={TEXT}"], "", [f"nqn.{x}=@{tmp_path}/key" for x in "abc"])
    assert named.hosts == {"nqn.a": None, "nqn.b": None, "nqn.c": KEY}
    assert named.tls_keys == dict.fromkeys(("nqn.a", "nqn.b", "nqn.c"), TLS_KEY)
    tls = ["--tls", "--tls-key", "TLS-KEY"]
    stored = ["--insert", "--identity=1", "--hostnqn", "nqn.a", "--subsysnqn", DISCOVERY_NQN, "--keydata", "TLS-KEY"]
    assert NvmeTcpFrontEnd(Address("127.0.0.1", 4420), nqn="nqn.s", access=named).host_commands()[0][2:] == stored
    assert commands(named) == [
        ["check-tls-key", "--keydata", "TLS-KEY"],
        ["discover", "--hostnqn", "nqn.a", "--tls"],
        ["check-tls-key", "--keydata", "TLS-KEY"],
        ["discover", "--hostnqn", "nqn.b", "--tls"],
        ["check-tls-key", "--keydata", "TLS-KEY"],
        ["discover", "--hostnqn", "nqn.c", "--tls"],
        ["connect", "--hostnqn", "nqn.a", *tls, "-n", "nqn.s"],
        ["connect", "--hostnqn", "nqn.b", *tls, "-n", "nqn.s"],
        ["connect", "--hostnqn", "nqn.c", *tls, "--dhchap-secret", "KEY", "-n", "nqn.s"],
    ]
    for_all = make_access([], [], "", [TLS_TEXT])
    assert (for_all.hosts, for_all.tls_keys) == ({}, {"": TLS_KEY})
    store, *lines = commands(for_all)
    assert store[0] == "check-tls-key"
    assert lines == [["discover", "--tls"], ["connect", *tls, "-n", "nqn.s"]]
    assert safe_address("0.0.0.0", for_all, insecure=False)
    some = make_access(["nqn.a"], [], "", [f"@{tmp_path}/key", f"nqn.b={TLS_TEXT}"])
    assert (list(some.hosts), list(some.tls_keys)) == (["nqn.b", "nqn.a"], ["", "nqn.b"])
    others = make_access([], [], "", [f"@{tmp_path}/key", f"nqn.b={TLS_TEXT}"])
    assert others.admits("nqn.any")
    assert [line[1:] for line in commands(others) if line[0] == "discover"] == [
        ["--hostnqn", "nqn.b", "--tls"],
        ["--tls"],
    ]


@needs_tls
@pytest.mark.parametrize(
    ("host_keys", "tls", "sentence"),
    [
        ([], ["nqn.a"], "--tls-key must be NQN=@FILE, where the first line of FILE has the key, or NQN=NVMeTLSkey-1:"),
        ([], ["iqn.a=@key"], "'iqn.a' is not an NVMe Qualified Name"),
        ([], ["@nowhere"], "--tls-key: nowhere: No such file"),
        ([], ["nqn.a=@nowhere"], "--tls-key nqn.a: nowhere: No such file"),
        ([], ["@{}"], "--tls-key: the text after @ must be the name of a file"),
        ([], ["nqn.a={}", "nqn.a={}"], "nqn.a has two keys: give one --tls-key for each host"),
        ([], ["{}", "{}"], "any other host has two keys"),
        ([f"nqn.h={TEXT}"], ["nqn.a={}"], "nqn.h has no TLS key, without which it could never connect: give --tls-key"),
    ],
)
def test_wrong_tls_keys_are_said_in_one_sentence(host_keys: list[str], tls: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_access([], host_keys, "", [text.format(TLS_TEXT) for text in tls])
    assert str(caught.value).startswith(sentence)
    assert TLS_TEXT not in str(caught.value)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python from 3.13 on has TLS with pre-shared keys")
def test_an_older_python_has_no_tls() -> None:
    with pytest.raises(UsageError) as caught:
        make_access([], [], "", [TLS_TEXT])
    assert str(caught.value) == (
        f"--tls-key needs Python 3.13 or later: this is Python 3.{sys.version_info[1]}, whose ssl module has no "
        "pre-shared keys; use a newer Python, or --host-key and a tunnel"
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("drive", "host", "too_long"),
    [
        (f"nqn.{'d' * 100}", f"nqn.{'h' * 100}", "h and nqn.d"),
        ("nqn.d", f"nqn.{'h' * 161}", "h and nqn.2014-08.org.nvmexpress.discovery"),
        (f"nqn.{'d' * 200}", "", "the name of any host and nqn.d"),
    ],
    ids=["drive", "discovery service", "all hosts"],
)
async def test_names_that_are_too_long_for_tls(tmp_path: Path, drive: str, host: str, too_long: str) -> None:
    """Those of a host and of the discovery service too: `serve` prints a line for `nvme discover`."""
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    front_end = NvmeTcpFrontEnd(Address("127.0.0.1", 0), nqn=drive, access=Access(tls_keys={host: TLS_KEY}))
    with pytest.raises(UsageError, match=f"{too_long}.* are too long for TLS, which takes 200 bytes of both together"):
        await front_end(Session(device, tmp_path / "image"), task_status=trio.TASK_STATUS_IGNORED)
    device.close()


async def test_a_host_connects_until_the_session_ends(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    front_end = NvmeTcpFrontEnd(Address("127.0.0.1", 0))
    session = Session(device, tmp_path / "image")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(front_end, session))
        assert session.name == "nvme-tcp"
        assert session.where == f"127.0.0.1:{front_end.address.port}"
        assert front_end.nqn == nqn_of(UUID_1)
        discover, connect = front_end.host_commands()
        assert discover == ["nvme", "discover", "-t", "tcp", "-a", "127.0.0.1", "-s", str(front_end.address.port)]
        assert connect[-2:] == ["-n", nqn_of(UUID_1)]

        def use() -> NvmeHost:
            host = NvmeHost("127.0.0.1", front_end.address.port, front_end.nqn)
            assert host.queue(1).write(1, 0, bytes(BLOCK), BLOCK).status == 0
            return host

        host = await trio.to_thread.run_sync(use)
        nursery.cancel_scope.cancel()
    assert host.admin.sock.recv(1) == b""
    host.close()
    assert device.machine.zone(0).wp == BLOCK // 512
    device.close()


@pytest.mark.parametrize(
    ("shape", "options", "sentence"),
    [
        (Geometry(size=4096, zone_size=1024, zone_capacity=1024, conventional=((0, 1),)), {}, "conventional zones"),
        (geometry(), {"nqn": "iqn.x"}, "is not an NVMe Qualified Name"),
    ],
)
async def test_what_cannot_be_served_is_said_before_any_socket_is_there(
    tmp_path: Path, shape: Geometry, options: dict[str, str], sentence: str
) -> None:
    ZonedDevice.create(tmp_path / "image", shape, uuid=UUID(int=1))
    device = ZonedDevice.open(tmp_path / "image")
    front_end = NvmeTcpFrontEnd(parse_address(LOOPBACK), **options)  # type: ignore[arg-type]  # a table of arguments
    with pytest.raises(UsageError, match=sentence):
        await front_end(Session(device, tmp_path / "image"), task_status=trio.TASK_STATUS_IGNORED)
    device.close()
