"""One VDUSE device, from its creation or its recovery after the death of its server to its deletion.

The device is the same virtio block device as with vhost-user, with the same queues, but the kernel is between it and
the driver. The kernel keeps the device, its rings and their requests when the server dies. A file holds a record of
each queue (:mod:`zonefs_emu.inflight.ring_record`), so the next server executes each request exactly once.

One thread serves messages and rings (:mod:`zonefs_emu.virtqueue.queue_server`). The kernel waits for the answers to its
messages while it binds or unbinds a driver, so the caller's thread does that while this thread runs.

Boundaries (docs/errors.md) are the requests and rings of :mod:`zonefs_emu.virtqueue`, each message (one that meets an
exception is answered as failed), and each step of the loop.

Invariants: no ring is served between a reset and the next DRIVER_OK; no memory that the kernel has taken back is used
after that message was answered.
"""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.errors import PeerError, UsageError
from zonefs_emu.inflight.record_file import map_record_file
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.model import linux
from zonefs_emu.vduse import protocol, vdpa_bus
from zonefs_emu.vduse.driver_memory import VduseMemory
from zonefs_emu.vduse.protocol import Message, Request
from zonefs_emu.vduse.vdpa_bus import Driver
from zonefs_emu.virtio import blk_config, features as bits
from zonefs_emu.virtio.blk_config import BlkOptions
from zonefs_emu.virtqueue.blk_device import BlkDevice
from zonefs_emu.virtqueue.peer_memory import LOST, PeerMemory
from zonefs_emu.virtqueue.queue_server import QueueServer
from zonefs_emu.virtqueue.timed_virtqueue import TimedVirtqueue, time_queues
from zonefs_emu.virtqueue.virtqueue import RingAddresses, Virtqueue

QUEUE_SIZE: Final = 128
QUEUES_MAX: Final = 16
#: If more turns of the loop than these fail in a row, the device is served no more.
_BAD_STEPS_MAX: Final = 8
#: Features that are not offered: the kernel refuses CONFIG_WCE, and packed rings gain nothing here.
_NOT_OFFERED: Final = blk_config.F_CONFIG_WCE | bits.RING_PACKED

log = logging.getLogger(__name__)


class _VduseBlkDevice(BlkDevice):
    name = "vduse"


class VduseQueue(Virtqueue):
    """A queue whose driver is notified through the kernel: by an ioctl of *device_fd*."""

    device_fd = -1

    def call(self) -> None:
        """Notify the driver that requests were given back."""
        # The ioctl fails while the driver is being reset. The driver then waits for no answer.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.device_fd, protocol.VQ_INJECT_IRQ, protocol.encode_index(self.index))


class TimedVduseQueue(VduseQueue, TimedVirtqueue):
    """A VduseQueue whose requests take as long as on a real drive."""


