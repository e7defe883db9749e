"""The intent in a slot, as two words that are the same in every record.

::

    word  0  sector; of an append: where it lands
          1  nr_sectors | operation << 32 | condition before << 40

Each word is stored at once, so a kill between two stores never leaves half a word. What says that a slot counts is
stored last, and differs from record to record. Encoding is one expression, which both records have in their own code:
a call for each request would cost as much as the stores.
"""

from typing import Final, NamedTuple

from zonefs_emu.units import Sector

WORD_BYTES: Final = 8
OPERATION_SHIFT: Final = 32
COND_SHIFT: Final = 40
_NR_SECTORS_MASK: Final = (1 << OPERATION_SHIFT) - 1
_OPERATION_MASK: Final = 0xFF


class SlotIntent(NamedTuple):
    """The values in a slot, which the peer may have changed. *cond*: the zone's condition before."""

    operation: int
    sector: Sector
    nr_sectors: int
    cond: int


def decode(sector: int, what: int) -> SlotIntent:
    """Return the values in the words *sector* and *what*."""
    return SlotIntent(what >> OPERATION_SHIFT & _OPERATION_MASK, sector, what & _NR_SECTORS_MASK, what >> COND_SHIFT)
