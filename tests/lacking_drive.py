"""What Linux looks at in an NVMe drive with zones, and drives that lack one of these things each.

A row says how a host finds what it needs, how a drive is made that lacks it, and what becomes of that drive.

    python -m tests.lacking_drive IMAGE

serves IMAGE over TCP as one drive for each row, at the ports from 4430 on. It prints a line when it serves, and one for
each Identify and Get Log Page that a host sends.
"""

import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.nvme.answer import Answer
from zonefs_emu.nvme.command import AdminOpcode, Command, IoOpcode
from zonefs_emu.nvme.controller import Controller, Register
from zonefs_emu.nvme.identify import Cns, CommandSet
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.nvme_tcp.server import NvmeTcpServer, listen
from zonefs_emu.testing.nvme_initiator import AdminCommands

FIRST_PORT: Final = 4430
#: What the program prints when it serves.
READY: Final = "ready"


class Fate(Enum):
    """What becomes of a drive that lacks something."""

    NO_CONNECTION = auto()
    NO_DISK = auto()
    #: There is a disk, but none with zones.
    NO_ZONES = auto()
    READ_ONLY = auto()
    WORKS = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A structure of Identify, or a log page. *command_set*: None where it is the same for all."""

    opcode: AdminOpcode
    number: int
    command_set: int | None = None

    def is_asked_by(self, command: Command) -> bool:
        """Whether *command* asks for it."""
        asked = command.cdw11 if self.opcode == AdminOpcode.IDENTIFY else command.cdw14
        return (command.opcode, command.cdw10 & 0xFF) == (self.opcode, self.number) and (
            self.command_set in {None, asked >> 24}
        )

    def ask(self, host: AdminCommands) -> bytes | None:
        """Return what the drive answers; None if it refuses."""
        command_set = self.command_set or 0
        if self.opcode == AdminOpcode.IDENTIFY:
            nsid = 0 if self.number in {Cns.CONTROLLER, Cns.SET_CONTROLLER} else 1
            reply = host.identify(self.number, nsid=nsid, command_set=command_set)
        else:
            cdws = (self.number | 1023 << 16, 0, 0, 0, command_set << 24)
            reply = host.ask(self.opcode, nsid=0xFFFFFFFF, cdws=cdws, room=4096)
        return None if reply.status else reply.data


def _identify(number: Cns, command_set: CommandSet | None = None) -> Page:
    return Page(opcode=AdminOpcode.IDENTIFY, number=number, command_set=command_set)


def _log(number: Log, command_set: CommandSet | None = None) -> Page:
    return Page(opcode=AdminOpcode.GET_LOG_PAGE, number=number, command_set=command_set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Something that Linux looks at.

    A drive has it if *holds* is true of *page*, or if CAP has the bits *cap*. A drive lacks it if *page* has *changed*
    in place of the bytes at *offset*, or is refused; or if CAP lacks the bits. *fate* and *says*: what Linux 6.12 makes
    of such a drive, and what it says then. *fate_of_linux_7*: where it makes something else of it.
    """

    name: str
    fate: Fate
    says: str = ""
    cap: int = 0
    page: Page | None = None
    holds: Callable[[bytes], bool] = bool
    offset: int = 0
    changed: bytes | None = None
    only_tcp: bool = False
    fate_of_linux_7: Fate | None = None

    def is_met(self, host: AdminCommands, cap: int) -> bool:
        """Whether the drive of *host*, whose register CAP is *cap*, has it."""
        found = None if self.page is None else self.page.ask(host)
        return cap & self.cap == self.cap if self.page is None else found is not None and self.holds(found)

    def altered(self, command: Command, answer: Answer) -> Answer:
        """Return what a drive that lacks it answers to *command*, in place of *answer*."""
        if self.page is None or not self.page.is_asked_by(command):
            return answer
        if self.changed is None:
            return Answer(NvmeStatus.INVALID_FIELD)
        data = bytearray(answer.data)
        data[self.offset : self.offset + len(self.changed)] = self.changed
        return answer._replace(data=bytes(data))


def _has(layout: str, offset: int, bits: int) -> Callable[[bytes], bool]:
    """Return whether the number at *offset* has all *bits*."""
    return lambda data: bool(struct.unpack_from(f"<{layout}", data, offset)[0] & bits == bits)


def _has_command_set(identifiers: bytes) -> bool:
    """Whether the *identifiers* of a namespace, {type, length, two zeros, value} each, say that it has zones."""
    at = 0
    while identifiers[at + 1]:
        if identifiers[at] == 4:
            return identifiers[at + 4] == CommandSet.ZNS
        at += 4 + identifiers[at + 1]
    return False


def _has_even_zones(identified: bytes) -> bool:
    (size,) = struct.unpack_from("<Q", identified, 2816)
    return bool(size and not size & (size - 1))


