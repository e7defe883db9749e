"""Which commands wait for a worker; test_pci_drive.py and test_queue_walker.py have what each does."""

from pathlib import Path

import pytest

from tests.nvme.conftest import BLOCK, new_device
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.intent_log import Intents
from zonefs_emu.inflight.holding_record import HoldingRecord
from zonefs_emu.inflight.ring_record import record_bytes
from zonefs_emu.model.transitions import Operation
from zonefs_emu.nvme.answer import SUCCESS, RefusedError
from zonefs_emu.nvme.command import ALL_NAMESPACES, Command, IoOpcode
from zonefs_emu.nvme.namespace import refuse_command
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.vfio_user.io_commands import IoCommands
from zonefs_emu.virtio.memory import GuestMemory, Region

FUA = 1 << 30


def command_of(opcode: int, *, nsid: int = 1, flags: int = 0, cdw12: int = 0) -> Command:
    return Command(opcode, flags, 1, nsid, 0, 0, 0, 0, 0, cdw12, 0, 0, 0)


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([Region(0, BLOCK, 0, memoryview(bytearray(b"x" * BLOCK)))])


def begun(device: ZonedDevice) -> tuple[IoCommands, HoldingRecord]:
    commands = IoCommands([device])
    namespaces = Subsystem([device]).namespaces()
    for namespace in namespaces.values():
        namespace.port.intents = Intents(lambda _: False)
    commands.begin(namespaces)
    ring = HoldingRecord(memoryview(bytearray(record_bytes(4))), 4, packed=False)
    ring.start_split(0)
    return commands, ring


def test_what_waits(tmp_path: Path, memory: GuestMemory) -> None:
    with new_device(tmp_path) as device:
        commands, ring = begun(device)
        quick = [command_of(IoOpcode.WRITE), command_of(IoOpcode.READ)]
        slow = [command_of(IoOpcode.FLUSH), command_of(IoOpcode.WRITE, cdw12=FUA)]
        all_of_them = command_of(IoOpcode.FLUSH, nsid=ALL_NAMESPACES)
        found = [commands.begin_command(ring, each, memory, None) for each in (*quick, *slow, all_of_them)]
        assert [may_wait for _, may_wait in found] == [False, False, True, True, True]
        assert [found[at][0]() for at in (0, 1, 2, 4)] == [SUCCESS] * 4
        device.inject(
            Fault(operations=frozenset({Operation.READ}), effect=Effect.DELAY, delay_min_ns=1, delay_max_ns=1)
        )
        assert [commands.begin_command(ring, each, memory, None)[1] for each in quick] == [True, True]


@pytest.mark.parametrize("changed", [{"flags": 0x40}, {"flags": 1}, {"nsid": 2}, {"nsid": ALL_NAMESPACES}])
def test_what_is_refused(tmp_path: Path, memory: GuestMemory, changed: dict[str, int]) -> None:
    with new_device(tmp_path) as device:
        commands, ring = begun(device)
        command = command_of(IoOpcode.READ, **changed)
        with pytest.raises(RefusedError) as caught:
            commands.begin_command(ring, command, memory, None)
        assert refuse_command(commands.namespaces, command, caught.value).status
