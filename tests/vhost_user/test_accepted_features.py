"""What is offered, and drivers that accept less than the device needs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vhost_user.serving import blk_device, serving, still_serves
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vhost_user.accepted_features import AcceptedFeatures
from zonefs_emu.vhost_user.connection import Reply
from zonefs_emu.vhost_user.memory_map import MEM_SLOTS_MAX
from zonefs_emu.vhost_user.messages import (
    Nothing,
    Number,
    ProtocolFeature,
    Request,
)
from zonefs_emu.virtio import blk_codec, blk_config, features as bits


def test_what_is_offered(frontend: Frontend) -> None:
    features = frontend.ask_number(Request.GET_FEATURES)
    assert features & blk_config.F_ZONED
    assert features & bits.LOG_ALL
    assert features & bits.PROTOCOL_FEATURES
    offered = frontend.ask_number(Request.GET_PROTOCOL_FEATURES)
    names = {feature.name for feature in ProtocolFeature if offered & feature.mask}
    assert names == {
        "MQ", "LOG_SHMFD", "REPLY_ACK", "BACKEND_REQ", "CONFIG", "INFLIGHT_SHMFD", "RESET_DEVICE",
        "CONFIGURE_MEM_SLOTS", "STATUS", "DEVICE_STATE",
    }  # fmt: skip
    assert not offered >> len(ProtocolFeature)
    assert frontend.ask_number(Request.GET_QUEUE_NUM) == 4
    assert frontend.ask_number(Request.GET_MAX_MEM_SLOTS) == MEM_SLOTS_MAX


def test_firmware_first(path: Path) -> None:
    """Start without ZONED, read a sector, stop, reset, start with everything: what SeaBIOS and then Linux do."""
    with Frontend(path, features=(1 << 64) - 1 - blk_config.F_ZONED) as frontend:
        frontend.start()
        queue = frontend.queues[0]
        assert BlkDriver(queue).read(0, 512)[0] == 0
        assert BlkDriver(queue).report()[0] == blk_codec.S_UNSUPP
        assert frontend.stop_queue(queue) == queue.ring.base
        frontend.tell(Request.SET_STATUS, Number(0), ack=False)
        frontend.features |= blk_config.F_ZONED & frontend.offered
        frontend.start_queues()
        assert BlkDriver(queue).report()[0] == 0
        frontend.tell(Request.RESET_DEVICE, Nothing())
        assert frontend.ask_number(Request.GET_STATUS) == 0


def test_strict_refuses_a_driver_without_zoned(
    device: ZonedDevice, tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("a driver that does not accept zones is refused")
    with serving(device, blk_device(device, strict=True), tmp_path / "strict"):
        with (
            Frontend(tmp_path / "strict", features=(1 << 64) - 1 - blk_config.F_ZONED) as frontend,
            pytest.raises((PeerError, OSError)),
        ):
            frontend.start()
        still_serves(tmp_path / "strict")


def test_logging_is_neither_offered_nor_accepted_without_an_atomic_or(
    device: ZonedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    virtio_device = blk_device(device)
    features = AcceptedFeatures(virtio_device)
    take = features.handlers[Request.SET_FEATURES]
    take(Number(bits.VERSION_1 | bits.LOG_ALL), [])
    monkeypatch.setattr("zonefs_emu.vhost_user.accepted_features.HAS_ATOMIC_OR", False)
    offered = features.handlers[Request.GET_FEATURES](Nothing(), [])
    assert offered == Reply(Number(virtio_device.offered | bits.PROTOCOL_FEATURES))
    with pytest.raises(PeerError, match="features 0x4000000 were accepted that are not offered"):
        take(Number(bits.VERSION_1 | bits.LOG_ALL), [])
