"""What was found out about failures."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_FIO: Final = "fio t/zbd/test-zbd-support"
_IOTEST: Final = "QEMU's iotest zoned"
#: By suite and test, or by suite, test and device, which comes first.
REASONS: Final[Mapping[tuple[str, ...], str]] = MappingProxyType(
    {
        (_FIO, "32"): "without a limit of open zones a SCSI disk says FFFFFFFFh (ZBC, VPD page B6h), which the script "
        "passes to fio as a number, and fio takes at most 4096",
        (
            _FIO,
            "54",
            "NVMe",
        ): "fio ends with an error after some dozen requests, as on null_blk; the reason was not found",
        (_FIO, "54", "SCSI"): "fio 3.33 itself aborts in its verification, with a double free",
        (
            _FIO,
            "54",
            "null_blk",
        ): "a read of fio's verification ends with an error; the disk is a peer's, and the reason was not looked for",
        (_IOTEST, "zoned"): "the test closes an open zone without data and expects it to be empty, as in ZBC and "
        "virtio; in ZNS it is closed, which the drive reports, and only a reset makes it empty",
    }
)


def reason(suite: str, test: str, device: str) -> str:
    """Return why *test* fails on *device*; empty if it was not looked into."""
    return REASONS.get((suite, test, device)) or REASONS.get((suite, test)) or ""
