"""One connection of a front-end: passes each message to the part that handles it.

The parts are the features (:mod:`.accepted_features`), the memory (:mod:`.memory_map`), the rings (:mod:`.rings`), the
in-flight region (:mod:`.inflight_region`), migration (:mod:`.migration`) and the configuration space
(:mod:`.configuration`). Each lists the messages that it handles. Messages that concern the whole device (owner, number
of queues, status, reset) are handled here.

May not know: event loops. The back-end calls :meth:`Dispatcher.handle` for each message and serves the queues, all on
one thread. If a front-end breaks the protocol, a PeerError ends its connection; the device is not affected.

Source: vhost-user.rst, and the order of messages that QEMU and libblkio send.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.accepted_features import AcceptedFeatures
from zonefs_emu.vhost_user.configuration import Configuration
from zonefs_emu.vhost_user.connection import Connection, Handler, Message, Reply
from zonefs_emu.vhost_user.inflight_region import InflightRegion
from zonefs_emu.vhost_user.memory_map import MemoryMap
from zonefs_emu.vhost_user.messages import (
    FLAG_NEED_REPLY,
    Nothing,
    Number,
    ProtocolFeature,
    Request,
    decode_payload,
)
from zonefs_emu.vhost_user.migration import Migration
from zonefs_emu.vhost_user.rings import Rings
from zonefs_emu.virtqueue.control_virtqueue import order_control, queue_type
from zonefs_emu.virtqueue.peer_memory import PeerMemory
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.timed_virtqueue import time_queues
from zonefs_emu.virtqueue.virtio_device import VirtioDevice

_FAILED: Final = 1


class Dispatcher:
    """A connected front-end."""

    def __init__(
        self, connection: Connection, device: ZonedDevice, virtio_device: VirtioDevice, server: QueueServer
    ) -> None:
        """Offer *virtio_device* on *connection*; its queues are served by *server*."""
        self._connection = connection
        self._virtio_device = virtio_device
        self._server = server
        #: All memory that the front-end shares. If a part of it is lost, the connection must end.
        self.shared = PeerMemory()
        port = virtio_device.port
        self.queues = [
            queue_type(port, virtio_device.handler(index))(
                index,
                virtio_device.intents,
                virtio_device.handler(index),
                server.service,
                events=virtio_device.events(index),
                faults=device.faults.faults,
                shared=self.shared,
            )
            for index in range(virtio_device.nr_queues)
        ]
        order_control(self.queues, virtio_device)
        time_queues(self.queues, port, server.ring_due)
        self._status = 0
        self._features = AcceptedFeatures(virtio_device)
        self._memory = MemoryMap(self.shared)
        self._inflight = InflightRegion(self.shared, self._any_ring_runs)
        self._migration = Migration(
            device,
            self.shared,
            self._features,
            server.service.log,
            any_ring_runs=self._any_ring_runs,
            must_not_wait=self._must_not_wait,
        )
        self._configuration = Configuration(virtio_device, self._features, server.service.log)
        self._rings = Rings(
            self.queues,
            server,
            features=self._features,
            memory=self._memory,
            inflight=self._inflight,
            migration=self._migration,
        )
        self._handlers: Mapping[int, Handler] = {
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: self._get_status,
            Request.RESET_DEVICE: self._reset_device,
            **self._features.handlers,
            **self._memory.handlers,
            **self._inflight.handlers,
            **self._migration.handlers,
            **self._configuration.handlers,
            **self._rings.handlers,
        }

    def _any_ring_runs(self) -> bool:
        return any(queue.ring is not None for queue in self.queues)

    def _must_not_wait(self) -> bool:
        return self._server.stopping or self._connection.is_gone()

    def handle(self, message: Message) -> None:
        """Handle *message*, answer it, and close the descriptors that the handler does not keep.

        Raises:
            PeerError: the front-end broke the protocol, or is gone.
            OSError: a descriptor is not what the message says.
        """
        fds = message.fds
        try:
            payload = decode_payload(message.request, message.data)
            handler = self._handlers.get(message.request)
            if handler is None:
                self._refuse(message)
                return
            reply = handler(payload, fds)
            if reply is None and self._wants_acknowledgement(message):
                reply = Reply(Number(0))
            if reply is not None:
                self._send(message.request, reply)
        finally:
            # Handlers remove the descriptors that they keep from the list.
            for fd in fds:
                os.close(fd)

    def _send(self, request: int, reply: Reply) -> None:
        try:
            self._connection.reply(request, reply.payload, fds=reply.fds)
        finally:
            for fd in reply.fds:
                os.close(fd)

    def _wants_acknowledgement(self, message: Message) -> bool:
        return bool(message.flags & FLAG_NEED_REPLY) and self._features.has(ProtocolFeature.REPLY_ACK)

    def _refuse(self, message: Message) -> None:
        """Refuse an unknown message by an answer if an acknowledgement is wanted, otherwise by a PeerError."""
        if not self._wants_acknowledgement(message):
            text = f"message {message.request} is not known, or needs a feature that is not offered"
            raise PeerError(text)
        self._connection.reply(message.request, Number(_FAILED))

    def zones_changed(self) -> None:
        """Notify the driver that other ports changed zones; see :meth:`Configuration.zones_changed`."""
        self._configuration.zones_changed()

    def close(self) -> None:
        """Stop all rings and release all memory and descriptors; the device stays as it is."""
        with ExitStack() as ending:  # each step is done, whatever the others raise; the last one is done first
            ending.callback(self._connection.close)
            ending.callback(self._configuration.close)
            ending.callback(self._migration.close)
            ending.callback(self._inflight.close)
            ending.callback(self._memory.close)
            ending.callback(self._rings.close)
            self._handlers = {}

    # -- the whole device -------------------------------------------------------------------------------------

    def _set_owner(self, _payload: Nothing, _fds: list[int]) -> None:
        """Do nothing: the owner of a socket is always the connected peer."""

    def _reset_owner(self, _payload: Nothing, _fds: list[int]) -> None:
        self._rings.disable()

    def _get_queue_num(self, _payload: Nothing, _fds: list[int]) -> Reply:
        return Reply(Number(self._virtio_device.nr_queues))

    def _set_status(self, payload: Number, _fds: list[int]) -> None:
        self._status = payload.value & 0xFF
        if not self._status:
            self._reset()

    def _get_status(self, _payload: Nothing, _fds: list[int]) -> Reply:
        return Reply(Number(self._status))

    def _reset_device(self, _payload: Nothing, _fds: list[int]) -> None:
        self._reset()
        self._status = 0

    def _reset(self) -> None:
        """Do what a virtio reset does. Zones stay as they are: a reset is no power cycle."""
        self._rings.reset()
        self._virtio_device.reset()
