"""A zoned device for a test: in this process, mounted, or served. The test can cut its power.

    device = DeviceUnderTest(directory, build_geometry(preset=PRESETS["small"]))
    device.port.append(sector, nr_sectors, (data,))
    device.power_cut(seed=7)        # the image is now what a power cut left
    mountpoint = device.mount()     # from here on a daemon has it
    device.close()

One process has the image at a time: this process, until :meth:`DeviceUnderTest.mount` or :meth:`DeviceUnderTest.serve`
starts a session in a process of its own, with the front-ends of the command line, and again after
:meth:`DeviceUnderTest.stop`. Requests such as :meth:`~DeviceUnderTest.inject` and :meth:`~DeviceUnderTest.report` go to
the process that has it.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast
from uuid import uuid4

from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.client import LocalTarget, Target, call
from zonefs_emu.daemon.framing import Json, unpack_zones
from zonefs_emu.daemon.session import FrontEnd
from zonefs_emu.daemon.verbs import Verbs
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.faults import Fault
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.device.virtual_clock import VirtualClock
from zonefs_emu.errors import Status, UsageError, ZonedError
from zonefs_emu.front_ends.known import EXTENSIONS, open_target
from zonefs_emu.front_ends.nvme_tcp import NvmeTcpFrontEnd, parse_address
from zonefs_emu.front_ends.session_process import SessionProcess
from zonefs_emu.front_ends.vfio_user import VfioUserFrontEnd
from zonefs_emu.front_ends.vhost_user import MakeVirtioDevice, VhostUserFrontEnd, make_blk_device, make_scsi_host
from zonefs_emu.front_ends.zonefs import ZonefsFrontEnd
from zonefs_emu.fs.kernel import unmount
from zonefs_emu.fs.mkfs import examine, format_device, is_formatted, parse_features
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition, Zone
from zonefs_emu.nvme.subsystem import nqn_of
from zonefs_emu.units import human_bytes, to_bytes

#: How long a daemon may take to end.
_END_S: Final = 60.0
#: How often a daemon is asked for the images of a power cut.
_POLL_S: Final = 0.01
#: What a description shows at most.
_ZONES_SHOWN: Final = 32
_REFUSALS_SHOWN: Final = 5
_OPERATIONS_SHOWN: Final = 8
_UNTOUCHED: Final = frozenset((Condition.EMPTY, Condition.NOT_WP))
_WITHOUT_WP: Final = frozenset((Condition.NOT_WP, Condition.FULL, Condition.READONLY, Condition.OFFLINE))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Daemon:
    """A process that runs *front_end*, and the directory at which that is mounted, if it is."""

    process: SessionProcess
    front_end: FrontEnd
    mountpoint: Path | None


class DeviceUnderTest:
    """A new device of *geometry*, in *directory*. In this process, commands take as long as on the drive *timing*.

    Raises:
        UsageError: there is no such timing preset. OSError: the host refuses.
    """

    def __init__(self, directory: Path, geometry: Geometry, *, timing: str = "none") -> None:
        self.geometry = geometry
        #: The clock for commands and injected delays in this process. These commands and the test advance it.
        self.clock = VirtualClock()
        self._preset = timing
        #: The file. After a power cut it is another one of the same name.
        self.image = directory / "zoned.img"
        self._directory = directory
        self._log = directory / "daemon.log"
        self._sockets: Path | None = None
        self._daemon: _Daemon | None = None
        self._device: ZonedDevice | None = None
        self._earlier_refusals: list[str] = []
        self._is_closed = False
        ZonedDevice.create(self.image, geometry, uuid=uuid4())
        self._open()

    def _open(self) -> None:
        self._device = ZonedDevice.open(self.image, owner="a test")
        self._device.sleep_ns = self.clock.advance
        self._device.start_timing(self._preset, clock=self.clock.now)
        self._port = self._device.port("test", VIRTIO)
        self._verbs = Verbs(self._device, extensions=EXTENSIONS)
        self._lab = PowerCutLab(self._device)

    def _let_go(self) -> None:
        if self._device is not None:
            device, self._device = self._device, None
            self._lab.close()
            device.close()

    # -- in this process --------------------------------------------------------------------------------------

    @property
    def device(self) -> ZonedDevice:
        """The device in this process; another one after a power cut.

        Raises:
            UsageError: a daemon has it, or it was closed.
        """
        self._require_open()
        if self._device is None:
            message = "a daemon has the image: call stop() first, or use report(), inject() and refusals()"
            raise UsageError(message)
        return self._device

    def _require_open(self) -> None:
        if self._is_closed:
            message = "the device was closed: only report(), refusals() and describe() are possible, from its file"
            raise UsageError(message)

    @property
    def port(self) -> Port:
        """A port of :attr:`device` that speaks as virtio-blk does; another one after a power cut.

        Raises:
            UsageError: a daemon has the image, or the device was closed.
        """
        assert self.device is not None
        return self._port

    # -- in a daemon ------------------------------------------------------------------------------------------

    def mount(self, options: str = "", *, features: str = "") -> Path:
        """Mount the zonefs, which is made first if there is none, and return the mount point.

        *options* are those of ``zonefs-emu mount -o``, *features* those of ``zonefs-emu mkfs -o``.

        Raises:
            UsageError: it cannot be mounted; says why.
        """
        if not is_formatted(self.port):
            examine(self.port)
            format_device(self.port, parse_features(features, uuid=uuid4(), label=""))
        mountpoint = self._directory / "mnt"
        mountpoint.mkdir(exist_ok=True)
        self._start(ZonefsFrontEnd(mountpoint, options), mountpoint)
        return mountpoint

    def serve(self, kind: str = "scsi") -> Path:
        """Serve the device to a virtual machine and return the socket: *kind* is ``scsi``, ``blk`` or ``vfio-user``.

        Raises:
            UsageError: it cannot be served; says why.
        """
        assert self.device is not None
        makers: dict[str, MakeVirtioDevice] = {
            "scsi": make_scsi_host,
            "blk": partial(make_blk_device, nr_queues=1, strict=False),
        }
        make_device = makers.get(kind)
        if make_device is None and kind != "vfio-user":
            message = f"a device is served as scsi, blk or vfio-user, not {kind}"
            raise UsageError(message)
        if self._sockets is None:
            # A socket's path has at most 107 bytes, and a test's directory may be longer than that.
            self._sockets = Path(tempfile.mkdtemp(prefix="zoned-"))
        path = self._sockets / kind
        front_end = VfioUserFrontEnd(path) if make_device is None else VhostUserFrontEnd(make_device, path=path)
        self._start(front_end, None)
        return path

    def serve_nvme(self) -> tuple[str, int, str]:
        """Serve the device as an NVMe drive over TCP; returns the address, the port, and the name of the subsystem.

        Raises:
            UsageError: it cannot be served; says why.
        """
        nqn = nqn_of(self.device.uuid)
        self._start(NvmeTcpFrontEnd(parse_address("127.0.0.1:0")), None)
        with self._target() as target:
            (front_end,) = cast("list[dict[str, str]]", call(target, {"verb": "info"})[0]["front_ends"])
        host, port = parse_address(front_end["where"])
        return host, port, nqn

    def stop(self) -> None:
        """End the daemon in order; from here on the image is this process's again.

        Raises:
            UsageError: it ended with an error; says what it said. Or the device was closed.
        """
        self._require_open()
        self._end_daemon()
        if self._device is None:
            self._open()

    def _start(self, front_end: FrontEnd, mountpoint: Path | None) -> None:
        self._let_go()
        try:
            process = SessionProcess(self.image, [front_end], log=self._log)
        except UsageError as error:
            self._clear_up(mountpoint)
            self._open()
            message = f"the daemon did not start: {error}"
            raise UsageError(message, exit_code=1) from None
        self._daemon = _Daemon(process=process, front_end=front_end, mountpoint=mountpoint)
        with self._target() as target:
            call(target, {"verb": "crash-watch", "on": True})

    def log(self) -> str:
        """Return what the last daemon said on stderr."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _end_daemon(self) -> None:
        if self._daemon is None:
            return
        process = self._daemon.process
        code = process.end(_END_S)
        self._kill_daemon()
        if code:
            message = f"the daemon ended with {code}: {process.last_words()}"
            raise UsageError(message, exit_code=1)

    def _kill_daemon(self) -> None:
        assert self._daemon is not None
        daemon, self._daemon = self._daemon, None
        daemon.process.kill()
        self._clear_up(daemon.mountpoint)

    def _clear_up(self, mountpoint: Path | None) -> None:
        """Remove what a daemon leaves that was killed: its mount and its control socket."""
        if mountpoint is not None:
            unmount(mountpoint, lazy=True)
        name = rendezvous.socket_name(self.image)
        for place in rendezvous.directories():
            (place / name).unlink(missing_ok=True)

    # -- faults -----------------------------------------------------------------------------------------------

    def power_cut(self, *, seed: int = 0, torn: bool = False, reorder: bool = False) -> None:
        """Cut the power and restore it: the image is replaced by one that the cut could have left, and used again.

        *seed* decides which of the images that docs/faults.md describes it is: the same seed and history give the same.
        *torn*: the write at the cut may be there in part. *reorder*: each zone, and each write to a conventional one,
        is kept or lost by itself. Faults that were injected are gone.

        A daemon is killed, and started again as it was: mount point and socket stay the same.

        Raises:
            ZonedError, OSError: the image cannot be written or opened.
        """
        self._earlier_refusals = self.refusals(_REFUSALS_SHOWN)
        if self._daemon is None:
            assert self.device is not None
            cut = self.image.with_suffix(".cut")
            self._lab.write(self._lab.history().draw(seed, torn=torn, reorder=reorder), cut)
            self._let_go()
            cut.replace(self.image)
            self._open()
            return
        daemon = self._daemon
        cuts = self._directory / "cuts"
        with self._target() as target:
            request: dict[str, Json] = {"directory": str(cuts), "seed": seed, "torn": torn, "reorder": reorder}
            reply, _ = call(target, {"verb": "crash", "at": "now", **request})
            while not reply["done"]:
                reply, _ = call(target, {"verb": "crash-results"})
                time.sleep(_POLL_S)
            self._kill_daemon()
        (cuts / "cut-0000.img").replace(self.image)
        self._start(daemon.front_end, daemon.mountpoint)

    # -- snapshots --------------------------------------------------------------------------------------------

    def snapshot(self, name: str = "0") -> None:
        """Keep the present state of the device under *name*, and replace an earlier snapshot of that name.

        A state that takes long to make is then made only once, because :meth:`rewind` restores it as often as needed.

        Raises:
            UsageError: *name* cannot be one. OSError: the host refuses or has no room.
        """
        with self._target() as target:
            path, new = self._snapshot_path(name), self.image.with_suffix(".new")
            new.unlink(missing_ok=True)
            for _ in target.stream({"verb": "dump", "path": str(new)}):
                pass
            new.replace(path)  # an earlier one is there until the new one is whole

    def rewind(self, name: str = "0") -> None:
        """Go back to the snapshot *name*. Faults that were injected are gone.

        A daemon is ended in order and started again as it was: mount point and socket stay the same.

        Raises:
            UsageError: there is no such snapshot. OSError: the host refuses or has no room.
        """
        path = self._snapshot_path(name)
        if not path.exists():
            message = f"the device has no snapshot {name!r}: take it with snapshot()"
            raise UsageError(message)
        self._earlier_refusals = self.refusals(_REFUSALS_SHOWN)
        daemon = self._daemon
        self._end_daemon()
        self._let_go()
        back = self.image.with_suffix(".back")
        for _ in self._copied(path, back):
            pass
        back.replace(self.image)
        self._open()
        if daemon is not None:
            self._start(daemon.front_end, daemon.mountpoint)

    def _snapshot_path(self, name: str) -> Path:
        if not name or "/" in name or "\0" in name:
            message = f"{name!r} cannot be the name of a snapshot, because it becomes a part of a file name"
            raise UsageError(message)
        return self.image.with_name(f"{self.image.name}.snapshot-{name}")

    @staticmethod
    def _copied(origin: Path, target: Path) -> Iterator[int]:
        device = ZonedDevice.open(origin, readonly=True)
        try:
            yield from dump(device, target)
        finally:
            device.close()

    def inject(
        self,
        effect: str,
        *,
        on: str | Sequence[str] = (),
        zone: int | None = None,
        nr_zones: int = 1,
        nth: int = 1,
        every: bool = False,
        status: Status = Status.IO_ERROR,
        nr_sectors: int = 0,
        cond: Condition = Condition.READONLY,
        delay_ns: tuple[int, int] = (0, 0),
        seed: int = 0,
    ) -> Fault:
        """Make operations fail from now on; returns the fault, whose ``id`` is for :meth:`remove_fault`.

        *effect*: fail, partial, cond, excursion, delay, lie, recommend-reset or recommend-finish, see docs/faults.md.
        *on*: one operation or more. *zone* and *nr_zones*: where; everywhere without.

        Raises:
            UsageError: the parts do not fit together; says what would.
        """
        fault: dict[str, Json] = {
            "effect": effect,
            "operations": [on] if isinstance(on, str) else list(on),
            "first_zone": zone or 0,
            "nr_zones": 0 if zone is None else nr_zones,
            "nth": nth,
            "every": every,
            "status": status.name,
            "nr_sectors": nr_sectors,
            "cond": cond.name,
            "delay_min_ns": delay_ns[0],
            "delay_max_ns": delay_ns[1],
            "seed": seed,
        }
        with self._target() as target:
            made, _ = call(target, {"verb": "inject", "fault": fault})
        found = made["fault"]
        assert isinstance(found, dict)
        return Fault.from_dict({**found})

    def remove_fault(self, fault_id: int) -> None:
        """Remove a fault.

        Raises:
            UsageError: there is none of that id.
        """
        with self._target() as target:
            call(target, {"verb": "remove-fault", "id": fault_id})

    def set_cond(self, zone: int, cond: Condition) -> None:
        """Put a zone into a condition, as a drive that fails does: READONLY or OFFLINE; and EMPTY repairs it.

        Raises:
            UsageError: the device refuses; says why.
        """
        with self._target() as target:
            call(target, {"verb": "set-cond", "zone_no": zone, "cond": int(cond)})

    # -- looking ----------------------------------------------------------------------------------------------

    def report(self) -> list[Zone]:
        """Return all zones."""
        with self._target() as target:
            return [zone for _, payload in target.stream({"verb": "report"}) for zone in unpack_zones(payload)]

    def refusals(self, count: int = 1) -> list[str]:
        """Return a sentence on each of the last *count* refused operations, oldest first."""
        with self._target() as target:
            record, _ = call(target, {"verb": "why", "count": count})
        refusals = record["refusals"]
        assert isinstance(refusals, list)
        return [str(refusal["sentence"]) for refusal in refusals if isinstance(refusal, dict)]

    def describe(self) -> str:
        """Return the zones that are not empty and the last refusals, for people."""
        try:
            return "".join(f"{line}\n" for line in self._lines())
        except (ZonedError, OSError) as error:
            # The failure of the test must be shown in any case; this description is an addition to it.
            return f"the device cannot be asked: {error}\n"

    def _lines(self) -> Iterator[str]:
        zones = [zone for zone in self.report() if zone.cond not in _UNTOUCHED]
        size, zone_size = human_bytes(to_bytes(self.geometry.size)), human_bytes(to_bytes(self.geometry.zone_size))
        yield f"{self.image}: {size}, {self.geometry.nr_zones} zones of {zone_size}; those that are not empty:"
        for zone in zones[:_ZONES_SHOWN]:
            written = "" if zone.cond in _WITHOUT_WP else f"  {zone.wp - zone.start} of {zone.capacity} sectors written"
            yield f"zone {zone.zone_no:>6} at sector {zone.start:>10}  {zone.cond.name:<9}{written}".rstrip()
        if len(zones) > _ZONES_SHOWN:
            yield f"... and {len(zones) - _ZONES_SHOWN} more"
        if not zones:
            yield "none"
        yield from self._time_lines()
        yield from (f"refused before the power cut: {sentence}" for sentence in self._earlier_refusals)
        yield from (f"refused: {sentence}" for sentence in self.refusals(_REFUSALS_SHOWN))
        yield from (f"the daemon said: {line}" for line in self.log().splitlines())

    def _time_lines(self) -> Iterator[str]:
        """Yield how long the commands in this process took, if they are timed."""
        timing = None if self._device is None else self._device.timing
        if timing is None:
            return
        now_ms = self.clock.now_ns / 1e6
        yield f"timing {timing.name}, the clock at {now_ms:.3f} ms, {self.clock.nr_in_flight} commands under way"
        for operation, times in timing.times().items():
            mean_us, longest_us = times.total_ns / times.count / 1e3, times.longest_ns / 1e3
            name = operation.name.lower()
            yield f"{name}: {times.count} in {mean_us:.1f} us on average, the longest in {longest_us:.1f} us"
        yield from (f"lately: {done}" for done in timing.last()[-_OPERATIONS_SHOWN:])

    @contextmanager
    def _target(self) -> Iterator[Target]:
        if self._device is not None:
            yield LocalTarget(self._verbs)
            return
        with open_target(self.image) as target:
            yield target

    def close(self) -> None:
        """End the daemon or close the image; the files stay.

        Raises:
            ZonedError: the daemon ended with an error, or the last flush failed.
        """
        self._is_closed = True
        try:
            self._end_daemon()
            self._let_go()
        finally:
            if self._sockets is not None:
                shutil.rmtree(self._sockets, ignore_errors=True)
