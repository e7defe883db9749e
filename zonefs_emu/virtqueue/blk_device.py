"""The virtio block device with the interface of a transport."""

import logging

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.virtio import blk_config
from zonefs_emu.virtio.blk import Blk
from zonefs_emu.virtio.blk_config import BlkOptions
from zonefs_emu.virtio.handler import Handler
from zonefs_emu.virtqueue.changes import ZoneChanges
from zonefs_emu.virtqueue.virtqueue import EventSource

log = logging.getLogger(__name__)


class BlkDevice:
    """A :class:`zonefs_emu.virtqueue.virtio_device.VirtioDevice` of a zoned block device."""

    name = "vhost-user-blk"
    device_id = blk_config.DEVICE_ID

    def __init__(self, device: ZonedDevice, options: BlkOptions, *, strict: bool = False) -> None:
        """Offer *device*. With *strict*, a driver that does not accept ZONED is refused, as the standard requires."""
        self.changes = ZoneChanges()
        self.port = device.port(self.name, VIRTIO)
        self.intents = self.port.intents = Intents(self.changes.contested)
        device.subscribe(self.changes, port=self.port)
        self._blk = Blk(self.port, options)
        self._strict = strict
        self._has_warned = False
        self.offered = self._blk.offered
        self.nr_queues = options.nr_queues

    def handler(self, index: int) -> Handler | None:
        """Return the handler of requests, which is the same for all queues; None if there is no queue *index*."""
        return self._blk if 0 <= index < self.nr_queues else None

    def events(self, index: int) -> EventSource | None:  # noqa: ARG002  (the protocol's signature)
        """Return None, because a block device has no event queue."""
        return None

    def accept(self, features: int) -> str | None:
        """Take the features that the driver accepted; with *strict*, return why they are not enough.

        Without *strict* any features are enough. A firmware that boots from the disk does not accept ZONED, and
        vhost-user has no message that refuses features.
        """
        self._blk.accept(features)
        if features & blk_config.F_ZONED or not self._blk.refuses_unzoned:
            return None
        if not self._strict:
            log.info("a driver that does not accept zones is tolerated: it sees a plain disk")
            return None
        if not self._has_warned:
            # The front-end may connect again without end while its guest waits, so the log has the warning once.
            self._has_warned = True
            log.warning(
                "a driver that does not accept zones is refused, as --strict-features asks: its requests are not "
                "answered; use --vhost-user-scsi, or a front-end that passes VIRTIO_BLK_F_ZONED on"
            )
        return "the driver did not accept VIRTIO_BLK_F_ZONED, which a host-managed device must insist on"

    def config(self) -> bytes | None:
        """Return the 96 bytes of the configuration space."""
        return self._blk.config()

    def set_config(self, offset: int, data: bytes) -> None:
        """Receive a write of *data* at *offset* of the configuration space: the cache mode."""
        self._blk.set_config(offset, data)

    def zones_changed(self) -> bool:
        """Return True, because the driver is notified by a change of the configuration."""
        return True

    def reset(self) -> None:
        """Do what a virtio reset does: restore the cache mode. Zones do not change."""
        self._blk.reset()
