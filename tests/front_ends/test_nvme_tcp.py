"""Addresses, and the front-end in a session; a host connects for real."""

from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tests.nvme.conftest import BLOCK, UUID_1, geometry
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.nvme_tcp import LOOPBACK, Address, NvmeTcpFrontEnd, parse_address, safe_address
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.nvme.subsystem import nqn_of
from zonefs_emu.testing.nvme_initiator import NvmeHost


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
    assert safe_address(text, insecure=False) == found


@pytest.mark.parametrize(
    "text",
    ["", ":", ":5", "::1", "a:", "a:b", "a:65536", "a:-1", "a:1:2", "[::1", "[::1]5", "[::1]:", "[]:5", "a:\u0665"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no address: give HOST, HOST:PORT or \[IPV6\]:PORT"):
        parse_address(text)


@pytest.mark.parametrize("text", ["0.0.0.0", "192.0.2.1:4420", "[::]", "example.org"])
def test_other_machines_reach_a_drive_only_if_the_user_says_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"can be reached from other machines.*--insecure"):
        safe_address(text, insecure=False)
    assert safe_address(text, insecure=True) == parse_address(text)


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
        (geometry(), {"nqn": "iqn.x"}, "is no NVMe Qualified Name"),
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
