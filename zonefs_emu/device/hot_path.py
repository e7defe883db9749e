"""The parts of other objects that reads and writes use, with one look-up each.

A 4 KiB request spends a few microseconds in Python, and chains of attributes would be a good part of that. A part
cannot become stale: its owner declares it ``Final``, uses the same object as long as the device exists, and changes
only its content. Parts that do change are in :class:`ImageAccess`.
"""

import threading
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zonefs_emu.device.holds import Hold
from zonefs_emu.device.image_access import ImageAccess
from zonefs_emu.model.machine import Changes
from zonefs_emu.model.transitions import Dialect, WriteRow
from zonefs_emu.persist.image import Image
from zonefs_emu.units import Sector


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPath:
    """The parts, which are the same for all ports of a device.

    *held*: :attr:`Holds.held`, empty unless a long command is under way. *old_extents*: :attr:`Image.old_extents`, not
    0 for a zone whose old data must not be overwritten yet. *rows* and *load_row*: the counters of zones.
    *begin_write*, *begin_append* and *commit_write* are the machine's, *publish* is the image's.
    """

    lock: threading.Lock
    access: ImageAccess
    image: Image
    held: Mapping[int, Hold]
    old_extents: "array[int]"
    rows: Mapping[int, list[int]]
    load_row: Callable[[int], list[int]]
    begin_write: Callable[[Sector, int, Dialect], int]
    begin_append: Callable[[Sector, int, Dialect], Sector]
    commit_write: Callable[[int, int, WriteRow], Changes | None]
    publish: Callable[[int], None]
    zone_size: Sector
