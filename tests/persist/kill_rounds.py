"""Run as a program: IMAGE ROUNDS SEED. Kills a process under load again and again, and looks at what it left.

Every round forks a child that opens the image, carries out commands that follow from the seed and acknowledges each
through a pipe, until it is killed with SIGKILL at an instant drawn at random, be it while it opens the image. The
parent then knows which commands were answered; what it finds must be their outcome, or that and the one under way.
A program of its own because it forks: with one thread, and nothing of the test runner's in the child.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import CommandError, PoisonedError, Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.machine import ZoneMachine
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.image import Image
from zonefs_emu.units import SECTOR_BYTES, to_bytes

GEOMETRY: Final = Geometry(
    size=16 * 64 - 20, zone_size=64, zone_capacity=48, conventional=((0, 2),), max_open_zones=3, max_active_zones=5
)
_FLUSH: Final = "flush"
_SET_COND: Final = "set_cond"
_CONDITIONS: Final = (Condition.EMPTY, Condition.CLOSED, Condition.FULL, Condition.READONLY, Condition.OFFLINE)
_WRITES: Final = (Operation.WRITE, Operation.WRITE, Operation.WRITE, Operation.APPEND)
_MANAGEMENT: Final = (Operation.OPEN, Operation.CLOSE, Operation.FINISH, Operation.RESET, Operation.RESET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Command *number* of the endless program; the number is the content of the sectors it writes."""

    number: int
    what: Operation | str
    zone_no: int
    nr_sectors: int = 0
    offset: int = 0
    cond: Condition = Condition.EMPTY

    @property
    def data(self) -> bytes:
        return self.number.to_bytes(8, "big") * (SECTOR_BYTES // 8 * self.nr_sectors)


def command(seed: int, number: int) -> Command:
    rng = random.Random(seed << 32 | number)
    zone_no = rng.randrange(GEOMETRY.nr_zones)
    dice = rng.random()
    if dice < 0.6:
        return Command(
            number=number, what=rng.choice(_WRITES), zone_no=zone_no, nr_sectors=rng.randrange(1, 17),
            offset=rng.randrange(48),
        )  # fmt: skip
    if dice < 0.9:
        return Command(number=number, what=rng.choice(_MANAGEMENT), zone_no=zone_no)
    if dice < 0.95:
        return Command(number=number, what=_SET_COND, zone_no=zone_no, cond=rng.choice(_CONDITIONS))
    return Command(number=number, what=_FLUSH, zone_no=zone_no)


# -- the child ------------------------------------------------------------------------------------------------------


def work(path: Path, seed: int, first: int, pipe: int, *, with_flusher: bool) -> None:
    device = ZonedDevice.open(path)
    port = device.port("kill", VIRTIO)
    os.write(pipe, b"o")
    if with_flusher:
        threading.Thread(target=flush_forever, args=(port,), daemon=True).start()
    number = first
    while True:
        os.write(pipe, bytes((carry_out(port, command(seed, number)),)))
        number += 1


def flush_forever(port: Port) -> None:
    while not port.flush():
        pass


def carry_out(port: Port, todo: Command) -> Status:
    start = todo.zone_no * GEOMETRY.zone_size
    match todo.what:
        case Operation.WRITE:
            is_conventional = GEOMETRY.is_conventional(todo.zone_no)
            sector = start + (todo.offset if is_conventional else port.zone(todo.zone_no).wp - start)
            return port.write(sector, todo.nr_sectors, [todo.data])
        case Operation.APPEND:
            return port.append(start, todo.nr_sectors, [todo.data])[0]
        case Operation():
            return port.manage(todo.what, start)
        case "set_cond":
            return port.set_cond(todo.zone_no, todo.cond)
        case _:
            return port.flush()


# -- the parent -------------------------------------------------------------------------------------------------------


class Reference:
    """What the device should hold: a machine without an image, and the content of each zone."""

    def __init__(self, conds: bytearray, wps: "array[int]", contents: list[bytes]) -> None:
        self.machine = ZoneMachine(GEOMETRY, bytearray(conds), array("Q", wps))
        self.contents = list(contents)

    def state(self, zone_no: int) -> tuple[int, int, bytes]:
        return self.machine.conds[zone_no], self.machine.wps[zone_no], self.contents[zone_no]

    def apply(self, todo: Command) -> Status:
        machine = self.machine
        zone_no = todo.zone_no
        start = zone_no * GEOMETRY.zone_size
        try:
            match todo.what:
                case Operation.WRITE | Operation.APPEND:
                    is_conventional = GEOMETRY.is_conventional(zone_no)
                    offset = todo.offset if is_conventional else machine.wps[zone_no]
                    row = VIRTIO.on_write
                    if todo.what is Operation.APPEND:
                        row = VIRTIO.on_append
                        machine.begin_append(start, todo.nr_sectors, VIRTIO)
                    else:
                        machine.begin_write(start + offset, todo.nr_sectors, VIRTIO)
                    machine.commit_write(zone_no, todo.nr_sectors, row)
                    self._store(zone_no, to_bytes(offset), todo.data)
                case Operation():
                    machine.manage(todo.what, start, 1, VIRTIO)
                case "set_cond":
                    machine.set_cond(zone_no, todo.cond)
                case _:
                    pass
        except CommandError as error:
            return error.status
        if not machine.wps[zone_no] and not GEOMETRY.is_conventional(zone_no):
            self.contents[zone_no] = b""
        return Status.OK

    def _store(self, zone_no: int, at: int, data: bytes) -> None:
        content = self.contents[zone_no]
        self.contents[zone_no] = content[:at] + data + content[at + len(data) :]


def found_in(path: Path) -> Reference:
    """What a new process finds, without changing it."""
    image = Image.open(path, readonly=True)
    contents = []
    for zone_no in range(GEOMETRY.nr_zones):
        is_conventional = GEOMETRY.is_conventional(zone_no)
        length = GEOMETRY.zone_len(zone_no) if is_conventional else image.wps[zone_no]
        contents.append(image.backing.pread(to_bytes(length), to_bytes(GEOMETRY.zone_start(zone_no))))
    reference = Reference(image.conds, image.wps, contents)
    image.close()
    return reference


def check_zone(found: Reference, before: Reference, after: Reference, zone_no: int) -> None:
    states = (before.state(zone_no), after.state(zone_no))
    if not GEOMETRY.is_conventional(zone_no):
        assert found.state(zone_no) in states, (zone_no, found.state(zone_no)[:2], [state[:2] for state in states])
        return
    cond, _, content = found.state(zone_no)
    assert cond in {state[0] for state in states}
    for at in range(0, len(content), SECTOR_BYTES):
        assert content[at : at + SECTOR_BYTES] in [state[2][at : at + SECTOR_BYTES] for state in states], (zone_no, at)


def one_round(path: Path, seed: int, first: int, reference: Reference, rng: random.Random) -> tuple[int, Reference]:
    """Return (number of commands that were answered, what was found); the next round begins behind that under way."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            work(path, seed, first, writing, with_flusher=rng.random() < 0.3)
        finally:
            os._exit(1)
    os.close(writing)
    answers = os.read(reading, 1) if rng.random() < 0.8 else b""
    time.sleep(rng.random() * 0.004)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the worker ended by itself"
    while more := os.read(reading, 1 << 16):
        answers += more
    os.close(reading)
    answers = answers[1:]
    for number, answer in enumerate(answers, first):
        todo = command(seed, number)
        assert answer == reference.apply(todo), (todo, answer)
    # The order of implicit closes is not in the arrays, so the very machine goes on and a copy stays behind.
    before = Reference(reference.machine.conds, reference.machine.wps, reference.contents)
    reference.apply(command(seed, first + len(answers)))
    found = found_in(path)
    for zone_no in range(GEOMETRY.nr_zones):
        check_zone(found, before, reference, zone_no)
    return len(answers), found


def main() -> None:
    path, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ZonedDevice.create(path, GEOMETRY, uuid=UUID(int=seed))
    rng = random.Random(seed)
    reference = found_in(path)
    number = answered = 0
    for _ in range(rounds):
        count, reference = one_round(path, seed, number, reference, rng)
        answered += count
        number += count + 1
    try:
        ZonedDevice.open(path).close()
    except PoisonedError:
        sys.exit("the image cannot be stopped in order")
    json.dump({"rounds": rounds, "answered": answered}, sys.stdout)


if __name__ == "__main__":
    main()
