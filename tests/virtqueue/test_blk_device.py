import logging
import struct
from collections.abc import Callable

import pytest

from tests.vhost_user.serving import ZONE, blk_device
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.virtio import blk_config, features as bits


def test_strict_insists_on_zoned(
    device: ZonedDevice, expect_warning: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    expect_warning("a driver that does not accept zones is refused, as --strict-features asks")
    caplog.set_level(logging.INFO)
    tolerant, strict = blk_device(device), blk_device(device, strict=True)
    without = bits.VERSION_1 | blk_config.F_FLUSH
    assert tolerant.accept(without) is None
    assert "it sees a plain disk" in caplog.text
    reason = strict.accept(without)
    assert reason is not None
    assert "ZONED" in reason
    assert strict.accept(without) == reason
    assert len([entry for entry in caplog.records if entry.levelname == "WARNING"]) == 1, "once is enough"
    assert strict.accept(without | blk_config.F_ZONED) is None


@pytest.mark.parametrize(("features", "nr_flushes"), [(bits.VERSION_1, 1), (bits.VERSION_1 | blk_config.F_FLUSH, 0)])
def test_a_driver_that_cannot_flush_has_each_write_made_durable(
    device: ZonedDevice, features: int, nr_flushes: int
) -> None:
    virtio_device = blk_device(device)
    virtio_device.accept(features)
    handler = virtio_device.handler(0)
    assert handler is not None
    header, status = struct.pack("<IIQ", 1, 0, 0), bytearray(b"?")
    handler.execute((0, [memoryview(header), memoryview(bytes(512))], [memoryview(status)]))
    assert status == b"\0"
    assert device.statistics()["flushes"] == nr_flushes


def test_all_queues_are_served_alike(device: ZonedDevice) -> None:
    virtio_device = blk_device(device, nr_queues=3)
    assert [virtio_device.handler(index) is not None for index in range(-1, 4)] == [False, True, True, True, False]
    assert virtio_device.events(0) is None


def test_cache_mode_is_reset(device: ZonedDevice) -> None:
    virtio_device = blk_device(device)
    virtio_device.accept(virtio_device.offered)
    virtio_device.set_config(32, b"\0")
    config = virtio_device.config()
    assert config is not None
    assert config[32] == 0
    virtio_device.reset()
    assert virtio_device.config() != config


def test_changes_by_others_are_noticed_and_its_own_are_not(device: ZonedDevice) -> None:
    virtio_device = blk_device(device)
    virtio_device.port.write(2 * ZONE, 1, [bytes(512)])
    assert virtio_device.changes.due_ns() is None
    device.port("other", VIRTIO).write(3 * ZONE, 1, [bytes(512)])
    assert virtio_device.changes.due_ns() == 0
    assert virtio_device.changes.contested(3)
    assert not virtio_device.changes.contested(2)
    assert virtio_device.zones_changed()
