"""ZonedDevice: one image and its zone machine, opened by one process; front-ends work through its ports.

May not know: front-ends, protocols, event loops. Sync and thread safe. Its parts, each a module:

* :mod:`core`: what the ports share, and how a change gets from the machine to the image;
* :mod:`port`: the commands; :mod:`faulty_port` decorates them with injected faults, :mod:`timed_port` with the times of
  a real drive, :mod:`oplog` with a record;
* :mod:`zone_states`: commands on the states of all zones at once.
"""

import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.faults import RECOMMENDING, Effect, Fault
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.image_access import WriteHook
from zonefs_emu.device.listeners import Listener
from zonefs_emu.device.port import Port
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.device.timing import Timing
from zonefs_emu.device.zone_states import load_zones, power_cycle, save_zones
from zonefs_emu.errors import ImageError, NoSpaceError, PoisonedError, UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Dialect
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import create_image


class ZonedDevice(DeviceCore):
    """One image, opened by one process. Front-ends work through :meth:`port`."""

    def __init__(self, image: Image) -> None:
        """Take over *image*."""
        super().__init__(image)
        #: The class of ports. An operation log replaces it by its recording port.
        self.port_factory: Callable[[str, Dialect], Port] = partial(FaultyPort, self)

    @classmethod
    def create(
        cls, path: Path, geometry: Geometry, *, uuid: UUID, label: str = "",
        states: "tuple[bytearray, array[int]] | None" = None,
    ) -> None:  # fmt: skip
        """Create the image *path*; see :func:`zonefs_emu.persist.metadata.create_image`."""
        create_image(path, geometry, uuid=uuid, label=label, states=states)

    @classmethod
    def open(
        cls, path: Path, *, readonly: bool = False, alone: bool = False, owner: str = "zonefs-emu"
    ) -> "ZonedDevice":
        """Open the image *path*; see :meth:`zonefs_emu.persist.image.Image.open`."""
        image = Image.open(path, readonly=readonly, alone=alone, owner=owner)
        try:
            return cls(image)
        except BaseException as error:
            # After any exception, the lock is released and the image is as after an orderly stop.
            with suppress(ImageError):
                image.close()
            if isinstance(error, ImageError):
                error.path = str(path)
            raise

    @property
    def uuid(self) -> UUID:
        """The image's own UUID, drawn at creation."""
        return self.image.header.uuid

    @property
    def serial(self) -> str:
        """The serial number for protocols that have one; the same for every front-end and after every start."""
        return self.uuid.hex[:20].upper()

    @property
    def label(self) -> str:
        """The image's label."""
        return self.image.header.label

    @property
    def nr_open(self) -> int:
        """Number of open zones."""
        return self.machine.nr_open

    @property
    def nr_active(self) -> int:
        """Number of active zones: open or CLOSED."""
        return self.machine.nr_active

    def port(self, name: str, dialect: Dialect) -> Port:
        """Return a port for the front-end *name* (up to 24 bytes), which follows *dialect*."""
        if self.image.is_lost:
            self.access.let_go()
        return self.port_factory(name, dialect)

    def start_timing(
        self, preset: str, *, clock: Callable[[], int] = time.monotonic_ns, scale: float = 1.0, seed: int = 0
    ) -> Timing | None:
        """Let commands of ports that are made from now on take as long as on the drive *preset*, times *scale*.

        *clock* is the time in nanoseconds. With the preset "none" nothing changes, and None is returned.

        Raises:
            UsageError: there is no such preset.
        """
        # Imported here, because few processes use the models.
        from zonefs_emu.model.timing.timing_presets import find_preset, make_timing  # noqa: PLC0415

        parameters = find_preset(preset)
        if parameters is None:
            return None
        geometry = self.geometry
        model = make_timing(
            parameters, capacity_sectors=geometry.zone_capacity, size_sectors=geometry.size,
            block_bytes=geometry.block_size_bytes, seed=seed,
        )  # fmt: skip
        self.timing = Timing(preset, model, clock=clock, scale=scale)
        self.port_factory = partial(TimedPort, self)
        return self.timing

    def subscribe(self, listener: Listener, *, port: Port | None = None) -> None:
        """Call *listener* after any port but *port* changed zones, until it raises or :meth:`unsubscribe`."""
        self.listeners.subscribe(listener, port.audience if port is not None else None)

    def unsubscribe(self, listener: Listener) -> None:
        """Stop calling *listener*."""
        self.listeners.unsubscribe(listener)

    def add_write_hook(
        self,
        hook: WriteHook,
        *,
        observer: str,
        failed: Callable[[Exception], None],
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Call *hook* before each write to the image; see :meth:`ImageAccess.add_write_hook`."""
        self.access.add_write_hook(hook, self.holds, observer=observer, failed=failed, begin=begin)

    def remove_write_hook(self, hook: WriteHook) -> None:
        """Stop calling *hook*; if there is no such hook, do nothing."""
        self.access.remove_write_hook(hook)

    def statistics(self) -> dict[str, int]:
        """Return nr_open and nr_active, and the sums of the counters by their names."""
        return {"nr_open": self.nr_open, "nr_active": self.nr_active, **self.counters.totals()}

    def inject(self, fault: Fault) -> Fault:
        """Add *fault*, from now on and across restarts; returns it with its id.

        Raises:
            UsageError: there are too many, or the drive does not do that. PoisonedError: the host failed to write.
            NoSpaceError: it is full. The fault is not added then.
        """
        if fault.effect is Effect.EXCURSION and not self.geometry.active_excursions:
            message = (
                "the drive finishes no zones by itself: only an image that was created with --zone-active-excursions "
                "has that"
            )
            raise UsageError(message)
        self.faults.add(fault)
        try:
            self.save_faults()
        except (UsageError, PoisonedError, NoSpaceError):
            # UsageError: it does not fit beside the entries of a later version.
            self.faults.remove(fault.id)
            raise
        self._notify_of_recommendation(fault)
        return fault

    def remove_fault(self, fault_id: int) -> None:
        """Remove a fault.

        Raises:
            UsageError: there is no such fault. PoisonedError: the host failed to write. NoSpaceError: it is full. The
                fault stays then.
        """
        removed = [fault for fault in self.faults.faults if fault.id == fault_id]
        put_back = self.faults.remove(fault_id)
        try:
            self.save_faults()
        except (PoisonedError, NoSpaceError):
            put_back()
            raise
        for fault in removed:
            self._notify_of_recommendation(fault)

    def _notify_of_recommendation(self, fault: Fault) -> None:
        """Notify all listeners after *fault* was added or removed, if its effect is one that a drive announces."""
        if fault.effect in RECOMMENDING:
            with self.lock:
                self.listeners.notify_all(self.geometry.nr_zones)

    def power_cycle(self) -> None:
        """Cut and restore power; see :func:`zone_states.power_cycle`."""
        power_cycle(self)

    def save_zones(self) -> bytes:
        """Return the state of all zones at one instant; see :func:`zone_states.save_zones`."""
        return save_zones(self)

    def load_zones(self, words: bytes) -> None:
        """Put all zones into the states that :meth:`save_zones` returned; see :func:`zone_states.load_zones`."""
        load_zones(self, words)
