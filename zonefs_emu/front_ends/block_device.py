"""The front-end of ``attach``: the image as a device of the kernel, by ublk or by VDUSE.

A module of its own, because what it loads takes a while and no other verb needs it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.model import linux
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.ublk import ublk_device as ublk
from zonefs_emu.ublk.control_device import control_device
from zonefs_emu.vduse import vdpa_bus as vdpa, vduse_device as vduse
from zonefs_emu.vduse.vdpa_bus import Driver

#: The records of a VDUSE device have its name in theirs, so that it is found again.
_VDUSE_SUFFIX: Final = ".vduse-"


class AttachedDevice(Protocol):
    """What ublk and VDUSE have in common. Every method blocks."""

    @property
    def failure(self) -> BaseException | None:
        """Why serving ended, if nobody wanted it to."""
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


class BlockFrontEnd:
    """The front-end of a session that makes the image a device of the kernel."""

    def __init__(self, via: str, *, name: str | None, driver: Driver, nr_queues: int) -> None:
        self.via = via
        #: Only end in order what a killed process left.
        self.end_at_once = False
        #: The device's node, once there is one.
        self.node: Path | None = None
        self._name = name
        self._driver = driver
        self._nr_queues = nr_queues

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Attach, and serve until cancelled or until the kernel ends it."""
        ended = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def end() -> None:
            try:
                token.run_sync_soon(ended.set)
            except trio.RunFinishedError:
                return

        device = self._make(session, end)
        node = self.node = await trio.to_thread.run_sync(device.start)
        try:
            with session.register(self.via, str(node), device.statistics):
                task_status.started()
                if not self.end_at_once:
                    await ended.wait()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(device.stop)
        if device.failure is not None:
            msg = f"{node} could not be served any more: {device.failure}"
            raise UsageError(msg, exit_code=1)

    def _make(self, session: Session, ended: Callable[[], None]) -> AttachedDevice:
        # Beside the control socket: it outlives this process. After the host's next start it is ignored.
        beside = rendezvous.log_path(session.path)
        if self.via == "ublk":
            return ublk.UblkDevice(
                session.device, records=beside.with_suffix(".ublk"), number=ublk_number(self._name),
                nr_queues=self._nr_queues, ended=ended,
            )  # fmt: skip
        name = self._name or f"zonefs-emu-{str(session.device.uuid)[:8]}"
        return vduse.VduseDevice(
            session.device, name=name, records=beside.with_suffix(_VDUSE_SUFFIX + name), driver=self._driver,
            nr_queues=self._nr_queues, ended=ended,
        )  # fmt: skip


def left_behind(image: Path, uuid: str) -> list[tuple[BlockFrontEnd, str]]:
    """Return what goes on with the device that a killed process left of *image*, and the device's node."""
    found = [
        (BlockFrontEnd("ublk", name=None, driver=Driver.HOST, nr_queues=1), node) for node in ublk.left_behind(uuid)
    ]
    beside = rendezvous.log_path(image)
    for records in beside.parent.glob(f"{beside.stem}{_VDUSE_SUFFIX}*"):
        name = records.name.removeprefix(beside.stem + _VDUSE_SUFFIX)
        found += [
            (BlockFrontEnd("vduse", name=name, driver=driver, nr_queues=1), node)
            for node in vduse.left_behind(name)
            for driver in [Driver.VM if "vhost-vdpa" in node else Driver.HOST]
        ]
    return found


def ublk_number(name: str | None) -> int | None:
    """Return N of the /dev/ublkbN that *name* asks for; None for any.

    Raises:
        UsageError: it is no number.
    """
    if name is None:
        return None
    number = name.removeprefix("/dev/").removeprefix("ublkb")
    if not number.isdecimal():
        msg = f"ublk devices have numbers for names, such as 3 or ublkb3, not {name!r}"
        raise UsageError(msg)
    return int(number)


def geometry_of(info: dict[str, Json]) -> Geometry:
    """Return the geometry that the verb ``info`` describes."""
    conventional = info["conventional"]
    assert isinstance(conventional, list)
    names = (
        "size", "zone_size", "zone_capacity", "block_size_bytes", "write_granularity", "max_open_zones",
        "max_active_zones", "max_append",
    )  # fmt: skip
    numbers = {name: info[name] for name in names}
    return Geometry(conventional=tuple((int(run[0]), int(run[1])) for run in conventional), **numbers)  # type: ignore[index,arg-type]


def choose(via: str, driver: Driver, geometry: Geometry) -> str:
    """Return the way to take, ublk or vduse, after looking whether the kernel can.

    Raises:
        UsageError: it cannot; says which and what would help.
    """
    ways: Sequence[str] = (via,) if via != "auto" else ("vduse",) if driver is Driver.VM else ("ublk", "vduse")
    reasons = []
    for way in ways:
        try:
            _require(way, driver, geometry)
        except UsageError as error:
            reasons.append(str(error))
        else:
            return way
    raise UsageError("; and ".join(dict.fromkeys(reasons)), exit_code=1)


def _require(way: str, driver: Driver, geometry: Geometry) -> None:
    if way == "ublk":
        refusals = ublk.refusals_of(geometry)
    else:
        # In a virtual machine it is not this kernel that looks at the zones.
        refusals = linux.refusals(geometry) if driver is Driver.HOST else []
    if refusals:
        raise UsageError(refusals[0], exit_code=1)
    if way == "ublk":
        with control_device():
            pass
    else:
        vdpa.check_host(driver)


def check_name(via: str, name: str | None) -> None:
    """Raise UsageError if *name* cannot be that of a device by *via*."""
    if via == "ublk":
        ublk_number(name)
    elif name is not None:
        vdpa.check_name(name)


def is_in_use(node: str) -> bool:
    """Say whether somebody has *node* open for themselves: a mount, a volume manager, a virtual machine."""
    return ublk.is_in_use(Path(node))
