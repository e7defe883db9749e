"""What a request waits for in a drive, and what every model of one offers."""

from enum import StrEnum
from typing import Protocol

from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition


class Wait(StrEnum):
    """What a request waited for longest."""

    NOTHING = "nothing"
    CONTROLLER = "the controller busy"
    COMMANDS = "as many commands as the drive works on"
    BUFFER = "the write buffer full"
    MERGE = "partial blocks being merged"
    DIE = "a die busy"
    BUS = "the bus busy"
    MANAGEMENT = "another reset or finish in progress"
    HEAD = "the head to arrive"
    ACTUATOR = "the actuator busy"


class DriveTiming(Protocol):
    """A model of a drive: it computes when each request completes, in nanoseconds of the caller's clock.

    *waited_for* and *waited_ns*: what the last request waited for longest, and how long. *busy_ns*: how much work was
    begun, so that its growth over a time is the utilisation in that time.
    """

    waited_for: Wait
    waited_ns: int

    @property
    def busy_ns(self) -> int:
        """Nanoseconds of work that were begun."""
        ...

    def submit(
        self,
        operation: Operation,
        zone: int,
        sector: int,
        nr_sectors: int,
        arrival_ns: int,
        *,
        condition: int = Condition.IMP_OPEN,
        written_sectors: int = 0,
    ) -> int:
        """Return when the request completes. Requests are submitted in the order of their arrival."""
        ...


class Instant:
    """A drive that takes no time: the preset ``none``."""

    waited_for = Wait.NOTHING
    waited_ns = 0
    busy_ns = 0

    def submit(
        self,
        operation: Operation,  # noqa: ARG002  (as every model is asked)
        zone: int,  # noqa: ARG002
        sector: int,  # noqa: ARG002
        nr_sectors: int,  # noqa: ARG002
        arrival_ns: int,
        *,
        condition: int = Condition.IMP_OPEN,  # noqa: ARG002
        written_sectors: int = 0,  # noqa: ARG002
    ) -> int:
        """Return *arrival_ns*."""
        return arrival_ns
