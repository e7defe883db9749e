"""The common part of the front-ends that make a block device of this host's kernel: ublk, VDUSE, NVMe."""

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
        """The reason why serving ended, unless :meth:`stop` ended it."""
        ...

    def start(self) -> Path:
        """Make the device, or recover the one that a dead process left; return its node."""
        ...

    def stop(self) -> None:
        """Delete the device; requests in flight are answered first."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Return its counters."""
        ...


class KernelDeviceFrontEnd(ABC):
    """The front-end of a session that makes the image a device of the kernel."""

    #: The name of the front-end in ``info``, which says how the kernel gets the device.
    name: ClassVar[str]

    def __init__(self) -> None:
        #: Whether the device that a killed process left is only to be removed in order, and not served.
        self.end_at_once = False
        #: The device's node, once there is one.
        self.node: Path | None = None

    @abstractmethod
    def make(self, session: Session, ended: Callable[[], None]) -> KernelDevice:
        """Return the device, which is not started yet. It calls *ended* on any thread when serving ends."""

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
