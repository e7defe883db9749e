"""The rules of the NVMe drive: what its controllers refuse before they ask the port."""

from enum import unique

from zonefs_emu.device.rules import Rule


@unique
class NvmeRule(Rule):
    """The rules of the NVMe drive, which answers with a status code type and a status code."""

    NVME_OPCODE = (
        600,
        "a command must be one that the controller has, as the log page of supported commands lists them",
        "NVMe Base 2.0, Invalid Command Opcode",
    )
    NVME_FIELD = (
        601,
        "the fields of a command must ask for nothing that the controller does not have",
        "NVMe Base 2.0, Invalid Field in Command",
    )
    NVME_NAMESPACE = (
        602,
        "a command must name a namespace of this controller",
        "NVMe Base 2.0, Invalid Namespace or Format",
    )
    NVME_TRANSFER = (
        603,
        "one command moves at most as much data as Identify Controller says (MDTS)",
        "NVMe Base 2.0, Maximum Data Transfer Size",
    )
    NVME_LOG_PAGE = (
        604,
        "a log page must be one that the controller has",
        "NVMe Base 2.0, Get Log Page, Invalid Log Page",
    )
    NVME_EVENTS = (
        605,
        "a host may have so many Asynchronous Event Requests under way as Identify Controller says (AERL)",
        "NVMe Base 2.0, Asynchronous Event Request Limit Exceeded",
    )
    NVME_COMMAND_SETS = (
        606,
        "I/O command set combination 0, which has the NVM and the Zoned Namespace Command Set, is the only one",
        "NVMe Base 2.0, I/O Command Set Combination Rejected",
    )
    NVME_READ_ONLY = (
        607,
        "the image is open read-only, so the namespace is write protected",
        "NVMe Base 2.0, Namespace is Write Protected",
    )
    NVME_COMPARE = (
        608,
        "the bytes to be compared are not those in the namespace",
        "NVM Command Set 1.0, Compare Failure",
    )