class VduseDevice:
    """A device on the vdpa bus that is served from *device*, from :meth:`start` to :meth:`stop`.

    These two methods block until the kernel has carried them out.
    """

    def __init__(
        self, device: ZonedDevice, *, name: str, records: Path, driver: Driver, nr_queues: int = 1,
        ended: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Prepare without changing anything.

        *records*: the file for the records of the queues, which outlives the process. *driver* is to use the device.
        *ended* is called, on any thread, when the serving ends. A device that a dead server left keeps its number of
        queues, whatever *nr_queues* says.

        Raises:
            UsageError: *name* or *nr_queues* is not possible, the name belongs to a device of another image, the kernel
                cannot make devices, or the host's driver would refuse the geometry; with a remedy.
        """
        vdpa_bus.check_name(name)
        if not 0 < nr_queues <= QUEUES_MAX:
            message = f"a device has 1 to {QUEUES_MAX} queues"
            raise UsageError(message)
        if driver is Driver.HOST and (refusals := linux.refusals(device.geometry)):
            raise UsageError(refusals[0], exit_code=1)
        vdpa_bus.check_host(driver)
        if left_behind(name):
            if not records.exists():
                message = f"the VDUSE device {name} exists and belongs to another image: choose another name"
                raise UsageError(message, exit_code=1)
            nr_queues = max(records.stat().st_size // record_bytes(QUEUE_SIZE), 1)
        self.name = name
        self._driver = driver
        self._records_path = records
        self._ended = ended
        self._virtio_device = _VduseBlkDevice(device, BlkOptions(serial=str(device.uuid)[:20], nr_queues=nr_queues))
        self._fd = -1
        self._loop: _Loop | None = None
        #: Whether the device existed already, left by a server that died.
        self.recovered = False

    def statistics(self) -> Mapping[str, int]:
        """Return the number of requests that were answered since the start, and the number of queues."""
        queues = self._loop.queues if self._loop is not None else []
        return {"requests": sum(queue.requests for queue in queues), "queues": len(queues)}

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended the serving; None unless one did."""
        return self._loop.failure if self._loop is not None else None

    def start(self) -> Path:
        """Make the device, or recover the one that a dead server left; return the node that its users open.

        Raises:
            UsageError: the kernel refuses the device, or another process serves it.
        """
        nr_queues = self._virtio_device.nr_queues
        try:
            try:
                self._fd = vdpa_bus.open_device(self.name)
                self.recovered = True
            except FileNotFoundError:
                # An empty file is made first: if this process dies now, the file assigns the device to this image.
                self._records_path.touch(mode=0o600)
                self._create(nr_queues)
            records = _map_records(self._records_path, nr_queues, go_on=self.recovered)
            self._loop = _Loop(self._fd, self._virtio_device, records, self._ended)
            self._loop.start()
            try:
                # A recovered device keeps its driver and its users.
                node = vdpa_bus.node_of(self.name) if self.recovered else None
                return node or vdpa_bus.bind(self.name, self._driver)
            except BaseException:
                self.stop()
                raise
        except OSError as error:
            if error.errno == errno.EBUSY:
                message = f"the VDUSE device {self.name} is served by another process"
            else:
                message = (
                    f"the kernel refuses the VDUSE device {self.name} ({error.strerror}); the kernel's log "
                    "(dmesg) has the reason"
                )
            raise UsageError(message, exit_code=1) from None

    def _create(self, nr_queues: int) -> None:
        offered = (self._virtio_device.offered | bits.ACCESS_PLATFORM) & ~_NOT_OFFERED
        config = self._virtio_device.config()
        assert config is not None
        vdpa_bus.create(
            self.name, device_id=self._virtio_device.device_id, features=offered, nr_queues=nr_queues, config=config
        )  # fmt: skip
        try:
            self._fd = vdpa_bus.open_device(self.name)
            for index in range(nr_queues):
                fcntl.ioctl(self._fd, protocol.VQ_SETUP, protocol.encode_queue(index, QUEUE_SIZE))
        except BaseException:
            if self._fd >= 0:
                os.close(self._fd)
            vdpa_bus.destroy(self.name)
            raise

    def stop(self) -> None:
        """Remove the device from the bus, delete it and its records; requests in flight are answered first."""
        with contextlib.suppress(OSError):  # another process has removed it
            vdpa_bus.unbind(self.name)
        assert self._loop is not None
        self._loop.stop()
        os.close(self._fd)
        with contextlib.suppress(OSError):
            vdpa_bus.destroy(self.name)
        self._records_path.unlink(missing_ok=True)


def left_behind(name: str) -> list[str]:
    """Return a list with the node of the device *name* (its name if it has no node), empty if it does not exist."""
    if not Path(f"/sys/class/vduse/{name}").exists():
        return []
    return [str(vdpa_bus.node_of(name) or name)]


def _map_records(path: Path, nr_queues: int, *, go_on: bool) -> list[memoryview]:
    """Map the file *path*, and return the record of each queue. With *go_on*, a file of the right length is kept."""
    part = record_bytes(QUEUE_SIZE)
    view = memoryview(map_record_file(path, nr_queues * part, go_on=go_on))
    return [view[index * part : (index + 1) * part] for index in range(nr_queues)]


class _Loop(threading.Thread):
    """The thread that serves messages and rings."""

    def __init__(self, fd: int, virtio_device: BlkDevice, records: list[memoryview], ended: Callable[[], None]) -> None:
        super().__init__(name="vduse", daemon=True)
        self._fd = fd
        self._virtio_device = virtio_device
        self._records = records
        self._ended = ended
        self._server = server = QueueServer(virtio_device)
        #: The driver's memory, which may be a virtual machine's.
        self._shared = PeerMemory()
        self.queues: list[VduseQueue] = []
        queue_type = TimedVduseQueue if isinstance(virtio_device.port, TimedPort) else VduseQueue
        for index in range(virtio_device.nr_queues):
            queue = queue_type(
                index, virtio_device.intents, virtio_device.handler(index), server.service,
                faults=virtio_device.port.device.faults.faults, shared=self._shared,
            )  # fmt: skip
            queue.device_fd = fd
            queue.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            server.watch_kicks(queue)
            self.queues.append(queue)
        time_queues(self.queues, virtio_device.port, server.ring_due)
        server.queues = self.queues
        server.watch(fd, self._take_message)
        #: Whether the kernel took memory back while rings were served; they are started again after the answer.
        self._moved = False
        #: The message that was read and is not answered yet.
        self._unanswered = b""
        self._nr_bad_steps = 0
        self.failure: BaseException | None = None

    def stop(self) -> None:
        """End the thread and wait for its end; called from another thread."""
        self._server.stop()
        self.join()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        server = self._server
        try:
            # The driver of a recovered device may be using it already. No queue of a new device is ready.
            self._start_queues()
            while not server.stopping:
                self._step()
        except BaseException as error:
            self.failure = error
            log.exception("the VDUSE device is not served any more")
        finally:
            with contextlib.ExitStack() as ending:  # each step is done, whatever the others raise
                ending.callback(self._ended)
                for queue in self.queues:
                    ending.callback(queue.close)
                ending.callback(server.close)
                ending.callback(self._stop_queues)

    def _step(self) -> None:
        """Wait for events and handle them. An exception fails the message that met it, or ends this step."""
        server = self._server
        try:
            server.wait()
            server.serve()
            if self._shared.is_lost:
                self._give_up_memory()
            if self._moved:
                # The queues are started after the answer, because the kernel gives the new memory only after it.
                self._start_queues()
                self._moved = False
            self._nr_bad_steps = 0
        except Exception as error:  # the boundary of a message, and of a step
            self._nr_bad_steps += 1
            if self._nr_bad_steps > _BAD_STEPS_MAX:
                raise
            self._contain(error)

    def _contain(self, error: Exception) -> None:
        message, self._unanswered = self._unanswered, b""
        if message:
            kind = int.from_bytes(message[:4], "little")
            self._server.service.contain(f"message {kind} of the kernel", error)
            # The kernel may take memory back by this message, so no memory of the driver may be used any more.
            self._drop_rings()
            with contextlib.suppress(OSError):  # the kernel no longer waits for an answer
                os.write(self._fd, protocol.encode_failure(message))
        else:
            self._server.service.contain("a step of the loop", error)
        self._server.look_again()

    # -- messages ---------------------------------------------------------------------------------------------

    def _take_message(self) -> None:
        try:
            data = os.read(self._fd, protocol.MESSAGE_BYTES)
        except BlockingIOError:
            return  # the kernel no longer waits for an answer
        self._unanswered = data
        answer = self._answer(protocol.decode_request(data))
        os.write(self._fd, answer)
        self._unanswered = b""

    def _answer(self, request: Request) -> bytes:
        result, avail_index = protocol.RESULT_OK, 0
        match request.kind:
            case Message.GET_VQ_STATE:
                # The driver suspends: requests that were not given back are executed after it resumes.
                queue = self.queues[request.queue]
                self._server.wait_idle(queue)
                avail_index = queue.stop() & 0xFFFF if queue.ring is not None else queue.base & 0xFFFF
            case Message.SET_STATUS:
                self._set_status(request.status)
            case Message.UPDATE_IOTLB:
                self._forget_memory()
            case _:
                log.warning("the kernel has sent an unknown message: %d", request.kind)
                result = protocol.RESULT_FAILED
        return protocol.encode_response(request, result, avail_index=avail_index)

    def _set_status(self, status: int) -> None:
        if status == 0:
            try:
                self._stop_queues()
            finally:
                for record in self._records:
                    # Even if the reset fails, no earlier request comes again, because the driver makes new rings.
                    record[:] = bytes(len(record))
            self._virtio_device.reset()
        elif status & bits.STATUS_DRIVER_OK:
            self._start_queues()

    # -- rings ------------------------------------------------------------------------------------------------

    def _start_queues(self) -> None:
        """Start the queues that the driver has made ready."""
        if not self._server.wait_abandoned():
            log.warning("no queue is started: an earlier request still waits for the host's disk")
            return
        features_raw = bytearray(8)
        fcntl.ioctl(self._fd, protocol.DEV_GET_FEATURES, features_raw)
        features = int.from_bytes(features_raw, "little")
        self._virtio_device.accept(features)
        memory = VduseMemory(self._find_memory, self._shared)
        for queue in self.queues:
            info_raw = protocol.encode_queue_query(queue.index)
            fcntl.ioctl(self._fd, protocol.VQ_GET_INFO, info_raw)
            info = protocol.decode_queue_info(info_raw)
            if not info.ready or queue.ring is not None:
                continue
            queue.size = info.size
            queue.base = info.avail_index
            queue.address = RingAddresses(info.desc, info.driver, info.device)
            # At a reset, the kernel drops the kick descriptor.
            fcntl.ioctl(self._fd, protocol.VQ_SETUP_KICKFD, protocol.encode_kick(queue.index, queue.kick_fd))
            try:
                queue.start(memory, features, self._records[queue.index], None)
            except PeerError as error:
                log.warning("queue %d cannot be started: %s", queue.index, error)
                continue
            except Exception as error:  # the boundary of a ring
                self._server.service.contain(f"the start of queue {queue.index}", error)
                continue
            queue.enabled = True
            self._server.activate(queue)
            # A server that died may have given requests back without notifying the driver.
            queue.call()

    def _stop_queues(self) -> None:
        for queue in self.queues:
            self._server.wait_idle(queue)
            queue.stop()
            queue.enabled = False

    def _drop_rings(self) -> None:
        """Serve no ring until the driver sets the device up again."""
        self._moved = False
        for queue in self.queues:
            self._server.abandon(queue)
            queue.ring, queue.enabled = None, False

    def _give_up_memory(self) -> None:
        """Serve the present rings no more, because a part of their memory is gone. The driver may set up new ones."""
        log.warning("the driver's rings are not served until it sets the device up again: %s", LOST)
        self._drop_rings()
        self._shared = PeerMemory()
        for queue in self.queues:
            queue.shared = self._shared

    def _forget_memory(self) -> None:
        """Stop all rings, because their addresses have another meaning now. They continue after the answer."""
        for queue in self.queues:
            if queue.ring is not None:
                self._server.wait_idle(queue)
                queue.stop()
                self._moved = True

    def _find_memory(self, start: int, last: int) -> tuple[protocol.Mapping, int] | None:
        entry = protocol.encode_range(start, last)
        try:
            fd = fcntl.ioctl(self._fd, protocol.IOTLB_GET_FD, entry)
        except OSError:
            return None
        return protocol.decode_mapping(entry), fd
