"""The front-end in a session; a guest's driver uses the drive."""

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.nvme.conftest import BLOCK, UUID_1, geometry
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.vfio_user import VfioUserFrontEnd, keeper_path, places_of_keeper
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient


async def test_a_guest_has_the_drive_until_the_session_ends(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "image", geometry(), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    session = Session(device, tmp_path / "image")
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
    assert device.machine.zone(0).wp == BLOCK // 512
    device.close()


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
