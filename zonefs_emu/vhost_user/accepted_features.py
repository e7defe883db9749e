"""The features of virtio and those of vhost-user: which are offered, and which the front-end has accepted.

May not know: rings, memory.
"""

from collections.abc import Callable, Mapping
from typing import Final

from zonefs_emu.errors import PeerError
from zonefs_emu.vhost_user.connection import Handler, Reply
from zonefs_emu.vhost_user.messages import Nothing, Number, ProtocolFeature, Request
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtqueue.atomic import HAS_ATOMIC_OR
from zonefs_emu.virtqueue.virtio_device import VirtioDevice

_PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ProtocolFeature.STATUS,
    ProtocolFeature.DEVICE_STATE,
    *((ProtocolFeature.LOG_SHMFD,) if HAS_ATOMIC_OR else ()),
)


class AcceptedFeatures:
    """The features of one connection."""

    def __init__(self, virtio_device: VirtioDevice) -> None:
        """Offer the features of *virtio_device*."""
        self._virtio_device = virtio_device
        #: The virtio feature bits that the front-end has accepted.
        self.virtio = 0
        self._protocol = 0
        #: Called after virtio features were accepted, with the virtio features that were accepted before.
        self.changed: Callable[[int], None] = lambda _before: None
        self.handlers: Mapping[int, Handler] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
        }

    def has(self, feature: ProtocolFeature) -> bool:
        """Return whether the front-end has accepted *feature* of vhost-user."""
        return bool(self._protocol & feature.mask)

    @property
    def rings_begin_enabled(self) -> bool:
        """Whether rings are enabled from the start. SET_VRING_ENABLE exists only with PROTOCOL_FEATURES."""
        return not self.virtio & bits.PROTOCOL_FEATURES

    def _offered_virtio(self) -> int:
        offered = self._virtio_device.offered | bits.PROTOCOL_FEATURES
        return offered | bits.LOG_ALL if HAS_ATOMIC_OR else offered

    def _get_features(self, _payload: Nothing, _fds: list[int]) -> Reply:
        return Reply(Number(self._offered_virtio()))

    def _set_features(self, payload: Number, _fds: list[int]) -> None:
        features = payload.value
        if unknown := features & ~self._offered_virtio():
            message = f"features {unknown:#x} were accepted that are not offered"
            raise PeerError(message)
        before, self.virtio = self.virtio, features
        reason = self._virtio_device.accept(features)
        if reason is not None:
            raise PeerError(reason)
        self.changed(before)

    def _offered_protocol(self) -> int:
        mask = ProtocolFeature.CONFIG.mask if self._virtio_device.config() is not None else 0
        for feature in _PROTOCOL_FEATURES:
            mask |= feature.mask
        return mask

    def _get_protocol_features(self, _payload: Nothing, _fds: list[int]) -> Reply:
        return Reply(Number(self._offered_protocol()))

    def _set_protocol_features(self, payload: Number, _fds: list[int]) -> None:
        unknown = payload.value & ~self._offered_protocol()
        if unknown:
            message = f"protocol features {unknown:#x} were accepted that are not offered"
            raise PeerError(message)
        self._protocol = payload.value
