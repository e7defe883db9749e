"""The control queue of a SCSI host: its requests wait until earlier requests of the other queues are answered.

When a task was aborted, or the disk reset, the driver takes the tasks for ended and uses their memory for something
else. The answer to a request that the worker still executes would then be written into that memory.

Source: virtio 1.4, SCSI Host Device, controlq: "the device MUST complete all active commands on a logical unit or
target [...] upon receiving a "logical unit reset" or "I_T nexus reset" TMF. [...] Such effects MUST take place before
the TMF itself is successfully completed".
"""

from collections.abc import Sequence

from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.virtio.handler import Handler
from zonefs_emu.virtio.scsi import ControlQueue
from zonefs_emu.virtqueue.timed_virtqueue import TimedVirtqueue
from zonefs_emu.virtqueue.virtio_device import VirtioDevice
from zonefs_emu.virtqueue.virtqueue import Virtqueue


def queue_type(port: Port, handler: Handler | None) -> type[Virtqueue]:
    """Return the class of a queue whose requests *handler* executes on *port*."""
    if isinstance(handler, ControlQueue):
        return TimedControlVirtqueue if isinstance(port, TimedPort) else ControlVirtqueue
    return TimedVirtqueue if isinstance(port, TimedPort) else Virtqueue


def order_control(queues: Sequence[Virtqueue], virtio_device: VirtioDevice) -> None:
    """Let the control queue among the *queues* of *virtio_device*, if there is one, wait for the request queues."""
    for queue in queues:
        if isinstance(queue, ControlVirtqueue):
            others = [other for other in queues if other is not queue]
            queue.earlier = [other for other in others if virtio_device.handler(other.index) is not None]


class ControlVirtqueue(Virtqueue):
    """A virtqueue that takes a request from its ring only after earlier requests of other queues are answered."""

    #: The request queues. The event queue is not one of them: its buffers stay in the ring until there are events.
    earlier: Sequence[Virtqueue] = ()
    #: One by one, because a later control request may have to wait for more requests.
    _batch = 1
    #: While a control request waits: how many requests each of the other queues had given back when it was seen.
    _nr_before: Sequence[int] | None = None

    def run(self) -> bool:
        """Execute the next control request, unless it must wait; True if one was executed. Never raises."""
        if self._must_wait():
            self.is_waiting = True
            return False
        self.is_waiting = False
        self._nr_before = None
        return super().run()

    def _must_wait(self) -> bool:
        if not self.is_ready or self._backlog or self.is_idle:
            return False
        if self._nr_before is None:
            self._nr_before = [queue.requests for queue in self.earlier]
        return not all(map(_is_answered, self.earlier, self._nr_before))

    def stop(self) -> int:
        """Stop; see :meth:`Virtqueue.stop`. Requests in the ring wait no more."""
        self.is_waiting = False
        self._nr_before = None
        return super().stop()


class TimedControlVirtqueue(ControlVirtqueue, TimedVirtqueue):
    """The control queue of a host whose requests take as long as on a real drive."""

    def run(self) -> bool:
        """Do what :meth:`ControlVirtqueue.run` does. While a request waits, no queue holds an answer."""
        is_busy = super().run()
        if self.is_waiting:
            # A queue that holds as many answers as it can takes no further requests. So the answers are given now, and
            # the queues are served again.
            given = [queue.give_all() for queue in self._managed]
            if any(given):
                self._wake()
        return is_busy


def _is_answered(queue: Virtqueue, nr_before: int) -> bool:
    """Return whether all requests are answered that were available when *queue* had given *nr_before* back."""
    if queue.ring is None or queue.broken or not queue.enabled:
        return True  # such a queue answers nothing
    # At most as many requests as the ring has entries were available then, and they are executed before later ones.
    return queue.is_idle or queue.requests - nr_before >= queue.size
