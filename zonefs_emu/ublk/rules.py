"""The rules of the ublk front-end, by which it refuses requests itself instead of the port."""

from enum import unique

from zonefs_emu.device.rules import Rule


@unique
class UblkRule(Rule):
    """The rules of the ublk front-end."""

    UBLK_OPERATION = (
        500,
        "the kernel asks for reads, writes, flushes and zone operations, as the device was set up",
        "Linux include/uapi/linux/ublk_cmd.h, UBLK_IO_OP_*",
    )
    UBLK_DATA = (
        501,
        "the kernel did not give or take the data of the request",
        "Linux Documentation/block/ublk.rst, UBLK_F_USER_COPY",
    )
