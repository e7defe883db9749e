"""Moving data between the ports of a device and its image: with write hooks, and until the image is closed or lost.

May not know: commands. A write hook is called before data is overwritten. It is an observer (:mod:`switch`): a hook
that raises is switched off, and the write goes on.
"""

import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from zonefs_emu.device.buffers import carve, total_bytes
from zonefs_emu.device.holds import Holds
from zonefs_emu.device.switch import Switch
from zonefs_emu.errors import CommandError, Status
from zonefs_emu.model.machine import ZoneMachine
from zonefs_emu.model.transitions import Dialect
from zonefs_emu.persist.image import Image
from zonefs_emu.units import SECTOR_SHIFT, Sector

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Called with (byte offset, number of bytes) of a write to the image before it happens, with the device's lock held.
WriteHook: TypeAlias = Callable[[int, int], None]

#: A longer write moves its bytes without the lock.
LONG_WRITE_SECTORS: Final = 2048
#: The most buffers that preadv and pwritev take at once (UIO_MAXIOV); with more they fail.
IOV_MAX: Final = 1024
#: What is stored where a read finds no data.
_ZEROS: Final = memoryview(bytes(1 << 20))


def _unreadable(sector: Sector, nr_sectors: int, dialect: Dialect) -> int:  # noqa: ARG001  (the machine's signature)
    """Replace the machine's check_read when the image is closed or lost."""
    raise CommandError(Status.IO_ERROR)


class ImageAccess:
    """The functions by which ports move data. The attributes change, so a port looks them up at each request."""

    __slots__ = ("_hooks", "_image", "_report", "check_read", "preadv", "pwritev", "short_sectors")

    def __init__(self, image: Image, machine: ZoneMachine, report: Callable[[str, Exception], None]) -> None:
        """Report a hook that raises to *report*, with its name for people."""
        self._image = image
        self._report = report
        self._hooks: list[tuple[WriteHook, Switch, Callable[[Exception], None]]] = []
        self.check_read: Callable[[Sector, int, Dialect], int] = machine.check_read
        self.preadv: Callable[[Sequence[Buffer], int], int] = image.backing.preadv
        self.pwritev: Callable[[Sequence[Buffer], int], int] = image.backing.pwritev
        #: The longest write that moves its bytes with the lock held; with hooks, all writes do.
        self.short_sectors = LONG_WRITE_SECTORS

    def read_all(self, sector: Sector, readable: int, buffers: "Sequence[Buffer]") -> None:
        """Fill *buffers* piece by piece: *readable* sectors from *sector* on, and zeros after them.

        Raises:
            OSError: the host failed.
        """
        offset = sector << SECTOR_SHIFT
        end = offset + (readable << SECTOR_SHIFT)
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view and offset < end:
                done = self.preadv([view[: end - offset]], offset)
                if not done:
                    raise OSError(errno.EIO, "the image ended early")
                view = view[done:]
                offset += done
            while view:
                count = min(len(view), len(_ZEROS))
                view[:count] = _ZEROS[:count]
                view = view[count:]

    def write_all(self, sector: Sector, nr_sectors: int, buffers: "Sequence[Buffer]", *, done: int) -> None:
        """Write *buffers* at *sector*, without the first *done* bytes, which are written already.

        One pwritev is not enough for a write of many buffers, and the host may write a part where it is almost full.

        Raises:
            OSError: the host failed.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        length = total_bytes(views)
        assert length == nr_sectors << SECTOR_SHIFT, f"{length} bytes given for {nr_sectors} sectors"
        while done < length:
            part = carve(views, done, length)[:IOV_MAX]
            written = self.pwritev(part, (sector << SECTOR_SHIFT) + done)
            if not written:
                raise OSError(errno.EIO, "the host writes nothing")
            done += written

    def let_go(self) -> None:
        """Refuse reads from now on: the image is closed or lost. Writes are refused by the image."""
        self.check_read = _unreadable

    def add_write_hook(
        self,
        hook: WriteHook,
        holds: Holds,
        *,
        observer: str,
        failed: Callable[[Exception], None],
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Call *hook* before each write to the image, until :meth:`remove_write_hook`.

        *begin* is called once, between the last write without the hook and the first one with it. Both are called with
        the lock held, *hook* for long writes too. If *hook* raises, it is not called again, *observer* is reported as
        switched off, and *failed* is called with the error. If *begin* raises, the hook is not added.
        """
        switch = Switch(observer)
        switch.report_to(self._report)
        with self._image.lock:
            holds.wait(0, self._image.geometry.nr_zones)
            if begin is not None:
                begin()
            self._hooks.append((hook, switch, failed))
            self._choose()

    def remove_write_hook(self, hook: WriteHook) -> None:
        """Stop calling *hook*; if there is no such hook, do nothing."""
        with self._image.lock:
            self._hooks = [entry for entry in self._hooks if entry[0] != hook]
            self._choose()

    @property
    def has_write_hooks(self) -> bool:
        """Whether writes are observed: by a dump, or by the power-cut lab."""
        return bool(self._hooks)

    def _choose(self) -> None:
        self.pwritev = self._pwritev_hooked if self._hooks else self._image.backing.pwritev
        self.short_sectors = sys.maxsize if self._hooks else LONG_WRITE_SECTORS

    def _pwritev_hooked(self, buffers: "Sequence[Buffer]", offset: int) -> int:
        for hook, switch, failed in reversed(self._hooks):
            if switch.error is None:
                try:
                    hook(offset, sum(memoryview(buffer).nbytes for buffer in buffers))
                except Exception as error:  # the boundary of observers
                    switch.put_off(error)
                    failed(error)
        return self._image.backing.pwritev(buffers, offset)
