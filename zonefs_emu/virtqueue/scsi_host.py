"""The virtio SCSI host with the interface of a transport."""

from typing import Final

from zonefs_emu.device.buffers import SHORT_SECTORS_MAX
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.model.transitions import ZBC
from zonefs_emu.scsi.target import Target
from zonefs_emu.virtio import features as bits, scsi
from zonefs_emu.virtio.handler import Handler
from zonefs_emu.virtio.plain_requests import PlainRequests
from zonefs_emu.virtio.scsi import ControlQueue, EventQueue, RequestQueue
from zonefs_emu.virtqueue.changes import ZoneChanges
from zonefs_emu.virtqueue.virtqueue import EventSource

_CONTROL: Final = 0
_EVENT: Final = 1
_FIRST_REQUEST: Final = 2
#: How Linux and QEMU's firmware address the disk: target 0, LUN 0 in flat addressing.
_LUN_0: Final = b"\x01\0\x40\0\0\0\0\0"


class ScsiHost:
    """A :class:`zonefs_emu.virtqueue.virtio_device.VirtioDevice` of a SCSI host with one zoned disk.

    The front-end has the configuration space, as QEMU's vhost-user-scsi does, so the transport must not offer CONFIG.
    """

    name = "vhost-user-scsi"
    device_id = scsi.DEVICE_ID

    def __init__(self, device: ZonedDevice, *, serial: str, nr_request_queues: int = 1) -> None:
        """Offer *device* as a disk with the serial number *serial* (printable ASCII).

        The disk has no power-on unit attention, because this process may take over from one that was killed, which the
        guest must not notice.

        Raises:
            ValueError: *serial* is no SCSI serial number.
        """
        self.changes = ZoneChanges()
        self.port = device.port(self.name, ZBC)
        self.intents = self.port.intents = Intents(self.changes.contested)
        device.subscribe(self.changes, port=self.port)
        self.target = Target(self.port, serial=serial, power_on=False)
        self._control = ControlQueue(self.target)
        self._events = EventQueue()
        self._requests = RequestQueue(
            self.target,
            PlainRequests(
                self.port,
                SHORT_SECTORS_MAX,
                may_write=self.target.may_write_now,
                may_read=self.target.may_read_now,
                is_scsi=True,
                lun=_LUN_0,
            ),
        )
        self.offered = bits.TRANSPORT | scsi.F_CHANGE
        self.nr_queues = _FIRST_REQUEST + nr_request_queues

    def handler(self, index: int) -> Handler | None:
        """Return the handler of the requests of queue *index*; None if it is the event queue, or does not exist."""
        if index == _CONTROL:
            return self._control
        return self._requests if _FIRST_REQUEST <= index < self.nr_queues else None

    def events(self, index: int) -> EventSource | None:
        """Return the events if *index* is the event queue, otherwise None."""
        return self._events if index == _EVENT else None

    def accept(self, features: int) -> str | None:
        """Take the features that the driver accepted. Any are enough, so None is returned."""
        self._events.wants_changes = bool(features & scsi.F_CHANGE)
        return None

    def config(self) -> bytes | None:
        """Return None: the front-end has the configuration space."""
        return None

    def set_config(self, offset: int, data: bytes) -> None:
        """Do nothing: the configuration space belongs to the front-end."""

    def zones_changed(self) -> bool:
        """Notify the driver through the event queue; return False, because its configuration does not change."""
        self._events.parameters_changed()
        return False

    def reset(self) -> None:
        """Do what a virtio reset does: drop the events, and restore the mode pages. Zones do not change."""
        self._events.clear()
        self.target.disk.reset()