_APPEND_EFFECTS: Final = 1024 + 4 * IoOpcode.ZONE_APPEND
_CONTROLLER: Final = _identify(Cns.CONTROLLER)
_ZONED: Final = _identify(Cns.SET_NAMESPACE, CommandSet.ZNS)
#: The images have whole zones of 256 or 1024 blocks.
ROWS: Final = (
    Row(name="CAP.CSS: I/O command sets", fate=Fate.NO_DISK, says="ommand set not reported for nsid: 1", cap=1 << 43),
    Row(name="CAP.CRMS: ready with media", fate=Fate.WORKS, cap=1 << 59),
    Row(name="CNS 03", fate=Fate.NO_DISK, says="Identify Descriptors failed", page=_identify(Cns.DESCRIPTORS)),
    Row(
        name="CNS 03: command set", fate=Fate.NO_DISK, says="ommand set not reported for nsid:1",
        page=_identify(Cns.DESCRIPTORS), holds=_has_command_set, offset=40, changed=bytes(5),
    ),
    Row(
        name="CNS 08: NSTAT, ready", fate=Fate.WORKS,
        page=_identify(Cns.INDEPENDENT_NAMESPACE), holds=_has("B", 14, 1), offset=14, changed=bytes(1),
        fate_of_linux_7=Fate.NO_DISK,
    ),
    Row(name="CNS 08", fate=Fate.WORKS, page=_identify(Cns.INDEPENDENT_NAMESPACE)),
    Row(name="log 05", fate=Fate.NO_DISK, page=_log(Log.EFFECTS)),
    Row(
        name="log 05: Zone Append", fate=Fate.READ_ONLY, says="Zone Append not supported",
        page=_log(Log.EFFECTS, CommandSet.ZNS), holds=_has("I", _APPEND_EFFECTS, 1),
        offset=_APPEND_EFFECTS, changed=bytes(4),
    ),
    Row(name="CNS 05 of zones", fate=Fate.NO_ZONES, says="nvalid non power of two zone size", page=_ZONED),
    Row(
        name="CNS 06 of zones", fate=Fate.NO_ZONES, says="nvalid non power of two zone size",
        page=_identify(Cns.SET_CONTROLLER, CommandSet.ZNS),
    ),
    Row(
        name="CNS 05 of zones: size, a power of two", fate=Fate.NO_DISK, says="invalid zone size",
        page=_ZONED, holds=_has_even_zones, offset=2816, changed=(1000).to_bytes(8, "little"),
    ),
    # Linux 7 misses a zone, and the disk cannot be used.
    Row(
        name="CNS 00: whole zones", fate=Fate.WORKS,
        page=_identify(Cns.NAMESPACE), holds=lambda data: data[0] == 0, changed=(16 * 1024 + 100).to_bytes(8, "little"),
    ),
    Row(
        name="CNS 01: KAS", fate=Fate.NO_CONNECTION, says="keep-alive support is mandatory",
        page=_CONTROLLER, holds=_has("H", 320, 1), offset=320, changed=bytes(2), only_tcp=True,
    ),
    Row(
        name="CNS 01: SGLS", fate=Fate.NO_CONNECTION, says="Mandatory sgls are not supported",
        page=_CONTROLLER, holds=_has("I", 536, 1 << 20 | 1), offset=536, changed=bytes(4), only_tcp=True,
    ),
    Row(
        name="CNS 01: MAXCMD", fate=Fate.WORKS, says="maximum outstanding commands is 0",
        page=_CONTROLLER, holds=_has("H", 514, 128), offset=514, changed=bytes(2), only_tcp=True,
    ),
    Row(
        name="CNS 01: IOCCSZ, data in capsules", fate=Fate.WORKS,
        page=_CONTROLLER, holds=lambda data: struct.unpack_from("<I", data, 1792)[0] > 4, offset=1792,
        changed=(4).to_bytes(4, "little"), only_tcp=True,
    ),
    Row(
        name="CNS 01: VWC", fate=Fate.WORKS,
        page=_CONTROLLER, holds=_has("B", 525, 1), offset=525, changed=bytes(1),
    ),
    Row(
        name="CNS 01: LPA", fate=Fate.WORKS,
        page=_CONTROLLER, holds=_has("B", 261, 0b110), offset=261, changed=bytes(1),
    ),
    Row(name="CNS 06 of NVM", fate=Fate.WORKS, page=_identify(Cns.SET_CONTROLLER, CommandSet.NVM)),
    Row(name="CNS 05 of NVM", fate=Fate.WORKS, page=_identify(Cns.SET_NAMESPACE, CommandSet.NVM)),
    Row(name="log 02, SMART", fate=Fate.WORKS, says="ailed to read smart log", page=_log(Log.SMART)),
)  # fmt: skip


def nqn_of(row: Row) -> str:
    """Return the name of the drive that lacks what *row* says."""
    return f"nqn.2014-08.org.example:lacking-{ROWS.index(row)}"


@contextmanager
def lacking(rows: Mapping[str, Row], asked: Callable[[Command], None] = lambda _: None) -> Iterator[None]:
    """Have each subsystem that is in *rows*, by name, lack something; *asked* is called with each admin command."""
    execute, read_register = Controller.execute, Controller.read_register

    def altered_execute(self: Controller, command: Command, data: memoryview | bytes = b"") -> Answer | None:
        answer = execute(self, command, data)
        asked(command)
        row = rows.get(self.subsystem.nqn)
        return answer if answer is None or row is None else row.altered(command, answer)

    def altered_register(self: Controller, offset: int) -> int | None:
        value = read_register(self, offset)
        row = rows.get(self.subsystem.nqn)
        return value & ~row.cap if value is not None and row is not None and offset == Register.CAP else value

    Controller.execute, Controller.read_register = altered_execute, altered_register  # type: ignore[method-assign]
    try:
        yield
    finally:
        Controller.execute, Controller.read_register = execute, read_register  # type: ignore[method-assign]


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _asked(command: Command) -> None:
    if command.opcode in {AdminOpcode.IDENTIFY, AdminOpcode.GET_LOG_PAGE}:
        _say(f"asked {command.opcode:02X}h {command.cdw10 & 0xFF:02X}h")


def _main(image: Path) -> None:
    device = ZonedDevice.open(image)
    with lacking({nqn_of(row): row for row in ROWS}, _asked):
        servers = [
            NvmeTcpServer(Subsystem([device], nqn=nqn_of(row)), listen("127.0.0.1", port), device.unforeseen)
            for port, row in enumerate(ROWS, FIRST_PORT)
        ]
        threads = [threading.Thread(target=server.run) for server in servers]
        for thread in threads:
            thread.start()
        _say(READY)
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
