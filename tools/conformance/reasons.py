"""The known reasons of failures."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_FIO: Final = "fio t/zbd/test-zbd-support"
_SG3: Final = "sg3-utils"
_IOTEST: Final = "QEMU's iotest zoned"
_NVME_CLI: Final = "nvme-cli"
_ZONEFS: Final = "zonefs-tools tests"
#: By suite and test, or by suite, test and device, which comes first.
REASONS: Final[Mapping[tuple[str, ...], str]] = MappingProxyType(
    {
        (_FIO, "54"): "with fio 3.33, whose verification ends with an error or a double free; on SCSI fio 3.41 passes",
        (_SG3, "sg_logs", "SCSI"): "LOG SENSE is not implemented, as the page about SCSI says",
        (
            _SG3,
            "sg_write_same",
            "SCSI",
        ): "WRITE SAME is not implemented, as the page about SCSI says: a reset frees the space of a zone",
        (_NVME_CLI, "zns changed-zone-list", "nvme-ns"): "QEMU's drive keeps no list of changed zones",
        (_ZONEFS, "0400", "mount"): "swapon(2) needs the block map of the file, which FUSE does not have",
        (_IOTEST, "zoned"): "the test closes an open zone without data and expects it to be empty, as in ZBC and "
        "virtio; in ZNS it is closed, which the drive reports, and only a reset makes it empty",
    }
)


def reason(suite: str, test: str, device: str) -> str:
    """Return why *test* fails on *device*; empty if it was not looked into."""
    return REASONS.get((suite, test, device)) or REASONS.get((suite, test)) or ""
