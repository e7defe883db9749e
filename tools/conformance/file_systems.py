"""File systems on a zoned disk, with their authors' tools, and with xfstests' fsstress and fsx where these are given.

Each step of a file system needs the earlier ones: a step that makes or mounts it is needed by all later steps.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome
from tools.conformance.setting import Setting
from tools.conformance.steps import run_step

_MOUNT_POINT: Final = "/mnt/tested"
#: Some hundred files of many sizes, which every guest has.
_TREE: Final = Path(json.__file__).parents[1]
_PARTS: Final = ("json", "email", "asyncio", "unittest")
_NO_PROGRAM: Final = "no compiled checkout of {} is given"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """How a file system is made, mounted and checked; scripts in which $node is the disk.

    $regular is a disk without zones, and $tested is what is mounted: it holds what *make* has put into it.
    """

    kind: str
    """As mount has it."""
    make: str
    check: str
    """After unmounting."""
    more: tuple[tuple[str, str], ...] = ()
    """Further steps on the mounted file system: names and scripts."""
    tool: tuple[str, str] | None = None
    """A checkout and a program in it that *make* calls as $tool."""
    newer: tuple[tuple[str, str], ...] = ()
    """Programs of the newer suite that the scripts call: names of functions, and where each program is."""


_BTRFS: Final = FileSystem(
    kind="btrfs",
    make="mkfs.btrfs -q -f -O zoned -m single -d single $node; tested=$node",
    check="btrfs check $node",
    more=(
        ("scrub", f"btrfs scrub start -B {_MOUNT_POINT}"),
        ("balance", f"btrfs balance start --full-balance {_MOUNT_POINT}"),
    ),
)
_F2FS: Final = FileSystem(kind="f2fs", make="mkfs.f2fs -f -m $node; tested=$node", check="fsck.f2fs --dry-run $tested")
_F2FS_ON_TWO: Final = FileSystem(
    kind="f2fs",
    make="mkfs.f2fs -f -m -c $node $regular; tested=$regular",
    check="fsck.f2fs --dry-run $tested",
)
_XFS: Final = FileSystem(
    kind="xfs",
    # Its metadata lie in conventional zones: without any, a disk without zones holds them.
    make="""[ $conventional = yes ] && disks=$node real_time= || disks=$regular real_time=,rtdev=$node
    mkfs_xfs -q -f -r zoned=1$real_time $disks
    tested="${real_time:+-o${real_time#,} }$disks"
    """,
    check="""[ $conventional = yes ] && repaired=$node || repaired="-r $node $regular"
    xfs_repair -n $repaired""",
    newer=(("mkfs_xfs", "usr/sbin/mkfs.xfs"), ("xfs_repair", "usr/sbin/xfs_repair")),
)
_DM_ZONED: Final = FileSystem(
    kind="ext4",
    make="""modprobe dm_zoned
    echo mq-deadline >/sys/block/${node#/dev/}/queue/scheduler
    # Its metadata lie in conventional zones: without any, a disk without zones holds them.
    [ $conventional = yes ] && disks=$node || disks="$regular $node"
    $tool --format $disks
    $tool --start $disks
    # Its name below /dev/mapper would come from udev, which the guest does not have.
    tested=/dev/$(ls /sys/block | grep '^dm-')
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 $tested""",
    check="e2fsck -f -n $tested",
    tool=("dm-zoned-tools", "src/dmzadm"),
)


def _steps(system: FileSystem, setting: Setting) -> Iterator[tuple[str, str]]:
    """Yield names and scripts; one that is empty cannot be run here, for want of a program of xfstests."""
    mount = f"mount -t {system.kind} $tested {_MOUNT_POINT}"
    again = f"sync; umount {_MOUNT_POINT}; {mount}"
    each = f"for part in {' '.join(_PARTS)}; do"
    copied, tree = f"{_MOUNT_POINT}/tree", shlex.quote(str(_TREE))
    yield "mkfs", f"modprobe {system.kind}; mkdir -p {_MOUNT_POINT}\n{system.make}\n{mount}\necho $tested >/run/tested"
    copy = f"mkdir {copied}; {each} cp -a {tree}/$part {copied}; done"
    yield "tree", f"{copy}\n{again}\n{each} diff -r {tree}/$part {copied}/$part; done"
    fio = f"fio --name=overwrites --directory={_MOUNT_POINT} --size=32M --rw=randwrite --bs=16k --loops=3 --randseed=7"
    yield "overwrites", f"{fio} --verify=crc32c --verify_fatal=1 --fsync=64 >&2"
    for name, arguments in (("fsstress", "-d {}/stress -n 250 -p 4 -s 7"), ("fsx", "-q -N 2000 -S 7 {}/fsx")):
        program = setting.checkout("xfstests", f"ltp/{name}")
        yield name, "" if program is None else f"{program} {arguments.format(_MOUNT_POINT)}\n{again}"
    yield from system.more
    yield "check", f"umount {_MOUNT_POINT}\n{system.check}"


def run_file_system(system: FileSystem, setting: Setting) -> tuple[Outcome, ...]:
    """Run the steps one after the other."""
    device = setting.device
    tool = None if system.tool is None else setting.checkout(*system.tool)
    if system.tool is not None and tool is None:
        return (Outcome(test="mkfs", verdict="skipped", said=_NO_PROGRAM.format(system.tool[0])),)
    # f2fs wants sectors of one size on all its disks.
    loop = "losetup --sector-size 4096 /dev/loop0 /run/regular"
    setting.sh(f"modprobe loop; truncate -s 512M /run/regular; {loop}", timeout=60)
    conventional = "yes" if device.conventional else "no"
    head = (
        f"node={device.node} regular=/dev/loop0 conventional={conventional} tool={tool or ''}\n"
        "tested=$(cat /run/tested 2>/dev/null || true)\n"
    )
    if setting.newer is not None:
        for name, path in system.newer:
            head += f'{name}() {{ {shlex.join(setting.newer.newer_program(path))} "$@"; }}\n'
    found: list[Outcome] = []
    for name, script in _steps(system, setting):
        if not script:
            found.append(Outcome(test=name, verdict="skipped", said=_NO_PROGRAM.format("xfstests")))
        elif found and found[0].verdict == "failed":
            found.append(Outcome(test=name, verdict="failed", said="without the file system"))
        else:
            found.append(run_step(setting, name, head + script))
    return tuple(found)


#: By the name of the suite.
FILE_SYSTEMS: Final[Mapping[str, Callable[[Setting], tuple[Outcome, ...]]]] = MappingProxyType(
    {
        name: partial(run_file_system, system)
        for name, system in {
            "btrfs": _BTRFS,
            "f2fs": _F2FS,
            "f2fs on two devices": _F2FS_ON_TWO,
            "ext4 on dm-zoned": _DM_ZONED,
            "XFS zoned": _XFS,
        }.items()
    }
)
