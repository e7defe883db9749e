"""The interface between a transport and a device; :mod:`.blk_device` and :mod:`.scsi_host` implement it."""

from typing import Protocol

from zonefs_emu.device.intent_log import Intents
from zonefs_emu.device.port import Port
from zonefs_emu.virtio.handler import Handler
from zonefs_emu.virtqueue.changes import ZoneChanges
from zonefs_emu.virtqueue.virtqueue import EventSource


class VirtioDevice(Protocol):
    """A virtio device, ready to be offered. It outlives drivers and connections."""

    #: The name of the device for people and in the log: "vhost-user-blk".
    name: str
    #: Virtio device number.
    device_id: int
    #: Feature bits of the device type and the rings.
    offered: int
    port: Port
    intents: Intents
    changes: ZoneChanges
    nr_queues: int

    def handler(self, index: int) -> Handler | None:
        """Return the handler of the requests of queue *index*; None if that is an event queue, or does not exist."""
        ...

    def events(self, index: int) -> EventSource | None:
        """Return the events of queue *index*; None if that is no event queue."""
        ...

    def accept(self, features: int) -> str | None:
        """Receive the features that the driver accepted; return the reason if they are not enough, or None."""
        ...

    def config(self) -> bytes | None:
        """Return the configuration space; None if the front-end has one of its own."""
        ...

    def set_config(self, offset: int, data: bytes) -> None:
        """Receive a write of *data* by the driver at *offset* of the configuration space."""
        ...

    def zones_changed(self) -> bool:
        """Take note that other ports changed zones; return whether to notify the driver of a configuration change."""
        ...

    def reset(self) -> None:
        """Do what a virtio reset does. Zones do not change."""
        ...
