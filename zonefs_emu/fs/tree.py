"""Which zones make which file, and the inode numbers of all files and directories.

Pure. The tree does not change while the file system is mounted.

    /                 st_ino = nr_zones
    ├── cnv/          st_ino = nr_zones + 1; exists only if there is a conventional zone besides zone 0
    │   └── 0, 1, …   st_ino = number of the (first) zone
    └── seq/          st_ino = nr_zones + 2, whether or not cnv/ exists
        └── 0, 1, …

Zone 0 holds the super block and is never a file. Files are numbered in each directory by ascending zone start.

A FUSE *node id* is a second number, by which the kernel names an inode in requests. The root has 1 by definition.
pyfuse3 sets st_ino and the node id together, so they are the same here, except for the root and the file of zone 1.

Source: Linux fs/zonefs/super.c, zonefs_fill_super, zonefs_init_zgroup, zonefs_lookup.
"""

import re
from bisect import bisect_right
from typing import Final

from zonefs_emu.model.geometry import Geometry

ROOT_NODE_ID: Final = 1
#: The node id of the file of zone 1, because 1 is that of the root.
ZONE_1_NODE_ID: Final = 1 << 40 | 1
#: Source: Linux fs/zonefs/zonefs.h, ZONEFS_NAME_MAX.
NAME_MAX: Final = 16

_FILE_NAME: Final = re.compile(rb"0|[1-9][0-9]*")


class Group:
    """One of the two directories. It maps file numbers to zones and back, in O(log(number of runs))."""

    __slots__ = ("_first_files", "_runs", "aggregated", "name", "nr_files", "sequential")

    def __init__(self, name: str, runs: list[tuple[int, int]], *, sequential: bool, aggregated: bool = False) -> None:
        """Take *runs* of zones (first zone_no, count), ascending; if *aggregated*, each run is one file."""
        self.name = name
        self.sequential = sequential
        self.aggregated = aggregated
        self._runs = runs
        self._first_files: list[int] = []
        self.nr_files = 0
        for _, count in runs:
            self._first_files.append(self.nr_files)
            self.nr_files += 1 if aggregated else count

    def measure(self, geometry: Geometry) -> tuple[int, int]:
        """Return the capacity of all zones together and that of the largest zone, in sectors."""
        total = largest = 0
        for first, count in self._runs:
            # Zones of one type have the same capacity, except the last zone of the device.
            capacity, last = (geometry.zone_cap(zone_no) for zone_no in (first, first + count - 1))
            total += capacity * (count - 1) + last
            largest = max(largest, capacity)
        return total, largest

    def zones(self, file_no: int) -> tuple[int, int]:
        """Return (first zone_no, number of zones) of file *file_no*, which must exist."""
        index = bisect_right(self._first_files, file_no) - 1
        first, count = self._runs[index]
        if self.aggregated:
            return first, count
        return first + file_no - self._first_files[index], 1

    def file_no(self, zone_no: int) -> int | None:
        """Return the number of the file to which *zone_no* belongs; None if that file is not in this directory."""
        index = bisect_right(self._runs, (zone_no, 1 << 62)) - 1
        if index < 0:
            return None
        first, count = self._runs[index]
        if zone_no >= first + count:
            return None
        return self._first_files[index] + (0 if self.aggregated else zone_no - first)

    def find(self, name: bytes) -> int | None:
        """Return the number of the file called *name*; None if there is no such file. 00, 0x0 and -1 are no names."""
        if not _FILE_NAME.fullmatch(name):
            return None
        file_no = int(name)
        return file_no if file_no < self.nr_files else None


class Tree:
    """The directories of a device. *groups* are those that exist, cnv before seq."""

    __slots__ = ("cnv", "groups", "nr_zones", "seq")

    def __init__(self, geometry: Geometry, *, aggregated: bool) -> None:
        self.nr_zones = geometry.nr_zones
        conventional = _without_zone_0(list(geometry.conventional))
        sequential = _without_zone_0(_complement(conventional_runs=list(geometry.conventional), end=self.nr_zones))
        self.cnv = Group("cnv", conventional, sequential=False, aggregated=aggregated)
        self.seq = Group("seq", sequential, sequential=True)
        self.groups = tuple(group for group in (self.cnv, self.seq) if group.nr_files)

    def group_of(self, zone_no: int) -> Group:
        """Return the directory whose file holds zone *zone_no*, which is not 0."""
        return self.seq if self.seq.file_no(zone_no) is not None else self.cnv

    def find(self, name: bytes) -> Group | None:
        """Return the directory called *name*; None if it does not exist."""
        return next((group for group in self.groups if group.name.encode() == name), None)

    def group_inode(self, group: Group) -> int:
        """Return st_ino, which is also the node id, of a directory."""
        return self.nr_zones + (2 if group.sequential else 1)

    def group_of_inode(self, inode: int) -> Group | None:
        """Return the directory with this st_ino or node id; None if it is not that of a directory."""
        if inode == self.nr_zones + 1:
            return self.cnv
        return self.seq if inode == self.nr_zones + 2 else None


def node_id(zone_no: int) -> int:
    """Return the node id of the file that begins with zone *zone_no*."""
    return ZONE_1_NODE_ID if zone_no == 1 else zone_no


def zone_no_of(node: int) -> int:
    """Return the number of the first zone of the file with node id *node*."""
    return 1 if node == ZONE_1_NODE_ID else node


def _complement(conventional_runs: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    runs = []
    start = 0
    for first, count in conventional_runs:
        if first > start:
            runs.append((start, first - start))
        start = first + count
    if end > start:
        runs.append((start, end - start))
    return runs


def _without_zone_0(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if runs and runs[0][0] == 0:
        _, count = runs[0]
        return [(1, count - 1), *runs[1:]] if count > 1 else runs[1:]
    return runs
