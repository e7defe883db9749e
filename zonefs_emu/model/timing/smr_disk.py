"""When a disk of shingled tracks completes a request: one actuator, one platter that turns, no reordering."""

from random import Random
from typing import Final

from zonefs_emu.model.timing.parameters import DiskParameters
from zonefs_emu.model.timing.waits import Wait
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_SHIFT

_MOVES_DATA: Final = frozenset({Operation.READ, Operation.WRITE, Operation.APPEND})


class DiskTiming:
    """The position of a disk's head and when it is free. Deterministic from *seed*.

    A request that follows on the last one and comes soon enough costs its transfer only. Any other costs a seek, the
    rest of a revolution, which is drawn evenly because the layout of a track is not known, and its transfer. An append
    goes to the write pointer of its zone, where the zone's last write ended.
    """

    def __init__(self, parameters: DiskParameters, *, size_sectors: int, seed: int = 0) -> None:
        self.parameters = parameters
        self._size_sectors = size_sectors
        self._random = Random(seed).random
        self._head_sector = 0
        self._free_ns = 0
        self.busy_ns = 0
        self.waited_for = Wait.NOTHING
        self.waited_ns = 0

    def submit(
        self,
        operation: Operation,
        zone: int,  # noqa: ARG002  (as every model is asked)
        sector: int,
        nr_sectors: int,
        arrival_ns: int,
        *,
        condition: int = Condition.IMP_OPEN,  # noqa: ARG002
        written_sectors: int = 0,
    ) -> int:
        """Return when the request completes, in nanoseconds of the clock of *arrival_ns*."""
        p = self.parameters
        start_ns = max(arrival_ns, self._free_ns)
        self.waited_ns, self.waited_for = start_ns - arrival_ns, Wait.ACTUATOR
        service_ns = p.command_ns
        if operation in _MOVES_DATA:
            if operation == Operation.APPEND:
                sector += written_sectors
            if sector != self._head_sector or start_ns - self._free_ns > p.streaming_ns:
                share = abs(sector - self._head_sector) / self._size_sectors
                position_ns = int(p.revolution_ns * self._random())
                if share:
                    position_ns += p.seek_ns + int(p.seek_stroke_ns * share**0.5)
                if position_ns > self.waited_ns:
                    self.waited_ns, self.waited_for = position_ns, Wait.HEAD
                service_ns += position_ns
            slowdown = 1 / (1 - (1 - p.inner_ratio) * sector / self._size_sectors)
            service_ns += int((nr_sectors << SECTOR_SHIFT) * p.media_byte_ns * slowdown)
            self._head_sector = sector + nr_sectors
        self.busy_ns += service_ns
        self._free_ns = start_ns + service_ns
        return self._free_ns
