"""The suites: where each comes from, which disks it is run on, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tools.conformance.blktests import run_blktests
from tools.conformance.commands import COMMANDS
from tools.conformance.devices import MOUNT, OURS, PEERS, SHAPES, ZNS, Shape
from tools.conformance.file_systems import FILE_SYSTEMS
from tools.conformance.fio import run_fio
from tools.conformance.iotest import run_iotest
from tools.conformance.libzbc import run_libzbc
from tools.conformance.mounted import run_mounted
from tools.conformance.programs import FIO, TOOLS, Programs
from tools.conformance.results import Outcome
from tools.conformance.setting import Setting
from tools.conformance.sources import Checkout, Package
from tools.conformance.zonefs_tools import run_zonefs_tools

_ALL: Final = frozenset((*OURS, *PEERS)) - {MOUNT}
_SCSI: Final = frozenset({"SCSI", "scsi_debug"})


def _has(name: str, shape: Shape) -> bool:
    """Return whether the disk *name* can have the shape."""
    return shape.fits_in_memory or name != "scsi_debug"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite of tests for zoned block devices."""

    name: str
    shapes: tuple[str, ...]
    """The names of the shapes of `tools.conformance.devices` that its disks have: it is run on each."""
    run: Callable[[Setting], tuple[Outcome, ...]]
    """The output of a suite is parsed by a separate function, so that tests can call it with text."""
    run_mounted: Callable[[Shape, Path, Path], tuple[Outcome, ...]] | None = None
    """How it is run on a mount of this machine, if it can be: the shape, its files, and a directory to work in."""
    newer_kernel: bool = False
    """Whether it needs the newer of the guest's kernels."""
    source: Package | Checkout | None = None
    """None: the suite runs programs of the guest."""
    programs: Programs | None = None
    """Those that the guest's kit lacks."""
    only: frozenset[str] = _ALL
    """The disks that it can be run on."""

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """The disks and the names of the shapes that it is run on, ours first."""
        names = [name for name in (*OURS, *PEERS) if name in self.only or (name == MOUNT and self.run_mounted)]
        return tuple((name, shape) for name in names for shape in self.shapes if _has(name, SHAPES[shape]))


_LIBZBC_BUILT: Final = ("test/zbc_test.sh", "test/programs/zbc_test_report_zones")
SUITES: Final[Mapping[str, Suite]] = MappingProxyType(
    {
        "fio": Suite(
            name="fio t/zbd/test-zbd-support",
            shapes=("small", "capacity"),
            run=run_fio,
            source=Package(name="fio", suite=FIO.suite, wanted="t/zbd/"),
            programs=FIO,
        ),
        "qemu": Suite(
            name="QEMU's iotest zoned",
            shapes=("large",),
            run=run_iotest,
            source=Package(name="qemu", suite="bookworm-backports", wanted="tests/qemu-iotests/tests/zoned"),
        ),
        "blktests": Suite(
            name="blktests zbd/001-006",
            shapes=("small",),
            run=run_blktests,
            source=Checkout(name="blktests", built=("check", "src/zbdioctl")),
            programs=TOOLS,
        ),
        "libzbc": Suite(
            name="libzbc test/zbc_test.sh",
            shapes=("limited",),
            run=run_libzbc,
            source=Checkout(name="libzbc", built=_LIBZBC_BUILT),
            programs=TOOLS,
            only=_SCSI,
        ),
        "zonefs": Suite(
            name="zonefs-tools tests",
            shapes=("limited", "capacity"),
            run=run_zonefs_tools,
            run_mounted=run_mounted,
            source=Checkout(name="zonefs-tools", built=("src/mkzonefs", "tests/tools/zio")),
        ),
        **{
            key: Suite(name=name, shapes=("medium",), run=FILE_SYSTEMS[name], only=only)
            for key, name, only in (
                ("btrfs", "btrfs", _ALL),
                ("f2fs", "f2fs", _ALL - ZNS),
                ("f2fs2", "f2fs on two devices", _ALL),
                ("dm-zoned", "ext4 on dm-zoned", _ALL),
            )
        },
        "xfs": Suite(name="XFS zoned", shapes=("xfs",), run=FILE_SYSTEMS["XFS zoned"], newer_kernel=True, only=_ALL),
        "sg3": Suite(name="sg3-utils", shapes=("limited",), run=COMMANDS["sg3-utils"], only=_SCSI),
        "zbd": Suite(name="libzbd's zbd", shapes=("limited",), run=COMMANDS["libzbd's zbd"], programs=TOOLS),
        "nvme": Suite(name="nvme-cli", shapes=("limited",), run=COMMANDS["nvme-cli"], only=ZNS),
    }
)
