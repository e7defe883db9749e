"""The configuration space of the device, and the notification of the front-end when it changes.

May not know: rings, memory.
"""

import socket
from collections.abc import Mapping

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.accepted_features import AcceptedFeatures
from zonefs_emu.vhost_user.connection import Connection, Handler, Reply
from zonefs_emu.vhost_user.messages import BackendRequest, ConfigSpace, Nothing, ProtocolFeature, Request
from zonefs_emu.virtqueue.virtio_device import VirtioDevice


class Configuration:
    """The configuration space as one connection sees it."""

    def __init__(self, virtio_device: VirtioDevice, features: AcceptedFeatures, log: LimitedLog) -> None:
        """Show the configuration space of *virtio_device*; *log* is for notifications that cannot be sent."""
        self._virtio_device = virtio_device
        self._features = features
        self._log = log
        #: The socket for requests of the back-end, if the front-end gave one.
        self._requests: Connection | None = None
        self.handlers: Mapping[int, Handler] = {
            Request.GET_CONFIG: self._get,
            Request.SET_CONFIG: self._set,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
        }

    def close(self) -> None:
        """Close the socket for requests of the back-end."""
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.close()

    def zones_changed(self) -> None:
        """Notify the driver that other ports changed zones, by an event of the device or a change of configuration."""
        if not self._virtio_device.zones_changed() or self._requests is None:
            return
        if not self._features.has(ProtocolFeature.CONFIG):
            return
        try:
            self._requests.send(BackendRequest.CONFIG_CHANGE_MSG, Nothing())
        except PeerError as error:
            self._log.info("the front-end cannot be notified of changed zones: %s", error)
            self.close()

    def _get(self, payload: ConfigSpace, _fds: list[int]) -> Reply:
        config = self._virtio_device.config()
        if config is None:
            # "vhost-user back-end uses zero length of payload to indicate an error to the vhost-user front-end"
            return Reply(ConfigSpace(payload.offset, 0, payload.flags, b""))
        data = config[payload.offset : payload.offset + payload.size].ljust(payload.size, b"\0")
        return Reply(ConfigSpace(payload.offset, payload.size, payload.flags, data))

    def _set(self, payload: ConfigSpace, _fds: list[int]) -> None:
        self._virtio_device.set_config(payload.offset, payload.data)

    def _set_backend_req_fd(self, _payload: Nothing, fds: list[int]) -> None:
        if len(fds) != 1:
            message = f"the socket for requests of the back-end came with {len(fds)} descriptors instead of one"
            raise PeerError(message)
        self.close()
        try:
            requests = socket.socket(fileno=fds[0])
        except OSError as error:
            message = f"the descriptor for requests of the back-end is not a socket: {error.strerror}"
            raise PeerError(message) from None
        fds.clear()
        self._requests = Connection(requests)
