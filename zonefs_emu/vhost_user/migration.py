"""The back-end's part in the migration of a guest: the log of written pages, and the zone states as a stream.

May not know: how a stream is encoded (:mod:`.state_transfer`), nor how a page is marked
(:mod:`zonefs_emu.virtqueue.dirty_log`).

Invariant: at most one stream is being transferred, by a thread of its own. CHECK_DEVICE_STATE or
:meth:`Migration.close`, whichever comes first, ends that thread.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.errors import PeerError, ZonedError
from zonefs_emu.vhost_user import state_transfer
from zonefs_emu.vhost_user.accepted_features import AcceptedFeatures
from zonefs_emu.vhost_user.connection import Handler, Reply
from zonefs_emu.vhost_user.messages import DeviceStateTransfer, LogBase, Nothing, Number, ProtocolFeature, Request
from zonefs_emu.vhost_user.state_transfer import Transfer
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.peer_memory import PeerMemory

_STATE_FAILED: Final = 1
_STATE_NO_FD: Final = 1 << 8
_SAVE: Final = 0
_LOAD: Final = 1
#: The longest wait of CHECK_DEVICE_STATE for the end of a transfer, and the time between two checks whether to go on.
_STATE_S_MAX: Final = 60.0
_LOOK_S: Final = 0.1


class Migration:
    """The migration of one guest, from or to this device."""

    def __init__(
        self,
        device: ZonedDevice,
        shared: PeerMemory,
        features: AcceptedFeatures,
        log: LimitedLog,
        *,
        any_ring_runs: Callable[[], bool],
        must_not_wait: Callable[[], bool],
    ) -> None:
        """Migrate the zone states of *device*. *must_not_wait* returns whether the connection or the server ends.

        A dirty log is mapped as a part of *shared* memory. No state is transferred while *any_ring_runs* returns True.
        """
        self._device = device
        self._shared = shared
        self._features = features
        self._log = log
        self._any_ring_runs = any_ring_runs
        self._must_not_wait = must_not_wait
        self._dirty_log: DirtyLog | None = None
        self._transfer: Transfer | None = None
        #: Called after the front-end gave another dirty log.
        self.log_changed: Callable[[], None] = lambda: None
        self.handlers: Mapping[int, Handler] = {
            Request.SET_LOG_BASE: self._set_log_base,
            Request.SET_LOG_FD: self._set_log_fd,
            Request.SET_DEVICE_STATE_FD: self._set_state_fd,
            Request.CHECK_DEVICE_STATE: self._check_state,
        }

    def close(self) -> None:
        """Release the dirty log, and end the thread of a state transfer if there is one."""
        transfer, self._transfer, self._dirty_log = self._transfer, None, None
        if transfer is not None:
            transfer.end()

    # -- dirty log --------------------------------------------------------------------------------------------

    @property
    def active_log(self) -> DirtyLog | None:
        """The log in which rings mark pages now; None if the front-end wants no pages to be logged.

        The feature LOG_ALL decides. The flag VRING_LOG of a ring is not used for this, because it is for the used ring
        only, and front-ends set both together.
        """
        return self._dirty_log if self._features.virtio & bits.LOG_ALL else None

    def _set_log_base(self, payload: LogBase, fds: list[int]) -> Reply | None:
        if len(fds) != 1:
            message = f"a dirty log came with {len(fds)} descriptors instead of one"
            raise PeerError(message)
        self._dirty_log = DirtyLog(self._shared, fds[0], payload.size, payload.offset)
        self.log_changed()
        return Reply(Number(0)) if self._features.has(ProtocolFeature.LOG_SHMFD) else None

    def _set_log_fd(self, _payload: object, _fds: list[int]) -> None:
        """Do nothing: the eventfd for notifications of logged pages is closed and never signalled.

        A front-end reads the log at its own pace. QEMU, which migrates guests, never sends such an eventfd.
        """

    # -- zone states ------------------------------------------------------------------------------------------

    def _set_state_fd(self, payload: DeviceStateTransfer, fds: list[int]) -> Reply:
        """Begin to send or receive the zone states through a pipe. CHECK_DEVICE_STATE takes received states over."""
        # The state is transferred while the device is suspended: all its rings are stopped.
        if (
            len(fds) != 1
            or payload.direction not in (_SAVE, _LOAD)
            or payload.phase != 0
            or self._any_ring_runs()
            or self._transfer is not None
        ):
            return Reply(Number(_STATE_FAILED | _STATE_NO_FD))
        # The stream is made now, so the states of this moment are sent, even if the front-end reads them much later.
        outgoing = state_transfer.encode(self._device) if payload.direction == _SAVE else None
        nr_bytes_max = state_transfer.stream_bytes(self._device.geometry)
        self._transfer = Transfer(fds.pop(), outgoing=outgoing, nr_bytes_max=nr_bytes_max)
        return Reply(Number(_STATE_NO_FD))

    def _check_state(self, _payload: Nothing, _fds: list[int]) -> Reply:
        transfer, self._transfer = self._transfer, None
        if transfer is None:
            return Reply(Number(_STATE_FAILED))
        deadline = time.monotonic() + _STATE_S_MAX
        while not transfer.done.wait(_LOOK_S) and not self._must_not_wait() and time.monotonic() < deadline:
            pass
        transfer.end()
        try:
            self._finish(transfer)
        except ZonedError as error:
            self._log.warning("the device state was not transferred: %s", error)
            return Reply(Number(_STATE_FAILED))
        return Reply(Number(0))

    def _finish(self, transfer: Transfer) -> None:
        """Take over the received states; for sent ones, check only that they were sent.

        Raises:
            ZonedError: the stream was not transferred, cannot be taken over, or belongs to a connection that is gone.
            Exception: an unforeseen error of the thread that transferred the stream.
        """
        if transfer.error is not None:
            raise transfer.error
        if transfer.outgoing is None:
            if self._must_not_wait():
                message = "the connection to which the device state belongs has ended"
                raise PeerError(message)
            if self._any_ring_runs():
                message = "rings were started before the device state was checked"
                raise PeerError(message)
            state_transfer.load(self._device, transfer.arrived)
