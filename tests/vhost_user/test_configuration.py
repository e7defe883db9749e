"""The configuration space, and changes that the driver is told of."""

import pytest

from tests.vhost_user.serving import ZONE
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.messages import (
    BackendRequest,
    ConfigSpace,
    Request,
    encode_header,
)


def test_configuration_in_any_piece(frontend: Frontend) -> None:
    frontend.negotiate()
    whole = frontend.config(96)
    assert frontend.config(57) == whole[:57]
    assert frontend.config(60) == whole[:60]
    assert frontend.config(8, 90) == whole[90:] + bytes(2)
    assert frontend.config(256) == whole.ljust(256, b"\0")
    frontend.tell(Request.SET_CONFIG, ConfigSpace(32, 1, 0, b"\0"))
    assert frontend.config(1, 32) == b"\0"
    frontend.tell(Request.SET_CONFIG, ConfigSpace(0, 96, 0, whole))
    assert frontend.config() == whole


def test_the_guest_is_told_of_changes_behind_its_back(device: ZonedDevice, frontend: Frontend) -> None:
    frontend.start()
    assert frontend.backend_requests is not None
    other = device.port("command line", VIRTIO)
    for zone_no in range(2, 12):
        assert not other.manage(Operation.FINISH, zone_no * ZONE)
    frontend.backend_requests.settimeout(10)
    assert frontend.backend_requests.recv(100) == encode_header(BackendRequest.CONFIG_CHANGE_MSG, 0, 0)
    frontend.backend_requests.settimeout(0.2)
    BlkDriver(frontend.queues[0]).write(20 * ZONE, bytes(512))  # its own changes are no news
    with pytest.raises(TimeoutError):
        frontend.backend_requests.recv(100)
