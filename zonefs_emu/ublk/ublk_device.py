"""One ublk device, from its creation or its recovery after the death of its server to its deletion.

May not know: requests (io_queue.py), io_uring's layout (uring.py), the bytes of ublk (protocol.py), images.

A device outlives its server: the kernel keeps it, with the requests in flight, until another server recovers or deletes
it. The kernel also keeps 64 bits of the image's UUID with the device, so that the next server of the image finds it.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.errors import UsageError
from zonefs_emu.inflight.tag_record import TagRecord
from zonefs_emu.model import linux
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.ublk.control_device import CONTROL_NODE, ControlDevice, control_device
from zonefs_emu.ublk.io_queue import MAX_IO_BYTES, IoQueue
from zonefs_emu.ublk.protocol import MAX_QUEUE_DEPTH, DeviceInfo, DeviceState, Flag, encode_params
from zonefs_emu.units import human_bytes, to_bytes

DEPTH: Final = 64
QUEUES_MAX: Final = 16
_RECOVERY_SECONDS: Final = 10
_NODE_SECONDS: Final = 5
_FLAGS: Final = Flag.CMD_IOCTL_ENCODE | Flag.USER_COPY | Flag.ZONED | Flag.USER_RECOVERY | Flag.USER_RECOVERY_REISSUE
#: The device number that means "the next free one".
_ANY: Final = 0xFFFFFFFF

log = logging.getLogger(__name__)


class UblkDevice:
    """A block device /dev/ublkbN that is served from *device*, from :meth:`start` to :meth:`stop`.

    :meth:`start` and :meth:`stop` block until the kernel has carried them out.
    """

    def __init__(
        self, device: ZonedDevice, *, records: Path, number: int | None = None, nr_queues: int = 1,
        queue_depth: int = DEPTH, ended: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Prepare without changing anything.

        *records*: the file of the :class:`TagRecord`, which outlives the process. *number*: that of /dev/ublkbN, or
        None for any. *ended* is called, on any thread, when the kernel or a failure ends the serving.

        Raises:
            UsageError: the numbers of queues or requests are not possible, the kernel cannot make devices, or the
                kernel would refuse the geometry; with a remedy.
        """
        if not 0 < nr_queues <= QUEUES_MAX or not 0 < queue_depth < MAX_QUEUE_DEPTH:
            message = f"a device has 1 to {QUEUES_MAX} queues of 1 to {MAX_QUEUE_DEPTH - 1} requests"
            raise UsageError(message)
        if refusals := refusals_of(device.geometry):
            raise UsageError(refusals[0], exit_code=1)
        self._device = device
        self._port = device.port("ublk", VIRTIO)
        # Recovery compares bytes in the image, so no zone counts as contested.
        self._port.intents = self._intents = Intents(contested=lambda _: False)
        self._record_path = records
        self._record: TagRecord | None = None
        self._number = number
        self._nr_queues = nr_queues
        self._depth = queue_depth
        self._ended = ended
        self._control = ControlDevice()
        self._queues: list[IoQueue] = []
        self._fd = -1
        self._info: DeviceInfo | None = None
        self._tag = device_tag(device.uuid)
        #: Whether the device existed already, left by a server that died.
        self.recovered = False

    @property
    def node(self) -> Path:
        """The block device's node."""
        return Path(f"/dev/ublkb{self._id}")

    @property
    def _id(self) -> int:
        assert self._info is not None
        return self._info.device_id

    def statistics(self) -> Mapping[str, int]:
        """Return the number of requests that were answered since the start, and the number of queues."""
        return {"requests": sum(queue.requests for queue in self._queues), "queues": len(self._queues)}

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended a queue; None unless one did."""
        return next((queue.failure for queue in self._queues if queue.failure is not None), None)

    def start(self) -> Path:
        """Make the device, or recover the one that a dead server of this image left; return its node.

        Raises:
            UsageError: the kernel refuses the device.
        """
        left = next((info for info in self._control.devices() if info.tag == self._tag), None)
        try:
            if left is not None and left.state == DeviceState.DEAD:
                # The server died before it started the device, or between stopping and deleting it.
                self._control.delete(left.device_id)
                left = None
            if left is not None:
                self._recover(left)
            else:
                self._create()
        except OSError as error:
            self._control.close()
            raise UsageError(_explain(error, self._number), exit_code=1) from None
        return self.node

    def _create(self) -> None:
        wanted = DeviceInfo(
            nr_queues=self._nr_queues, queue_depth=self._depth, flags=_FLAGS, max_io_bytes=MAX_IO_BYTES, tag=self._tag,
            device_id=_ANY if self._number is None else self._number,
        )  # fmt: skip
        info = self._info = self._control.add(wanted)
        try:
            params = encode_params(
                self._port.geometry, max_io_bytes=info.max_io_bytes, readonly=self._device.image.readonly
            )
            self._control.set_params(info.device_id, params)
            self._serve(info, go_on=False)
            self._control.start(info.device_id)
        except BaseException:
            self._end()
            raise

    def _recover(self, info: DeviceInfo) -> None:
        """Recover the device of *info*, whose server died. The kernel sends its requests in flight again."""
        self._info = info
        self.recovered = True
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while True:
            try:
                self._control.start_recovery(info.device_id)
                break
            except OSError:
                # The kernel may not have noticed the death of the old server yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._serve(info, go_on=True)
        self._control.end_recovery(info.device_id)
        log.info("%s is served again", self.node)

    def _serve(self, info: DeviceInfo, *, go_on: bool) -> None:
        node = Path(f"/dev/ublkc{info.device_id}")
        deadline = time.monotonic() + _NODE_SECONDS
        while True:
            try:
                self._fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
                break
            except OSError:
                # udev or devtmpfs makes the node a little later, and the node is busy until the old server is gone.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        record = self._record = TagRecord(
            self._record_path, self._port, device_tag=self._tag, nr_tags=info.nr_queues * info.queue_depth, go_on=go_on
        )
        self._queues = [
            IoQueue(
                self._port,
                self._intents,
                self._fd,
                record,
                number=number,
                depth=info.queue_depth,
                ended=self._ended,
            )
            for number in range(info.nr_queues)
        ]
        for queue in self._queues:
            queue.start()

    def is_in_use(self) -> bool:
        """Say whether the node is open exclusively, for example by a mount, a volume manager or a virtual machine."""
        return is_in_use(self.node)

    def stop(self) -> None:
        """Stop and delete the device, and remove its record; requests in flight are answered first."""
        self._end()
        self._control.close()

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # another process has stopped it
            self._control.stop(self._id)
        for queue in self._queues:
            queue.join()
        if self._fd >= 0:
            # The kernel deletes a device only when its character device is not open.
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            self._control.delete(self._id)
        if self._record is not None:
            self._record.remove()
            self._record = None


def device_tag(uuid: UUID) -> int:
    """Return the 64 bits by which a server finds the device that an earlier one left."""
    return int.from_bytes(uuid.bytes[:8], "little")


def left_behind(uuid: str) -> list[str]:
    """Return a list with the block device node of the image with *uuid*, empty if there is none.

    Raises:
        UsageError: the control device cannot be used.
    """
    if not CONTROL_NODE.exists():
        return []
    with control_device() as control:
        tag = device_tag(UUID(uuid))
        return [f"/dev/ublkb{info.device_id}" for info in control.devices() if info.tag == tag]


def is_in_use(node: Path) -> bool:
    """Say whether the block device *node* is open exclusively."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def refusals_of(geometry: Geometry) -> list[str]:
    """Return one sentence for each reason why *geometry* cannot be that of a ublk device; an empty list if it can."""
    found = linux.refusals(geometry) + linux.block_refusals(to_bytes(geometry.write_granularity))
    if geometry.size % geometry.zone_size:
        # ublk_get_nr_zones() rounds down, so the last zone would not be reported, and the kernel would refuse the disk.
        runt = human_bytes(to_bytes(geometry.size % geometry.zone_size))
        found.append(f"ublk has no way to show a last zone that is smaller than the others, and this one has {runt}")
    return found


def _explain(error: OSError, number: int | None) -> str:
    if number is not None and isinstance(error, FileExistsError):
        return f"there is a device /dev/ublkb{number} already"
    return f"the kernel refuses the ublk device ({error.strerror}); the kernel's log (dmesg) has the reason"
