"""All front-ends at once: a daemon, the loads on it, each with zones of its own, and faults and garbage among them."""

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn
from uuid import uuid4

from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS, Ledger
from tools.soak.planting import PLANTED_VARIABLE
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import MAGIC, Json, unpack_zones
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.unforeseen import REPORT_VARIABLE
from zonefs_emu.errors import PeerError, UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.scsi.commands import READ_CAPACITY_16, REPORT_SUPPORTED_OPERATION_CODES, Opcode
from zonefs_emu.scsi.sense import SenseKey
from zonefs_emu.testing import scsi_driver
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.scsi_driver import FIRST_REQUEST_QUEUE, Reply, ScsiDriver
from zonefs_emu.testing.vhost_frontend import Frontend, FrontendQueue
from zonefs_emu.virtio import blk_codec

ZONE: Final = 4096
ZONE_BLOCKS: Final = ZONE // BLOCK_SECTORS
WRITE_BLOCKS_MAX: Final = 16
#: 2 conventional zones (the super block lies in the first) and 80 for the loads; fewer may be open than are written to.
GEOMETRY: Final = Geometry(
    size=82 * ZONE, zone_size=ZONE, zone_capacity=ZONE, conventional=((0, 2),), block_size_bytes=BLOCK_BYTES,
    write_granularity=BLOCK_SECTORS, max_open_zones=6, max_append=ZONE,
)  # fmt: skip
FILES: Final = range(2, 22)
VERBS: Final = range(22, 42)
BLK: Final = range(42, 62)
SCSI: Final = range(62, 82)
LOADED: Final = (*FILES, *VERBS, *BLK, *SCSI)
NR_FAULTS: Final = 12
_START_SECONDS: Final = 60
_ANSWER_SECONDS: Final = 60
_ENDING_SECONDS: Final = 10
_HOSTILE_MEMORY_BYTES: Final = 16 << 20
#: Exceptions are planted into what a client does after a loss as well, so it tries again: more often than functions
#: lie on its way.
_RECOVERIES_MAX: Final = 1000
#: How often a load asks for something other than data.
_LOOK_SHARE: Final = 0.05
#: How often a disk is unplugged and plugged in again, which lets others have its socket.
_UNPLUG_SHARE: Final = 0.002
_GONE_ERRNOS: Final = frozenset((errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV))
_PROGRAM: Final = (sys.executable, "-m", "zonefs_emu")


class GoneError(Exception):
    """The daemon is not there any more."""


class LostConnectionError(Exception):
    """An answer, a connection or a ring was lost to an exception that was planted; the daemon goes on."""


