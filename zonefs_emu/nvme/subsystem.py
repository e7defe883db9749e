"""A subsystem: the namespaces under one name, and the controllers of its hosts.

Thread safe: connections of different hosts live in threads of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Final
from uuid import UUID

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.namespace import Namespace, require_zns

#: The well-known name of the discovery service.
DISCOVERY_NQN: Final = "nqn.2014-08.org.nvmexpress.discovery"
#: Controllers are numbered from 1; FFF0h and above are reserved.
_CNTLID_MAX: Final = 0xFFEF
_NQN_BYTES_MAX: Final = 223
_SERIAL_BYTES: Final = 20


def nqn_of(uuid: UUID) -> str:
    """Return the name of the subsystem of the image *uuid*. Source: Base Specification, "NVMe Qualified Names"."""
    return f"nqn.2014-08.org.nvmexpress:uuid:{uuid}"


def require_nqn(nqn: str) -> None:
    """Make sure that *nqn* is an NVMe Qualified Name.

    Raises:
        UsageError: it is not; with the form of such a name.
    """
    if not nqn.startswith("nqn.") or not nqn.isprintable() or " " in nqn or not 4 < len(nqn.encode()) <= _NQN_BYTES_MAX:
        message = (
            f"{nqn!r} is not an NVMe Qualified Name, which begins with nqn. and has at most {_NQN_BYTES_MAX} bytes"
        )
        raise UsageError(message)


def require_serial(serial: str) -> None:
    """Make sure that *serial* is a serial number of NVMe. Source: Base Specification, "Identify Controller", SN.

    Raises:
        UsageError: it is not; with the form of one.
    """
    if not (serial.isascii() and serial.isprintable() and 0 < len(serial) <= _SERIAL_BYTES):
        message = (
            f"{serial!r} is not a serial number of NVMe, which has at most {_SERIAL_BYTES} printable ASCII characters"
        )
        raise UsageError(message)


class Subsystem:
    """One subsystem. *devices* become namespaces 1, 2, … in their order."""

    def __init__(self, devices: Sequence[ZonedDevice], *, nqn: str = "", serial: str = "") -> None:
        """Use the name and serial number of the first device unless *nqn* and *serial* are given.

        Raises:
            UsageError: NVMe cannot express the geometry of a device, or *nqn* is no name or *serial* no serial number.
        """
        for device in devices:
            require_zns(device.geometry)
        first = devices[0]
        self.nqn = nqn or nqn_of(first.uuid)
        require_nqn(self.nqn)
        self.serial = serial or first.serial
        require_serial(self.serial)
        self.devices: Mapping[int, ZonedDevice] = MappingProxyType(dict(enumerate(devices, 1)))
        #: Time in nanoseconds, for timestamps.
        self.clock_ns = first.clock_ns
        self._cntlids: dict[int, object] = {}
        self._io_cntlids: set[int] = set()
        self._last_cntlid = 0

    def namespaces(self) -> dict[int, Namespace]:
        """Return the namespaces for the use of one queue."""
        return {nsid: Namespace(device, nsid) for nsid, device in self.devices.items()}

    def io_cntlids(self) -> list[int]:
        """Return the numbers of the controllers that have namespaces: all that there are, but those for discovery."""
        return list(self._io_cntlids)

    def take_cntlid(self, wanted: int = 0, *, is_discovery: bool = False) -> int | None:
        """Return a number for a new controller; None if all are in use.

        It is *wanted*, the former number of a controller that continues, if that is free. Otherwise it is the next free
        number after the one that was taken last, so that a number is not used again soon.
        """
        mine = object()
        for cntlid in chain((wanted,) if wanted else (), self._candidates()):
            # Atomic for other threads: if two want the same number, one gets it.
            if self._cntlids.setdefault(cntlid, mine) is mine:
                self._last_cntlid = cntlid
                if not is_discovery:
                    self._io_cntlids.add(cntlid)
                return cntlid
        return None

    def _candidates(self) -> Iterator[int]:
        yield from range(self._last_cntlid + 1, _CNTLID_MAX + 1)
        yield from range(1, self._last_cntlid + 1)

    def give_back_cntlid(self, cntlid: int) -> None:
        """Note that the controller *cntlid* has ended."""
        self._io_cntlids.discard(cntlid)
        self._cntlids.pop(cntlid, None)
