"""A key-value store for zoned devices, small enough to be read at one sitting. And it has a bug.

Records are appended to the open zone: a header block (checksum, lengths, a running number), then key and value,
padded to whole blocks. The newest record of a key counts. When few zones are left, the zone with the fewest living
records is compacted: those are appended to another zone, and the old one is reset.

The bug is in :meth:`LogStore.compact` when *careful* is off, and every test that does not cut the power passes with it.
test_log_store.py beside this file finds it.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition, Zone, ZoneType
from zonefs_emu.units import SECTOR_BYTES, Sector

_HEADER: Final = struct.Struct("<IIIQ")  # CRC of all that follows, length of key, length of value, running number
#: Zones that are kept free: compaction needs one, and a power cut in the middle of it can cost one.
_RESERVE: Final = 2


class StoreFullError(Exception):
    """No zone can be emptied any more."""


class LogStore:
    """A dictionary of bytes on the sequential zones of *port*."""

    def __init__(self, port: Port, *, careful: bool = True) -> None:
        """Read back what is there."""
        self._port = port
        self._careful = careful
        self._block = port.geometry.block_size_bytes
        zones = port.report(0, port.geometry.nr_zones)
        self._zones = [zone.zone_no for zone in zones if zone.type is ZoneType.SWR]
        self._index: dict[bytes, tuple[int, Sector, int]] = {}  # key -> (running number, sector, number of sectors)
        self._number = 0
        for zone_no in self._zones:
            for number, key, sector, nr_sectors in self._records(zone_no):
                self._number = max(self._number, number)
                if number > self._index.get(key, (0, 0, 0))[0]:
                    self._index[key] = (number, sector, nr_sectors)

    def __iter__(self) -> Iterator[bytes]:
        """Yield all keys."""
        return iter(self._index)

    def get(self, key: bytes) -> bytes:
        """Return the value of *key*; KeyError if there is none."""
        _, sector, nr_sectors = self._index[key]
        record = self._read(sector, nr_sectors)
        _, key_length, value_length, _ = _HEADER.unpack_from(record)
        start = _HEADER.size + key_length
        return record[start : start + value_length]

    def put(self, key: bytes, value: bytes) -> None:
        """Set *key* to *value*; it is safe after the next :meth:`sync`."""
        for _ in self._zones:
            if len(self._free()) >= _RESERVE or self._open_zone(self._nr_sectors(key, value)) is not None:
                break
            self.compact()
        self._append(key, value)

    def sync(self) -> None:
        """Make everything put so far safe."""
        _succeed(self._port.flush())

    def compact(self) -> None:
        """Empty the zone with the fewest living records."""
        living: dict[int, list[bytes]] = {no: [] for no in self._zones if self._zone(no).cond is not Condition.EMPTY}
        for key, (_, sector, _) in self._index.items():
            living[self._port.geometry.zone_no(sector)].append(key)
        victim = min(living, key=lambda zone_no: len(living[zone_no]))
        for key in living[victim]:
            self._append(key, self.get(key), but=victim)
        if self._careful:
            # Without this, the power may go when the reset has reached the medium and the copies have not.
            self.sync()
        _succeed(self._port.manage(Operation.RESET, self._port.geometry.zone_start(victim)))

    # -- zones ------------------------------------------------------------------------------------------------

    def _zone(self, zone_no: int) -> Zone:
        return self._port.zone(zone_no)

    def _free(self) -> list[int]:
        return [zone_no for zone_no in self._zones if self._zone(zone_no).cond is Condition.EMPTY]

    def _open_zone(self, nr_sectors: int, but: int = -1) -> int | None:
        """Return a zone that is begun and has room, if any."""
        for zone_no in self._zones:
            zone = self._zone(zone_no)
            begun = zone.cond in (Condition.IMP_OPEN, Condition.CLOSED)
            if begun and zone_no != but and zone.start + zone.capacity - zone.wp >= nr_sectors:
                return zone_no
        return None

    def _nr_sectors(self, key: bytes, value: bytes) -> int:
        return -(-(_HEADER.size + len(key) + len(value)) // self._block) * self._block // SECTOR_BYTES

    def _append(self, key: bytes, value: bytes, but: int = -1) -> None:
        nr_sectors = self._nr_sectors(key, value)
        zone_no = self._open_zone(nr_sectors, but)
        if zone_no is None:
            if not (free := self._free()):
                raise StoreFullError
            zone_no = free[0]
        self._number += 1
        body = _HEADER.pack(0, len(key), len(value), self._number)[4:] + key + value
        record = (zlib.crc32(body).to_bytes(4, "little") + body).ljust(nr_sectors * SECTOR_BYTES, b"\0")
        status, sector = self._port.append(self._port.geometry.zone_start(zone_no), nr_sectors, (record,))
        _succeed(status)
        self._index[key] = (self._number, sector, nr_sectors)

    def _read(self, sector: Sector, nr_sectors: int) -> bytes:
        data = bytearray(nr_sectors * SECTOR_BYTES)
        _succeed(self._port.read(sector, nr_sectors, (data,)))
        return bytes(data)

    def _records(self, zone_no: int) -> list[tuple[int, bytes, Sector, int]]:
        """Return (running number, key, sector, number of sectors) of the whole records in a zone."""
        zone = self._zone(zone_no)
        found = []
        sector = zone.start
        end = zone.start + zone.capacity if zone.cond is Condition.FULL else zone.wp
        data = self._read(zone.start, end - zone.start) if end > zone.start else b""
        while sector < end:
            record = data[(sector - zone.start) * SECTOR_BYTES :]
            crc, key_length, value_length, number = _HEADER.unpack_from(record)
            length = _HEADER.size + key_length + value_length
            if length > len(record) or zlib.crc32(record[4:length]) != crc:
                # The record was torn by a power cut. A record behind it would not be found, so the zone takes no more.
                _succeed(self._port.manage(Operation.FINISH, zone.start))
                break
            nr_sectors = -(-length // self._block) * self._block // SECTOR_BYTES
            found.append((number, record[_HEADER.size : _HEADER.size + key_length], sector, nr_sectors))
            sector += nr_sectors
        return found


def _succeed(status: Status) -> None:
    if status:
        raise OSError(f"the device answered {status.name}")