class Daemon:
    """``zonefs-emu serve`` with every front-end that it has.

    *planting*: how exceptions are planted into it (:mod:`tools.soak.planting`: ``once``, or a probability), or None.
    """

    def __init__(self, directory: Path, planting: str | None = None) -> None:
        self.planting = planting
        #: A line for each exception that was planted.
        self.planted = directory / "planted"
        #: What the daemon contained, as ZONEFS_EMU_INTERNAL_ERRORS has it.
        self.contained = directory / "contained"
        self.image = directory / "soak.img"
        self.mountpoint = directory / "mnt"
        self.blk, self.scsi = directory / "blk.sock", directory / "scsi.sock"
        #: The same disks, for guests that mean harm.
        self.hostile_blk, self.hostile_scsi = directory / "hostile-blk.sock", directory / "hostile-scsi.sock"
        self.log = directory / "daemon.log"
        self.mountpoint.mkdir()
        ZonedDevice.create(self.image, GEOMETRY, uuid=uuid4(), label="soak")
        subprocess.run([*_PROGRAM, "mkfs", str(self.image)], check=True, stdout=subprocess.DEVNULL)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended, be it by itself."""
        return self._process is not None and self._process.poll() is None

    @property
    def nr_planted(self) -> int:
        """How many exceptions were planted so far."""
        return self.planted.read_bytes().count(b"\n") if self.planted.exists() else 0

    @property
    def resident_kib(self) -> int:
        """Resident memory now."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def start(self) -> None:
        """Start it and wait until it serves."""
        for path in (self.blk, self.scsi, self.hostile_blk, self.hostile_scsi):
            path.unlink(missing_ok=True)
        program: Sequence[str] = _PROGRAM
        environment = dict(os.environ)
        if self.planting is not None:
            program = (sys.executable, "-m", "tools.soak.planting", self.planting)
            environment |= {PLANTED_VARIABLE: str(self.planted), REPORT_VARIABLE: str(self.contained)}
        with self.log.open("ab") as log:
            before = log.tell()
            self._process = subprocess.Popen(
                [
                    *program, "serve", str(self.image), "--vhost-user-blk", str(self.blk),
                    "--vhost-user-scsi", str(self.scsi), "--vhost-user-blk", str(self.hostile_blk),
                    "--vhost-user-scsi", str(self.hostile_scsi), "--mount", str(self.mountpoint),
                    "--mount-options", "errors=repair",
                ],
                stdout=subprocess.DEVNULL, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while b"is served" not in self.log.read_bytes()[before:]:
            assert self.is_running, f"the daemon did not start: see {self.log}"
            assert time.monotonic() < deadline, f"the daemon does not come up: see {self.log}"
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it as the kernel does when memory is out, and clean up as the administrator does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        fusermount = shutil.which("fusermount3")
        assert fusermount is not None
        subprocess.run([fusermount, "-u", "-z", str(self.mountpoint)], check=False, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Stop it in order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(_ANSWER_SECONDS)
        assert code == 0, f"the daemon ended with exit code {code}: see {self.log}"


class Load(threading.Thread):
    """One client of the daemon, on a thread; *failure* is what it found wrong."""

    def __init__(self, daemon: Daemon, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.target = daemon
        self.rng = random.Random(f"{name} {seed}")
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.nr_done = 0
        self.nr_refused = 0
        #: Answers, connections and rings that planted exceptions cost.
        self.nr_lost = 0

    def run(self) -> None:
        """Take steps until told to stop, or until the daemon is gone."""
        try:
            with self.connected():
                while not self.stopping.is_set():
                    self.step()
        except GoneError:
            pass
        except BaseException as error:
            self.failure = error

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect for the time of the context."""
        yield

    def step(self) -> None:
        """Do one thing."""
        raise NotImplementedError


class DataLoad(Load):
    """A load that writes, reads, resets and flushes zones that only it writes to, and knows what they must hold.

    The calls of a kind of client return whether they were done; False where a fault refused them.
    """

    def __init__(self, daemon: Daemon, name: str, seed: int, ledgers: Sequence[Ledger]) -> None:
        super().__init__(daemon, name, seed)
        self.ledgers = ledgers

    def step(self) -> None:
        """Do one thing; after a loss, connect again and learn what became of the request under way."""
        try:
            self.use_a_zone()
        except LostConnectionError as loss:
            self._recover(loss)

    def _recover(self, loss: LostConnectionError) -> None:
        for _ in range(_RECOVERIES_MAX):
            self.nr_lost += 1
            try:
                self.connect_again()
                with self.losing():
                    for zone in self.ledgers:
                        if zone.trying or zone.resetting:
                            zone.reconcile(self.written_sectors(zone))
            except LostConnectionError as another:
                loss = another
            else:
                return
        raise loss

    def connect_again(self) -> None:
        """Connect again after a loss."""

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Turn what the end of a connection raises into :meth:`lost`, where calls do not do so themselves."""
        yield

    def lost(self, error: Exception) -> NoReturn:
        """Say what the loss of an answer, a connection or a ring means.

        Raises:
            GoneError: the daemon is gone, or going. LostConnectionError: exceptions are planted in it, and this is one.
        """
        deadline = time.monotonic() + _ENDING_SECONDS
        while self.target.is_running:
            if self.target.planting is not None:
                raise LostConnectionError from error
            if time.monotonic() > deadline:
                raise error
            time.sleep(0.02)
        raise GoneError from error

    def use_a_zone(self) -> None:
        """Do one thing to one zone."""
        zone, dice = self.rng.choice(self.ledgers), self.rng.random()
        if zone.acknowledged + WRITE_BLOCKS_MAX >= ZONE_BLOCKS or (zone.acknowledged and dice < 0.02):
            self._reset(zone)
        elif dice < 0.25 and zone.acknowledged:
            first = self.rng.randrange(zone.acknowledged)
            count = min(self.rng.randrange(1, 33), zone.acknowledged - first)
            found = self.read(zone, first, count)
            if found is None:
                self.nr_refused += 1
            else:
                zone.compare(first, count, found)
                self.nr_done += 1
        elif dice < 0.28:
            self._note(done=self.flush(zone))
        else:
            zone.trying = self.rng.randrange(1, WRITE_BLOCKS_MAX + 1)
            done = self.write(zone, zone.data(zone.acknowledged, zone.trying))
            if done:
                zone.acknowledged += zone.trying
                zone.trying = 0
            else:
                zone.reconcile(self.written_sectors(zone))
            self._note(done=done)

    def _reset(self, zone: Ledger) -> None:
        zone.resetting = True
        done = self.reset(zone)
        if done:
            zone.was_reset()
        else:
            # A fault refuses before anything is done. A planted exception may come afterwards.
            zone.resetting = self.target.planting is not None
            zone.reconcile(self.written_sectors(zone))
        self._note(done=done)

    def _note(self, *, done: bool) -> None:
        if done:
            self.nr_done += 1
        else:
            self.nr_refused += 1

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Return *count* blocks from block *first* on; None if refused."""
        raise NotImplementedError

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write at wp."""
        raise NotImplementedError

    def reset(self, zone: Ledger) -> bool:
        """Reset."""
        raise NotImplementedError

    def flush(self, zone: Ledger) -> bool:
        """Flush."""
        raise NotImplementedError

    def written_sectors(self, zone: Ledger) -> int:
        """Return how much the zone holds."""
        raise NotImplementedError


class FileLoad(DataLoad):
    """Files of the mount."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Open the files."""
        with ExitStack() as stack:
            self._fds: dict[int, int] = {}
            for zone in self.ledgers:
                path = self.target.mountpoint / "seq" / str(zone.zone_no - GEOMETRY.nr_conventional)
                fd = self._open(path)
                stack.callback(self._close, fd)
                self._fds[zone.zone_no] = fd
            yield

    def _open(self, path: Path) -> int:
        for _ in range(_RECOVERIES_MAX):
            try:
                return os.open(path, os.O_RDWR | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EIO or self.target.planting is None:
                    raise GoneError from error
                self.nr_lost += 1
        raise GoneError

    @staticmethod
    def _close(fd: int) -> None:
        with suppress(OSError):
            os.close(fd)

    @contextmanager
    def _refusals(self) -> Iterator[list[bool]]:
        done = [True]
        try:
            yield done
        except OSError as error:
            if error.errno in _GONE_ERRNOS:
                raise GoneError from error
            if error.errno != errno.EIO:
                raise
            done[0] = False

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Read with pread(2)."""
        found: bytes | None = None
        with self._refusals():
            found = os.pread(self._fds[zone.zone_no], count * BLOCK_BYTES, first * BLOCK_BYTES)
        return found  # noqa: RET504  (mypy does not see that the context swallows refusals)

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write with pwrite(2); a short write is one that failed half way."""
        with self._refusals() as done:
            done[0] = os.pwrite(self._fds[zone.zone_no], data, zone.acknowledged * BLOCK_BYTES) == len(data)
        return done[0]

    def reset(self, zone: Ledger) -> bool:
        """Truncate to nothing."""
        with self._refusals() as done:
            os.ftruncate(self._fds[zone.zone_no], 0)
        return done[0]

    def flush(self, zone: Ledger) -> bool:
        """Call fsync(2)."""
        with self._refusals() as done:
            os.fsync(self._fds[zone.zone_no])
        return done[0]

    def written_sectors(self, zone: Ledger) -> int:
        """Return what stat(2) says."""
        try:
            return os.fstat(self._fds[zone.zone_no]).st_size // 512
        except OSError as error:
            self.lost(error)

    def use_a_zone(self) -> None:
        """Look at something, or use a file."""
        if self.rng.random() < _LOOK_SHARE:
            self._look()
        else:
            super().use_a_zone()

    def _look(self) -> None:
        """Do what file managers and backup programs do: look, and try what a zonefs refuses."""
        top = self.target.mountpoint
        file = top / "seq" / str(self.rng.choice(self.ledgers).zone_no - GEOMETRY.nr_conventional)
        looks: list[tuple[Callable[[], object], int]] = [
            (lambda: list(self.rng.choice((top, top / "seq", top / "cnv")).iterdir()), 0),
            (file.stat, 0),
            (lambda: os.statvfs(top), 0),
            (lambda: os.utime(file), 0),
            (file.read_bytes, 0),
            (lambda: os.getxattr(file, "user.x"), errno.ENOTSUP),
            (lambda: file.rename(top / "cnv" / "0"), errno.EPERM),
            (file.unlink, errno.EPERM),
            ((top / "seq" / "new").touch, errno.ENOENT),
            (lambda: os.truncate(file, 4096), errno.EPERM),
        ]  # fmt: skip
        look, refusal = self.rng.choice(looks)
        try:
            look()
        except OSError as error:
            if error.errno in _GONE_ERRNOS:
                raise GoneError from error
            if error.errno == refusal:
                return
            if error.errno != errno.EIO:
                raise
            self.nr_refused += 1
        else:
            assert not refusal, f"what {errno.errorcode[refusal]} refuses was done"


class _Asking:
    """The control socket, for loads. *lost* says what the loss of a connection means, and never returns.

    *strict*: only injected faults refuse anything.
    """

    def __init__(self, target: Target, lost: Callable[[Exception], NoReturn], *, strict: bool) -> None:
        self._target = target
        self._lost = lost
        self._strict = strict

    def ask(self, verb: str, payload: bytes = b"", **facts: Json) -> tuple[dict[str, Json], bytes] | None:
        """Ask for a verb with one reply; None if a fault refused it."""
        try:
            reply, data = call(self._target, {"verb": verb, **facts}, payload)
        except PeerError as error:
            self._lost(error)
        except UsageError as error:
            if "switched off" in str(error) and not self._strict:
                return {}, b""  # the answer where an exception has hit the counters
            if "injected" not in str(error) and self._strict:
                raise
            return None
        return dict(reply), data


def _gone(error: Exception) -> NoReturn:
    raise GoneError from error


@contextmanager
def _asking(daemon: Daemon, lost: Callable[[Exception], NoReturn] = _gone) -> Iterator[_Asking]:
    try:
        held = open_target(daemon.image)
    except (PeerError, UsageError) as error:
        lost(error)
    with held as target:
        yield _Asking(target, lost, strict=daemon.planting is None)


class VerbLoad(DataLoad):
    """Verbs through the control socket, and now and then a whole run of the command."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the control socket."""
        with ExitStack() as self._connection:
            self.connect_again()
            yield

    def connect_again(self) -> None:
        """Connect to the control socket, in place of the connection that was lost."""
        for _ in range(_RECOVERIES_MAX):
            self._connection.close()
            try:
                self._daemon = self._connection.enter_context(_asking(self.target, self.lost))
            except LostConnectionError:
                self.nr_lost += 1
            else:
                return
        raise GoneError

    def use_a_zone(self) -> None:
        """Look at something, or use a zone."""
        dice = self.rng.random()
        if dice < 0.002:
            words = self.rng.choice((["report"], ["stats", "--json"], ["why", "-n", "3"], ["info"]))
            done = subprocess.run([*_PROGRAM, words[0], str(self.target.image), *words[1:]], check=False,
                                  capture_output=True, timeout=_ANSWER_SECONDS)  # fmt: skip
            if done.returncode and self.target.planting is not None:
                assert b"Traceback" not in done.stderr, done.stderr.decode()
                self.nr_lost += 1
            elif done.returncode and self.target.is_running:
                message = f"{words[0]} ended with exit code {done.returncode}: {done.stderr.decode()}"
                raise AssertionError(message)
        elif dice < _LOOK_SHARE:
            self._look()
        else:
            super().use_a_zone()

    def _look(self) -> None:
        zone_no = self.rng.choice(self.ledgers).zone_no
        questions: list[tuple[str, dict[str, Json]]] = [
            ("why", {"count": 20}), ("stats", {"top": 5}), ("stats", {"zone_no": zone_no}), ("info", {}),
            ("faults", {}),
        ]  # fmt: skip
        verb, facts = self.rng.choice(questions)
        self._note(done=self._daemon.ask(verb, b"", **facts) is not None)

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Use the verb read."""
        sector = zone.zone_no * ZONE + first * BLOCK_SECTORS
        reply = self._daemon.ask("read", sector=sector, nr_sectors=count * BLOCK_SECTORS)
        return None if reply is None else reply[1]

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Use the verb write or append."""
        return self._daemon.ask(self.rng.choice(("write", "append")), data, zone_no=zone.zone_no) is not None

    def reset(self, zone: Ledger) -> bool:
        """Use the verb manage."""
        return self._daemon.ask("manage", operation="reset", zone_no=zone.zone_no) is not None

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Use the verb flush."""
        return self._daemon.ask("flush") is not None

    def written_sectors(self, zone: Ledger) -> int:
        """Report."""
        request: dict[str, Json] = {"verb": "report", "zone_no": zone.zone_no, "count": 1}
        try:
            with open_target(self.target.image) as target:
                zones = [zone for _, payload in target.stream(request) for zone in unpack_zones(payload)]
        except PeerError as error:
            self.lost(error)
        except UsageError as error:
            if self.target.planting is None:
                raise
            raise LostConnectionError from error
        return zones[0].wp - zones[0].start


class DiskLoad(DataLoad):
    """A disk at the vhost-user socket *path*, as a virtual machine's driver."""

    #: The queue for requests; those before it are started with it.
    queue_no = 0

    def __init__(self, daemon: Daemon, name: str, seed: int, ledgers: Sequence[Ledger], path: Path) -> None:
        super().__init__(daemon, name, seed, ledgers)
        self._path = path
        self._frontend: Frontend | None = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect, with a split or packed ring."""
        self.connect_again()
        try:
            yield
        finally:
            if self._frontend is not None:
                self._frontend.close()

    def connect_again(self) -> None:
        """Plug the disk in again after a loss."""
        for _ in range(_RECOVERIES_MAX):
            if self._frontend is not None:
                self._frontend.close()
            try:
                with self.losing():
                    self._plug()
            except LostConnectionError:
                self.nr_lost += 1
            else:
                return
        raise GoneError

    def _plug(self) -> None:
        frontend = Frontend(self._path, packed=self.rng.random() < 0.5, nr_queues=self.queue_no + 1)
        frontend.timeout_seconds = _ANSWER_SECONDS
        try:
            frontend.start()
        except BaseException:
            frontend.close()
            raise
        self._frontend = frontend
        self.use(frontend.queues[self.queue_no])

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Turn the end of the connection into the end of the load, if the daemon is gone; it may just be ending."""
        try:
            yield
        except (OSError, PeerError) as error:
            self.lost(error)

    def use_a_zone(self) -> None:
        """Look at something, or use a zone; now and then after another start of everything."""
        dice = self.rng.random()
        with self.losing():
            if dice < _UNPLUG_SHARE:
                assert self._frontend is not None
                self._frontend.close()
                self._plug()
            if dice < _LOOK_SHARE:
                self.look()
            else:
                super().use_a_zone()

    def look(self) -> None:
        """Ask for something other than data."""
        raise NotImplementedError

    def use(self, queue: FrontendQueue) -> None:
        """Send requests to *queue* from now on."""
        raise NotImplementedError


class BlkLoad(DiskLoad):
    """The vhost-user-blk disk."""

    def use(self, queue: FrontendQueue) -> None:
        """Be a virtio-blk driver."""
        self._driver = BlkDriver(queue)

    @staticmethod
    def _is_done(status: int) -> bool:
        """Say whether it was done; all that faults make of a request is an I/O error."""
        assert status in (blk_codec.S_OK, blk_codec.S_IOERR), f"the vhost-user-blk disk answers {status}"
        return status == blk_codec.S_OK

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Read."""
        status, data = self._driver.read(zone.zone_no * ZONE + first * BLOCK_SECTORS, count * BLOCK_BYTES)
        return data if self._is_done(status) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write or append."""
        start, end = zone.zone_no * ZONE, zone.zone_no * ZONE + zone.acknowledged * BLOCK_SECTORS
        if self.rng.random() < 0.5:
            return self._is_done(self._driver.write(end, data))
        status, where = self._driver.append(start, data)
        done = self._is_done(status)
        assert not done or where == end, "an append went astray"
        return done

    def reset(self, zone: Ledger) -> bool:
        """Reset."""
        return self._is_done(self._driver.manage(blk_codec.T_ZONE_RESET, zone.zone_no * ZONE))

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Flush."""
        return self._is_done(self._driver.flush())

    def written_sectors(self, zone: Ledger) -> int:
        """Report."""
        status, zones = self._driver.report(zone.zone_no * ZONE, 1)
        if status:
            self.lost(PeerError("a report was refused"))
        return zones[0].wp - zones[0].start

    def look(self) -> None:
        """Ask for the identity of the disk, for many zones, and for pages that it does not have."""
        driver, rng = self._driver, self.rng
        start = rng.choice(self.ledgers).zone_no * ZONE
        match rng.randrange(5):
            case 0:
                driver.identity()
            case 1:
                status, _ = driver.report(0, rng.choice((1, 30, 200)))
                self._note(done=self._is_done(status))
            case 2:
                assert self._frontend is not None
                self._frontend.config()
            case 3:  # nothing to close in an empty zone, or it is done
                assert driver.manage(blk_codec.T_ZONE_CLOSE, start) in (
                    blk_codec.S_OK, blk_codec.S_IOERR, blk_codec.S_ZONE_INVALID_CMD
                )  # fmt: skip
            case _:
                assert driver.manage(rng.choice((99, 2)), start) in (blk_codec.S_UNSUPP, blk_codec.S_IOERR)


_DONE_OR_FAILED: Final = frozenset((SenseKey.NO_SENSE, SenseKey.MEDIUM_ERROR, SenseKey.HARDWARE_ERROR))


class ScsiLoad(DiskLoad):
    """The vhost-user-scsi disk."""

    queue_no = FIRST_REQUEST_QUEUE

    def use(self, queue: FrontendQueue) -> None:
        """Be an initiator."""
        self._driver = ScsiDriver(queue, BLOCK_BYTES)

    @staticmethod
    def _is_done(reply: Reply) -> bool:
        """Say whether it was done; all that faults make of a command is a medium error."""
        key = reply.sense[0] if reply.sense is not None else SenseKey.NO_SENSE
        assert key in _DONE_OR_FAILED, f"the vhost-user-scsi disk answers {reply.sense}"
        return key == SenseKey.NO_SENSE

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Do READ(16)."""
        reply = self._driver.read(zone.zone_no * ZONE_BLOCKS + first, count)
        return reply.data if self._is_done(reply) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Do WRITE(16)."""
        return self._is_done(self._driver.write(zone.zone_no * ZONE_BLOCKS + zone.acknowledged, data))

    def reset(self, zone: Ledger) -> bool:
        """Do RESET WRITE POINTER."""
        return self._is_done(self._driver.manage(scsi_driver.RESET, zone.zone_no * ZONE_BLOCKS))

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Do SYNCHRONIZE CACHE(16)."""
        return self._is_done(self._driver.flush())

    def written_sectors(self, zone: Ledger) -> int:
        """Do REPORT ZONES."""
        (found,) = self._driver.report(zone.zone_no * ZONE_BLOCKS, 1)
        return (found.wp - found.start) * BLOCK_SECTORS

    def look(self) -> None:
        """Ask what Linux and its tools ask a disk, and for what it has not."""
        first = self.rng.choice(self.ledgers).zone_no * ZONE_BLOCKS
        cdb = self.rng.choice(
            (
                bytes(6),  # TEST UNIT READY
                bytes((Opcode.INQUIRY, 0, 0, 0, 96, 0)),
                *(bytes((Opcode.INQUIRY, 1, page, 0, 255, 0)) for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB6, 0x77)),
                bytes((Opcode.MODE_SENSE_6, 0, 0x3F, 0, 192, 0)),
                bytes((Opcode.READ_CAPACITY_10, *bytes(9))),
                bytes((Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, *bytes(11), 32, 0, 0)),
                bytes((Opcode.REPORT_LUNS, *bytes(8), 64, 0, 0)),
                bytes((Opcode.MAINTENANCE_IN, REPORT_SUPPORTED_OPERATION_CODES, *bytes(6), 4, 0, 0, 0)),
                bytes((Opcode.VERIFY_10, 0)) + first.to_bytes(4, "big") + bytes((0, 0, 1, 0)),
                b"\xff" + bytes(15),
            )
        )
        reply = self._driver.command(cdb, room=1024)
        refused = reply.sense is not None and reply.sense[0] == SenseKey.ILLEGAL_REQUEST
        self._note(done=refused or self._is_done(reply))


class FaultLoad(Load):
    """Faults that come and go, on all zones and all operations."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the control socket."""
        with _asking(self.target) as self._daemon:
            yield

    def step(self) -> None:
        """Add a fault, and take the oldest away when there are many."""
        rng = self.rng
        fault: dict[str, Json] = {
            "effect": rng.choice(("fail", "fail", "partial", "delay", "recommend-reset")),
            "first_zone": rng.choice(LOADED),
            "nr_zones": 1,
        }
        if fault["effect"] != "recommend-reset":
            fault["nth"] = rng.randrange(1, 20)
        match fault["effect"]:
            case "fail":
                fault["operations"] = [rng.choice(("read", "write", "append", "reset", "flush"))]
                if fault["operations"] == ["flush"]:
                    fault["first_zone"] = fault["nr_zones"] = 0
            case "partial":
                fault["operations"] = ["write", "append"]
                fault["nr_sectors"] = BLOCK_SECTORS * rng.randrange(1, 8)
            case "delay":
                fault["operations"] = [rng.choice(("read", "write", "append"))]
                fault["delay_min_ns"], fault["delay_max_ns"] = 1_000_000, 20_000_000
            case _:  # changes reports only, at once
                pass
        self._daemon.ask("inject", fault=fault)
        reply = self._daemon.ask("faults")
        assert reply is not None
        faults = reply[0]["faults"]
        assert isinstance(faults, list)
        for old in faults[:-NR_FAULTS]:
            assert isinstance(old, dict)
            self._daemon.ask("remove-fault", id=old["id"])
        self.nr_done += 1
        self.stopping.wait(0.05)


class GarbageLoad(Load):
    """Peers that send anything but what the protocols say."""

    def step(self) -> None:
        """Connect to one of the sockets, say something wrong, and go."""
        rng = self.rng
        peer: socket.socket | None = None
        try:
            path = rng.choice((None, self.target.blk, self.target.scsi))
            if path is None:
                peer = rendezvous.connect(self.target.image)
            else:
                peer = socket.socket(socket.AF_UNIX)
                peer.settimeout(0.2)
                peer.connect(str(path))
            if peer is None:
                raise GoneError
            peer.settimeout(0.2)
            for _ in range(rng.randrange(1, 6)):
                peer.sendall(self._words())
                if rng.random() < 0.5:
                    peer.recv(1 << 16)
        except OSError:  # it drops us, as it should
            pass
        finally:
            if peer is not None:
                peer.close()
        self.nr_done += 1
        self.stopping.wait(0.02)

    def _words(self) -> bytes:
        rng = self.rng
        body = rng.randbytes(rng.choice((0, 1, 8, 40, 300)))
        match rng.randrange(4):
            case 0:
                return body
            case 1:  # a header of vhost-user: request, flags, length
                words = (rng.randrange(48), rng.choice((1, 9, 5, 0)), rng.choice((len(body), rng.randrange(5000))))
                return b"".join(word.to_bytes(4, "little") for word in words) + body
            case 2:  # lengths of the control socket, true or not
                text = rng.choice((b'{"verb":"report"}', b'{"verb":[]}', b"[]", b'{"verb":"write","zone_no":-1}', body))
                lengths = rng.choice(((len(text), 0), (len(text), len(body)), (rng.randrange(1 << 31), 0)))
                return MAGIC + b"".join(length.to_bytes(4, "little") for length in lengths) + text
            case _:
                return bytes(rng.randrange(64))


class HostileLoad(Load):
    """A guest that means harm: chains of any length, made of descriptors that name the same memory or none.

    It writes to zone 1 only, which no other load uses. What it gets for an answer is its own affair: an error, a broken
    ring, an end of the connection.
    """

    def __init__(self, daemon: Daemon, name: str, seed: int, path: Path, *, nr_queues: int) -> None:
        super().__init__(daemon, name, seed)
        self._path = path
        self._nr_queues = nr_queues

    def step(self) -> None:
        """Connect, send some chains, and go."""
        rng = self.rng
        try:
            with Frontend(
                self._path, packed=rng.random() < 0.5, indirect=rng.random() < 0.5, queue_size=1024,
                memory_bytes=_HOSTILE_MEMORY_BYTES, nr_queues=self._nr_queues,
            ) as frontend:  # fmt: skip
                frontend.timeout_seconds = 1
                frontend.start()
                for _ in range(rng.randrange(1, 10)):
                    self._send(frontend, rng.choice(frontend.queues))
        except (OSError, PeerError, MemoryError):
            if not self.target.is_running:
                raise GoneError from None
        self.nr_done += 1
        self.stopping.wait(0.02)

    def _send(self, frontend: Frontend, queue: FrontendQueue) -> None:
        rng = self.rng
        head = frontend.heap.take(64)
        if self._nr_queues == 1:
            kind = rng.choice(
                (
                    blk_codec.T_IN,
                    blk_codec.T_OUT,
                    blk_codec.T_ZONE_REPORT,
                    blk_codec.T_ZONE_APPEND,
                    blk_codec.T_GET_ID,
                    rng.randrange(64),
                )
            )
            if kind in (blk_codec.T_ZONE_RESET_ALL, blk_codec.T_WRITE_ZEROES, blk_codec.T_DISCARD):
                kind = blk_codec.T_FLUSH
            content = blk_codec.HEADER.pack(kind, 0, ZONE + rng.randrange(ZONE))
        else:
            opcode = rng.choice(
                (Opcode.TEST_UNIT_READY, Opcode.INQUIRY, Opcode.READ_16, Opcode.WRITE_16, Opcode.VERIFY_16)
            )
            cdb = bytes((opcode, 0)) + (ZONE_BLOCKS).to_bytes(8, "big") + rng.randrange(1 << 16).to_bytes(4, "big")
            content = b"\x01\0\x40\0\0\0\0\0" + bytes(11) + cdb.ljust(32, b"\0")
        frontend.memory[head.offset : head.offset + len(content)] = content
        body_bytes = rng.choice((512, 4096, 1 << 20, _HOSTILE_MEMORY_BYTES // 2, rng.randrange(1 << 32)))
        count = rng.choice((1, 2, 200, 700, 1020))
        to_device = rng.random() < 0.5
        body = (GUEST_BASE + _HOSTILE_MEMORY_BYTES // 2, body_bytes, not to_device)
        chain = [(GUEST_BASE + head.offset, len(content), False)]
        if to_device:
            chain += [body] * count
        chain.append((GUEST_BASE + head.offset, rng.choice((1, 16, 108)), True))
        if not to_device:
            chain += [body] * count
        table = frontend.heap.take(16 * len(chain)) if frontend.indirect else None
        if queue.ring.nr_free < len(chain):
            return
        queue.ring.add(chain, table)
        queue.kick()
        deadline = time.monotonic() + 1
        while not queue.ring.reap() and not queue.is_broken and time.monotonic() < deadline:
            time.sleep(0.01)


class Crowd:
    """The daemon and all its users."""

    def __init__(self, directory: Path, seed: int, planting: str | None = None) -> None:
        self.daemon = Daemon(directory, planting)
        self.ledgers = [Ledger(zone_no) for zone_no in LOADED]
        self.loads: list[Load] = []
        self.done: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self._seed = seed

    def begin(self, *, faulty: bool = True) -> None:
        """Start the daemon, then its users; *faulty*: with faults and garbage among them."""
        self.daemon.start()
        self._seed += 1
        daemon, seed = self.daemon, self._seed

        def those(zones: range) -> list[Ledger]:
            return [ledger for ledger in self.ledgers if ledger.zone_no in zones]

        self.loads = [
            FileLoad(daemon, "files", seed, those(FILES)),
            VerbLoad(daemon, "verbs", seed, those(VERBS)),
            BlkLoad(daemon, "blk", seed, those(BLK), daemon.blk),
            ScsiLoad(daemon, "scsi", seed, those(SCSI), daemon.scsi),
        ]
        if faulty:
            self.loads += [
                FaultLoad(daemon, "faults", seed),
                GarbageLoad(daemon, "garbage", seed),
                HostileLoad(daemon, "hostile-blk", seed, daemon.hostile_blk, nr_queues=1),
                HostileLoad(daemon, "hostile-scsi", seed, daemon.hostile_scsi, nr_queues=FIRST_REQUEST_QUEUE + 1),
            ]
        for load in self.loads:
            load.start()

    def check_alive(self) -> None:
        """Raise what a load has found; say so if the daemon ended by itself."""
        for load in self.loads:
            if load.failure is not None:
                raise load.failure
        assert self.daemon.is_running, f"the daemon ended by itself: see {self.daemon.log}"

    def kill(self) -> None:
        """Kill the daemon in the middle of everything, and compare what is left with what was acknowledged."""
        self.check_alive()
        self.daemon.kill()
        self._join()
        self._check_log()
        self.compare()

    def end(self) -> None:
        """Stop all users, then the daemon, and compare."""
        for load in self.loads:
            load.stopping.set()
        self._join()
        assert self.daemon.is_running, f"the daemon ended by itself: see {self.daemon.log}"
        if self.daemon.planting is None:
            self._remove_faults()
        self.daemon.stop()
        self._check_log()
        self.compare()

    def _remove_faults(self) -> None:
        with _asking(self.daemon) as asking:
            reply = asking.ask("faults")
            assert reply is not None
            faults = reply[0]["faults"]
            assert isinstance(faults, list)
            for fault in faults:
                assert isinstance(fault, dict)
                asking.ask("remove-fault", id=fault["id"])

    def _join(self) -> None:
        for load in self.loads:
            load.join(2 * _ANSWER_SECONDS)
            assert not load.is_alive(), f"the load {load.name} hangs"
            self.done[load.name] = self.done.get(load.name, 0) + load.nr_done
            self.refused[load.name] = self.refused.get(load.name, 0) + load.nr_refused
            self.lost[load.name] = self.lost.get(load.name, 0) + load.nr_lost
        for load in self.loads:
            if load.failure is not None:
                raise load.failure
        self.loads = []

    def _check_log(self) -> None:
        if self.daemon.planting is not None:
            return  # full of them
        assert b"Traceback" not in self.daemon.log.read_bytes(), f"the daemon raised: see {self.daemon.log}"

    def compare(self) -> None:
        """Look at the image itself: every zone has what was acknowledged, and nothing that was never asked for."""
        device = ZonedDevice.open(self.daemon.image, readonly=True)
        try:
            machine, preadv = device.machine, device.image.backing.preadv
            for ledger in self.ledgers:
                ledger.reconcile(machine.wps[ledger.zone_no])
                found = bytearray(ledger.acknowledged * BLOCK_BYTES)
                preadv([found], ledger.zone_no * ZONE * 512)
                ledger.compare(0, ledger.acknowledged, bytes(found))
        finally:
            device.close()
