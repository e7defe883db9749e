"""Small images in memory, driven by programs of a few words, and what is allowed of them after a power cut.

A program is a string: ``"w1:2 f r1 w1:1"`` writes two sectors to zone 1, flushes, resets zone 1, writes one sector.
Every sector that is ever written has content of its own, so that a mixture of old and new shows.

    wZ:N write at wp    aZ:N append    oZ open    cZ close    fZ finish    rZ reset    R reset all    f flush
    kS:N write N sectors at sector S of the device (conventional)    xZ:C set condition C    P power cycle    Q close
    S save the states of all zones    L load those that were saved last
"""

import itertools
import random
import re
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation, after_power_cycle
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition
from zonefs_emu.persist.codec.header import SectionKind, plan_header
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import initialize
from zonefs_emu.testing.backings import CrashBacking, MemoryBacking
from zonefs_emu.units import SECTOR_BYTES, to_bytes

BOOT: Final = b"this host's boot"
NEXT_BOOT: Final = b"a later boot...."
#: Zone 0 is conventional, the last is a runt of four sectors.
GEOMETRY: Final = Geometry(
    size=44, zone_size=8, zone_capacity=6, conventional=((0, 1),), max_open_zones=2, max_active_zones=3
)
#: So many zones that the table has two blocks, which a power cut can tear apart; no limits.
WIDE_GEOMETRY: Final = Geometry(size=1200, zone_size=2, zone_capacity=2)
UUID_OF_TESTS: Final = UUID("00112233-4455-6677-8899-aabbccddeeff")
_MANAGEMENT: Final = {"o": Operation.OPEN, "c": Operation.CLOSE, "f": Operation.FINISH, "r": Operation.RESET}
_STEP: Final = re.compile(r"([a-zA-Z])(?:(\d+)(?::(\d+))?)?")

#: (condition, data) of each zone; of a conventional one all of it, of others up to wp.
Snapshot: TypeAlias = tuple[tuple[Condition, bytes], ...]


def fresh_memory(geometry: Geometry = GEOMETRY) -> bytearray:
    """The content of an image as it is created."""
    header = plan_header(geometry, uuid=UUID_OF_TESTS, label="tests")
    memory = bytearray(header.file_bytes)
    initialize(MemoryBacking(memory), header)
    return memory


def snapshot(image: Image, memory: bytearray) -> Snapshot:
    zones = []
    for zone_no, (cond, nr_written) in enumerate(zip(image.conds, image.wps, strict=True)):
        start = to_bytes(image.geometry.zone_start(zone_no))
        length = image.geometry.zone_len(zone_no) if image.geometry.is_conventional(zone_no) else nr_written
        zones.append((Condition(cond), bytes(memory[start : start + to_bytes(length)])))
    return tuple(zones)


