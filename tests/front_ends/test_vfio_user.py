"""The front-end in a session; a guest's driver uses the drive."""

import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.nvme.conftest import BLOCK, UUID_1, geometry
from tests.vfio_user.test_kept_client import vanish
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.vfio_user import VfioUserFrontEnd, keeper_path, places_of_keeper
from zonefs_emu.nvme.command import IoOpcode
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient, VfioError
from zonefs_emu.vfio_user.kept_client import KeptClient
from zonefs_emu.vfio_user.pci_config import InterruptKind


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A session of a new image, without front-ends."""
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    yield Session(device, tmp_path / "image")
    device.close()


async def test_a_guest_has_the_drive_until_the_session_ends(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(VfioUserFrontEnd(path, serial="S1"), session))
        assert (session.name, session.where) == ("vfio-user", str(path))

        def use() -> VfioClient:
            client = VfioClient(path)
            guest = NvmeGuest(client)
            assert guest.identify(1).data[4:24] == b"S1".ljust(20)
            assert guest.queue(1).write(1, 0, bytes(BLOCK), BLOCK).status == 0
            return client

        client = await trio.to_thread.run_sync(use)
        nursery.cancel_scope.cancel()
    with client:
        assert client.is_ended()
    assert not path.exists()
    assert session.device.machine.zone(0).wp == BLOCK // 512


async def test_a_guest_with_msi(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(VfioUserFrontEnd(path, is_msi=True), session))

        def use() -> None:
            with pytest.raises(VfioError):
                VfioClient(path)
            with VfioClient(path, interrupts=InterruptKind.MSI) as client:
                queue = NvmeGuest(client).queue(1)
                queue.push(queue.entry(IoOpcode.FLUSH, nsid=1))
                assert client.take_interrupt(1)
                assert queue.wait().status == 0

        await trio.to_thread.run_sync(use)
        nursery.cancel_scope.cancel()


def test_a_keeper_of_another_environment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon is started by cron, is killed, and is started again at a login."""
    image = tmp_path / "image"
    image.touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    of_login = keeper_path(image, tmp_path / "socket")
    with monkeypatch.context() as cron:
        cron.delenv("XDG_RUNTIME_DIR")
        of_cron = keeper_path(image, tmp_path / "socket")
        assert list(places_of_keeper(of_cron)) == [of_cron]
    assert list(places_of_keeper(of_login)) == [of_login, of_cron]
    of_cron.parent.chmod(0o755)
    assert list(places_of_keeper(of_login)) == [of_login], "not in a directory that others can enter"


async def test_a_stopped_keeper_holds_up_its_front_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes on, and the end of the session cuts the waiting short. The guest is still there then."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    session = Session(device, tmp_path / "image")
    path = tmp_path / "socket"
    ours, theirs = socket.socketpair()
    place = keeper_path(tmp_path / "image", path)
    kept = KeptClient.start(theirs, place, Subsystem([device]), device.unforeseen)
    process = kept._process
    assert process is not None
    vanish(kept)
    client = VfioClient(ours, handshake=True)
    os.kill(process.pid, signal.SIGSTOP)
    with trio.fail_after(30):  # its patience is a minute
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(nursery.start, partial(VfioUserFrontEnd(path), session)))
            for _ in range(20):
                await trio.sleep(0.01)
            assert not path.exists(), "it waits for the keeper"
            nursery.cancel_scope.cancel()
    os.kill(process.pid, signal.SIGCONT)
    found = KeptClient.find(place, Subsystem([device]), device.unforeseen)
    assert found is not None
    found.close()
    assert client.is_ended()
    client.close()
    assert process.wait(30) == 0
    device.close()
