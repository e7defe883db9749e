"""Adapters of the conformance suite for NVMe drives, and the device's own adapter in the ZNS dialect.

    expected = run(shape, ZnsAdapter, directory)
    assert not differences(expected, run(shape, NvmeAdapter, other_directory), NvmeAdapter.name)

NVMe has no conventional zones, and its dialect leaves some zones in other conditions than virtio does. So it has shapes
of its own (:data:`zonefs_emu.testing.scenarios.ZNS_SHAPES`), and is compared with a port of its own dialect.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import ZNS, Operation
from zonefs_emu.model.zone import Condition, ZoneType
from zonefs_emu.nvme.command import SendAction
from zonefs_emu.testing.conformance import Answer, DeviceAdapter, Place, View
from zonefs_emu.testing.nvme_initiator import AdminCommands, IoCommands, NvmeHost
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.testing.zoned_device import DeviceUnderTest

_S = Status
#: Source: ZNS 1.1, "Status Values"; NVM Command Set 1.0, "Media and Data Integrity Errors".
_MEANINGS: Final[Mapping[int, frozenset[Status]]] = MappingProxyType(
    {
        0x000: frozenset((_S.OK,)),
        0x002: frozenset((_S.NOT_ZONE_START, _S.APPEND_LIMIT)),
        0x080: frozenset((_S.OUT_OF_RANGE,)),
        0x1B8: frozenset((_S.ZONE_BOUNDARY, _S.READ_BOUNDARY)),
        0x1B9: frozenset((_S.ZONE_FULL,)),
        0x1BA: frozenset((_S.ZONE_READONLY,)),
        0x1BB: frozenset((_S.ZONE_OFFLINE,)),
        0x1BC: frozenset((_S.UNALIGNED_WP,)),
        0x1BD: frozenset((_S.ACTIVE_RESOURCE,)),
        0x1BE: frozenset((_S.OPEN_RESOURCE,)),
        0x1BF: frozenset((_S.BAD_TRANSITION,)),
    }
)
_ACTIONS: Final[Mapping[Operation, SendAction]] = MappingProxyType(
    {
        Operation.OPEN: SendAction.OPEN,
        Operation.CLOSE: SendAction.CLOSE,
        Operation.FINISH: SendAction.FINISH,
        Operation.RESET: SendAction.RESET,
    }
)
_HIDDEN_WP: Final = (1 << 64) - 1
_NSID: Final = 1


class ZnsAdapter(DeviceAdapter):
    """The device's own port, in the ZNS dialect."""

    name = "zns"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`zonefs_emu.testing.conformance.Adapter`."""
        super().__init__(device, stack)
        self._port = device.device.port("test", ZNS)


class NvmeAdapter:
    """NVMe over TCP: commands of one I/O queue to a daemon that serves."""

    name = "nvme"

    def __init__(self, device: DeviceUnderTest, stack: ExitStack) -> None:
        """See :class:`zonefs_emu.testing.conformance.Adapter`."""
        self._geometry = device.geometry
        self._unit = device.geometry.block_sectors
        self._host, self._queue = self._connect(device, stack)

    def _connect(self, device: DeviceUnderTest, stack: ExitStack) -> tuple[AdminCommands, IoCommands]:
        host = stack.enter_context(NvmeHost(*device.serve_nvme(), keep_alive_ms=0))
        return host, host.queue(1)

    def do(self, place: Place) -> Answer:
        """See :class:`zonefs_emu.testing.conformance.Adapter`."""
        queue, step = self._queue, place.step
        slba, block_bytes = place.sector // self._unit, self._geometry.block_size_bytes
        match step.operation:
            case Operation.READ:
                reply = queue.read(_NSID, slba, place.nr_sectors // self._unit, block_bytes)
            case Operation.WRITE:
                reply = queue.write(_NSID, slba, place.data, block_bytes)
            case Operation.APPEND:
                reply = queue.append(_NSID, slba, place.data, block_bytes)
            case operation:
                reply = queue.manage(_NSID, _ACTIONS[operation], slba, select_all=step.everywhere)
        landed = reply.result * self._unit if step.operation is Operation.APPEND else -1
        return Answer(_MEANINGS.get(reply.status, frozenset()), f"status {reply.status:03X}h", reply.data, landed)

    def views(self) -> list[View]:
        """See :class:`zonefs_emu.testing.conformance.Adapter`."""
        unit = self._unit
        found = self._host.zones(self._queue, _NSID, self._geometry.nr_zones)
        return [
            View(
                start * unit // self._geometry.zone_size, ZoneType.SWR, capacity * unit, Condition(cond),
                None if wp == _HIDDEN_WP else (wp - start) * unit,
            )
            for cond, capacity, start, wp in found
        ]  # fmt: skip


class NvmePciAdapter(NvmeAdapter):
    """The same commands in the queues of a PCI function, at a vfio-user socket that a daemon serves."""

    def _connect(self, device: DeviceUnderTest, stack: ExitStack) -> tuple[AdminCommands, IoCommands]:
        guest = NvmeGuest(stack.enter_context(VfioClient(device.serve("vfio-user"))))
        return guest, guest.queue(1)