def power_cycled(before: Snapshot) -> Snapshot:
    return tuple((after_power_cycle(cond, len(data)), data) for cond, data in before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The state *after* a command that began when the backing's log was *position* long."""

    position: int
    after: Snapshot


class World:
    """A device on *backing*, the programs it is told to run, and the history of its states."""

    def __init__(self, backing: MemoryBacking, boot_id: bytes = BOOT) -> None:
        self.backing = backing
        self.image = Image.load(backing, backing.length, boot_id)
        self.device = ZonedDevice(self.image)
        self.port = self.device.port("test", VIRTIO)
        self._numbers = itertools.count(1)
        self.statuses: list[Status] = []
        self.saved = self.device.save_zones()
        self.open_position = self.position
        self.history = [Moment(position=0, after=self.snapshot())]
        #: (position of the log when it was complete, index in history of what it covers).
        self.flushes: list[tuple[int, int]] = [(0, 0)]
        self.closing_position: int | None = None

    def snapshot(self) -> Snapshot:
        return snapshot(self.image, self.backing.memory)

    @property
    def position(self) -> int:
        return self.backing.position if isinstance(self.backing, CrashBacking) else 0

    def new_data(self, nr_sectors: int) -> bytes:
        """Sectors that were never written before."""
        return b"".join(next(self._numbers).to_bytes(8, "big") * (SECTOR_BYTES // 8) for _ in range(nr_sectors))

    def run(self, program: str, *, must_succeed: bool = True) -> list[Status]:
        statuses = [self.step(word) for word in program.split()]
        assert not must_succeed or not any(statuses), (program, statuses)
        return statuses

    def step(self, word: str) -> Status:
        position = self.position
        covered = len(self.history) - 1
        # What may be found if the command is interrupted is what it would have led to; so it is entered in the history
        # with the position of its beginning, once it is known.
        status = self._execute(word)
        if word == "f" and len(self.history) - 1 > covered:
            pass  # a flush during which others did something: what it led to is none of the states
        elif not self.image.is_closed:
            self.history.append(Moment(position=position, after=self.snapshot()))
        if word in ("f", "P", "Q") and not status:
            # P flushes after its change as well, so that it covers the change.
            self.flushes.append((self.position, covered if word == "f" else len(self.history) - 1))
        self.statuses.append(status)
        return status

    def _execute(self, word: str) -> Status:
        match = _STEP.fullmatch(word)
        assert match, word
        verb, first, second = match[1], int(match[2] or 0), int(match[3] or 0)
        start = first * self.image.geometry.zone_size
        match verb:
            case "w":
                sector = start + self.image.wps[first]
                return self.port.write(sector, second, [self.new_data(second)])
            case "a":
                return self.port.append(start, second, [self.new_data(second)])[0]
            case "k":
                return self.port.write(first, second, [self.new_data(second)])
            case "x":
                return self.port.set_cond(first, Condition(second))
            case "R":
                return self.port.manage_all(Operation.RESET)
            case "P":
                self.device.power_cycle()
            case "S":
                self.saved = self.device.save_zones()
            case "L":
                self.device.load_zones(self.saved)
            case "Q":
                self.closing_position = self.position
                self.device.close()
            case "f" if match[2] is None:
                return self.port.flush()
            case _:
                return self.port.manage(_MANAGEMENT[verb], start)
        return Status.OK

    # -- what is allowed after a power cut --------------------------------------------------------------------

    def allowed(self, position: int) -> list[Snapshot]:
        """States that may be found if power goes after *position* events: from the last completed flush on."""
        first = max(index for done, index in self.flushes if done <= position)
        return [moment.after for moment in self.history[first:] if moment.position <= position]

    def check_power_cut(self, position: int, found: Snapshot, *, was_clean: bool) -> None:
        """Assert that *found* keeps the promise for a power cut after *position* events."""
        allowed = self.allowed(position)
        geometry = self.image.geometry
        sequential = list(geometry.sequential_zones())
        cycled = [power_cycled(state) for state in allowed]
        candidates = [[state[zone_no] for zone_no in sequential] for state in cycled]
        if was_clean:
            # Stopped in order: no process used the device when power went, and conditions last across clean stops.
            is_closing = self.closing_position is not None and position >= self.closing_position
            assert is_closing or position <= self.open_position
            candidates += [[state[zone_no] for zone_no in sequential] for state in allowed]
        assert [found[zone_no] for zone_no in sequential] in candidates, (position, found, allowed)
        for zone_no in set(range(geometry.nr_zones)) - set(sequential):
            for at in range(0, len(found[zone_no][1]), SECTOR_BYTES):
                sectors = [state[zone_no][1][at : at + SECTOR_BYTES] for state in allowed]
                assert found[zone_no][1][at : at + SECTOR_BYTES] in sectors, (position, zone_no, at)
            assert found[zone_no][0] in {state[zone_no][0] for state in allowed}
        conds = [cond for cond, _ in found]
        assert sum(cond in OPEN_CONDITIONS for cond in conds) <= (geometry.max_open_zones or len(conds))
        assert sum(cond in ACTIVE_CONDITIONS for cond in conds) <= (geometry.max_active_zones or len(conds))


def scribble(memory: bytearray, rng: random.Random, geometry: Geometry) -> None:
    """Put noise where nothing may be relied upon after a power cut: the live table and the log of refusals."""
    header = plan_header(geometry, uuid=UUID_OF_TESTS)
    for kind in (SectionKind.LIVE, SectionKind.REFUSALS):
        section = header.section(kind)
        memory[section.offset : section.offset + 4096] = rng.randbytes(4096)
