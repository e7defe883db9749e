"""Loads that write, read, reset and flush zones of their own: files of the mount, and verbs."""

import errno
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from tools.soak.daemon import (
    ANSWER_SECONDS,
    FIRST_FILE_ZONE,
    PROGRAM,
    ZONE,
    ZONE_BLOCKS,
    Daemon,
    GoneError,
    LostConnectionError,
)
from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS, Ledger
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json, unpack_zones
from zonefs_emu.errors import PeerError, UsageError
from zonefs_emu.front_ends.known import open_target

WRITE_BLOCKS_MAX: Final = 16
_ENDING_SECONDS: Final = 10
#: How often a client connects again after a loss. Exceptions are planted on that way too, one for each function, so
#: this is more than the functions on it.
RECOVERIES_MAX: Final = 1000
#: How often a load asks for something other than data.
LOOK_SHARE: Final = 0.05
#: How often a connection is ended and made again, which lets others have its socket.
_UNPLUG_SHARE: Final = 0.002
_GONE_ERRNOS: Final = frozenset((errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV))


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
        for _ in range(RECOVERIES_MAX):
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


class PluggedLoad(DataLoad):
    """A load with a connection of its own, which it ends and makes again now and then, and after a loss."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Be plugged for the time of the context."""
        self.connect_again()
        try:
            yield
        finally:
            self.unplug()

    def connect_again(self) -> None:
        """Connect, in place of a connection that was lost."""
        for _ in range(RECOVERIES_MAX):
            self.unplug()
            try:
                with self.losing():
                    self.plug()
            except LostConnectionError:
                self.nr_lost += 1
            else:
                return
        raise GoneError

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
                self.unplug()
                self.plug()
            if dice < LOOK_SHARE:
                self.look()
            else:
                super().use_a_zone()

    def plug(self) -> None:
        """Connect."""
        raise NotImplementedError

    def unplug(self) -> None:
        """End the connection, if there is one."""
        raise NotImplementedError

    def look(self) -> None:
        """Ask for something other than data."""
        raise NotImplementedError


class FileLoad(DataLoad):
    """Files of the mount."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Open the files."""
        with ExitStack() as stack:
            self._fds: dict[int, int] = {}
            for zone in self.ledgers:
                path = self.target.mountpoint / "seq" / str(zone.zone_no - FIRST_FILE_ZONE)
                fd = self._open(path)
                stack.callback(self._close, fd)
                self._fds[zone.zone_no] = fd
            yield

    def _open(self, path: Path) -> int:
        for _ in range(RECOVERIES_MAX):
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
        if self.rng.random() < LOOK_SHARE:
            self._look()
        else:
            super().use_a_zone()

    def _look(self) -> None:
        """Do what file managers and backup programs do: look, and try what a zonefs refuses."""
        top = self.target.mountpoint
        file = top / "seq" / str(self.rng.choice(self.ledgers).zone_no - FIRST_FILE_ZONE)
        looks: list[tuple[Callable[[], object], int]] = [
            (lambda: list(self.rng.choice((top, top / "seq")).iterdir()), 0),
            (file.stat, 0),
            (lambda: os.statvfs(top), 0),
            (lambda: os.utime(file), 0),
            (file.read_bytes, 0),
            (lambda: os.getxattr(file, "user.x"), errno.ENOTSUP),
            (lambda: file.rename(top / "seq" / "0"), errno.EPERM),
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
def asking(daemon: Daemon, lost: Callable[[Exception], NoReturn] = _gone) -> Iterator[_Asking]:
    """Connect to the control socket of *daemon*; *lost* says what a loss means."""
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
        for _ in range(RECOVERIES_MAX):
            self._connection.close()
            try:
                self._daemon = self._connection.enter_context(asking(self.target, self.lost))
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
            done = subprocess.run([*PROGRAM, words[0], str(self.target.image), *words[1:]], check=False,
                                  capture_output=True, timeout=ANSWER_SECONDS)  # fmt: skip
            if done.returncode and self.target.planting is not None:
                assert b"Traceback" not in done.stderr, done.stderr.decode()
                self.nr_lost += 1
            elif done.returncode and self.target.is_running:
                message = f"{words[0]} ended with exit code {done.returncode}: {done.stderr.decode()}"
                raise AssertionError(message)
        elif dice < LOOK_SHARE:
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
