"""What the ways to a block device of this host's kernel, ublk, VDUSE and NVMe, have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError


class KernelDevice(Protocol):
    """A device of the kernel that this process serves. Every method blocks."""

    @property
    def failure(self) -> BaseException | None:
        """Why serving ended, if it was not asked to."""
        ...

    def start(self) -> Path:
        """Make the device, or go on with the one that a dead process left; returns its node."""
        ...

    def stop(self) -> None:
        """Delete it; what is in flight is answered first."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Return its counters."""
        ...


class KernelDeviceFrontEnd(ABC):
    """The front-end of a session that makes the image a device of the kernel."""

    #: What the front-end is called in ``info``, and the way by which the kernel gets the device.
    name: ClassVar[str]

    def __init__(self) -> None:
        #: Only end in order what a killed process left.
        self.end_at_once = False
        #: The device's node, once there is one.
        self.node: Path | None = None

    @abstractmethod
    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        """Return the device, which is not started yet. It calls *ended* on any thread when serving has ended."""

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Attach, and serve until cancelled or until the kernel ends it."""
        ended = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def end() -> None:
            try:
                token.run_sync_soon(ended.set)
            except trio.RunFinishedError:
                return

        device = self.make(session, end)
        node = self.node = await trio.to_thread.run_sync(device.start)
        try:
            with session.register(self.name, str(node), device.statistics):
                task_status.started()
                if not self.end_at_once:
                    await ended.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(device.stop)
        if device.failure is not None:
            message = f"{node} could not be served any more: {device.failure}"
            raise UsageError(message, exit_code=1)
