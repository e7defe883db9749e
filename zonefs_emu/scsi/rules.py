"""The rules of the SCSI disk, and those of the virtio SCSI host in front of it. The port knows neither."""

from enum import unique

from zonefs_emu.device.rules import Rule


@unique
class ScsiRule(Rule):
    """The rules of the disk. A command that breaks one is answered with sense data."""

    SCSI_GAP = (
        300,
        "between a zone's capacity and the next zone lies a gap zone, which can only be read, as zeros",
        "ZBC-2 ATTEMPT TO ACCESS GAP ZONE",
    )
    SCSI_READ_TYPES = (
        301,
        "one read stays in zones of one type: conventional or sequential",
        "ZBC-2 READ BOUNDARY VIOLATION",
    )
    SCSI_WRITE_PROTECTED = (
        302,
        "the image is open read-only, so the disk is write protected",
        "SBC-3 WRITE PROTECTED",
    )
    SCSI_TRANSFER_LENGTH = (
        303,
        "one command moves at most 32 MiB",
        "SBC-3 Block Limits VPD page, MAXIMUM TRANSFER LENGTH",
    )
    SCSI_OPERATION_CODE = (
        304,
        "a command must be one that the disk has, as REPORT SUPPORTED OPERATION CODES lists them",
        "SPC-4 INVALID COMMAND OPERATION CODE",
    )
    SCSI_CDB_FIELD = (
        305,
        "a CDB must be whole, and its fields must ask for nothing that the disk does not have",
        "SPC-4 INVALID FIELD IN CDB",
    )
    SCSI_PARAMETER_FIELD = (
        306,
        "a parameter list must ask for nothing that the disk does not have or cannot change",
        "SPC-4 INVALID FIELD IN PARAMETER LIST",
    )
    SCSI_PARAMETER_LENGTH = (
        307,
        "a parameter list must hold its header, its descriptors and each of its pages in full",
        "SPC-4 PARAMETER LIST LENGTH ERROR",
    )
    SCSI_LUN = (
        308,
        "the target has a disk at LUN 0 and the REPORT LUNS well-known logical unit, and no other",
        "SPC-4 LOGICAL UNIT NOT SUPPORTED",
    )
    SCSI_MISCOMPARE = (
        309,
        "the bytes to be verified are not those on the disk",
        "SBC-3 VERIFY, BYTCHK; MISCOMPARE DURING VERIFY OPERATION",
    )


@unique
class HostRule(Rule):
    """The rules of the virtio SCSI host. A request that breaks one is answered with a response code of virtio-scsi."""

    VSCSI_OVERRUN = (
        320,
        "the buffers of a request must have room for all that its CDB transfers",
        "virtio 1.4 SCSI host, VIRTIO_SCSI_S_OVERRUN",
    )
    VSCSI_TARGET = (
        321,
        "the host has one target, which is number 0",
        "virtio 1.4 SCSI host, VIRTIO_SCSI_S_BAD_TARGET",
    )
    VSCSI_TASK = (
        322,
        "a task management function must be one that the target has, and CLEAR ACA is none of them",
        "SAM-5 FUNCTION REJECTED; virtio 1.4 SCSI host, VIRTIO_SCSI_S_FUNCTION_REJECTED",
    )
    VSCSI_TASK_LUN = (
        323,
        "tasks are managed at LUN 0 and at the REPORT LUNS well-known logical unit",
        "SAM-5 INCORRECT LOGICAL UNIT NUMBER; virtio 1.4 SCSI host, VIRTIO_SCSI_S_INCORRECT_LUN",
    )
    VSCSI_OVERSIZED = (
        324,
        "the buffers of one request hold at most 1 GiB",
        "virtio 1.4 SCSI host, VIRTIO_SCSI_S_FAILURE; docs/vhost-user.md",
    )
