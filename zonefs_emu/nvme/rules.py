"""The rules of the NVMe drive, by which its controllers refuse commands before the port sees them."""

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
    NVME_PRP = (
        609,
        "the data of a command begins at a multiple of 4 bytes, and every further page at a multiple of 4096",
        "NVMe Base 2.0, PRP Offset Invalid",
    )
    NVME_MEMORY = (
        610,
        "the data of a command, and the list of its pages, must lie in memory of the host",
        "NVMe Base 2.0, Data Transfer Error",
    )
    NVME_QUEUE_ID = (
        611,
        "a queue is created under a free number that Number of Queues has granted, and deleted under its own",
        "NVMe Base 2.0, Invalid Queue Identifier",
    )
    NVME_QUEUE_SIZE = (
        612,
        "a queue has at least 2 entries and at most as many as CAP.MQES says",
        "NVMe Base 2.0, Invalid Queue Size",
    )
    NVME_COMPLETION_QUEUE = (
        613,
        "a submission queue must name a completion queue that exists",
        "NVMe Base 2.0, Completion Queue Invalid",
    )
    NVME_VECTOR = (
        614,
        "a completion queue must name an interrupt vector that the function has",
        "NVMe Base 2.0, Invalid Interrupt Vector",
    )
    NVME_COPY = (
        616,
        "a copy has at most as many source ranges and blocks as Identify Namespace says (MSRC, MSSRL, MCL)",
        "NVM Command Set 1.0, Copy command, Command Size Limit Exceeded",
    )
    NVME_QUEUE_DELETION = (
        615,
        "a completion queue is deleted after all submission queues that use it",
        "NVMe Base 2.0, Invalid Queue Deletion",
    )
    NVME_DATA_LENGTH = (
        617,
        "the SGL descriptor of a command describes as many bytes as the command moves",
        "NVMe Base 2.0, Data SGL Length Invalid",
    )
    NVME_SGL_TYPE = (
        618,
        "over fabrics, data in a capsule have an SGL descriptor of type 01h, all other data one of type 5Ah",
        "NVMe Base 2.0, SGL Descriptor Type Invalid",
    )
    NVME_SGL_OFFSET = (
        619,
        "the offset in an SGL descriptor is one in the data of the capsule",
        "NVMe Base 2.0, SGL Offset Invalid",
    )
    NVME_FEATURE_SAVE = (
        620,
        "features are not saved, so a command that sets one must not ask for that (SV)",
        "NVMe Base 2.0, Feature Identifier Not Saveable",
    )
    NVME_SEQUENCE = (
        621,
        "a queue is connected once, proves its host's name in order, and takes commands while the controller is ready",
        "NVMe Base 2.0, Command Sequence Error",
    )
    NVME_AUTHENTICATION = (
        622,
        "a host with a key proves its name on each queue before it sends other commands",
        "NVMe Base 2.0, Authentication Required",
    )
    NVME_DIGEST = (
        623,
        "the digest of the data of a command must be that of the data",
        "NVMe Base 2.0, Transient Transport Error",
    )
    NVME_CONNECT_FORMAT = (
        624,
        "the record format of a Connect command is 0",
        "NVMe Base 2.0, Connect Incompatible Format",
    )
    NVME_CONNECT_BUSY = (
        625,
        "a subsystem has as many controllers as there are numbers for them",
        "NVMe Base 2.0, Controller Busy",
    )
    NVME_CONNECT_FIELD = (
        626,
        "a Connect command names this subsystem, a controller of its host, and a free queue of a possible size",
        "NVMe Base 2.0, Connect Invalid Parameters",
    )
    NVME_CONNECT_HOST = (
        627,
        "a host that is allowed to connect does so, under the name that it has proved",
        "NVMe Base 2.0, Connect Invalid Host",
    )
