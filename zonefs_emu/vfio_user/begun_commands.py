"""Commands that an earlier process had begun: they are carried out first, and their zones must not have changed.

If the intent of a command is not committed, the state of its zone shows whether the command was carried out
(:mod:`zonefs_emu.device.intent_log`). So no other command of the guest may change zones before that, and a zone that
another port has changed is contested.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from zonefs_emu.device.intent_log import Intents
from zonefs_emu.nvme.namespace import Namespace
from zonefs_emu.vfio_user.drive_queues import SubmissionQueue
from zonefs_emu.virtqueue.changes import ZoneChanges


class BegunCommands:
    """The recovery of one drive, which begins with :meth:`watch`."""

    def __init__(self) -> None:
        #: The queues whose next command an earlier process had begun.
        self.queues: set[SubmissionQueue] = set()
        self._watched: dict[int, tuple[Namespace, ZoneChanges]] = {}

    def intents(self, nsid: int) -> Intents:
        """Return the intents of the commands of namespace *nsid*."""
        return Intents(partial(self._is_contested, nsid))

    def _is_contested(self, nsid: int, zone_no: int) -> bool:
        watched = self._watched.get(nsid)
        return watched is not None and watched[1].contested(zone_no)

    def watch(self, namespaces: Mapping[int, Namespace]) -> None:
        """Note the zones that other ports change from now on."""
        for nsid, namespace in namespaces.items():
            changes = ZoneChanges()
            self._watched[nsid] = namespace, changes
            namespace.device.subscribe(changes, port=namespace.port)

    def begin(self, queues: Iterable[SubmissionQueue]) -> None:
        """Find the commands that were begun, those at the heads of *queues*."""
        self.queues = {queue for queue in queues if queue.ring is not None and queue.ring.was_begun}
        if not self.queues:
            self.end()

    def note_answered(self, queue: SubmissionQueue) -> None:
        """Note that a command of *queue* was answered, or that the queue was deleted."""
        self.queues.discard(queue)
        if not self.queues:
            self.end()

    def end(self) -> None:
        """End the recovery."""
        self.queues.clear()
        for namespace, changes in self._watched.values():
            namespace.device.unsubscribe(changes)
        self._watched.clear()
