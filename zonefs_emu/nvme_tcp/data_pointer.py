"""Where the data of a command are, as its SGL descriptor says: in its capsule, or in PDUs of their own.

Over fabrics a command has one descriptor and no PRP entries. A command that moves no data has none that counts.

Source: NVM Express Base Specification 2.0, "Common Command Format" (PSDT), "SGL Descriptors", "Generic Command Status
Values"; NVMe over TCP Transport Specification 1.0, "Command Data Buffers".
"""

from typing import Final

from zonefs_emu.nvme.answer import RefusedError
from zonefs_emu.nvme.command import Command
from zonefs_emu.nvme.rules import NvmeRule

#: In the flags of a command: fused operation and PSDT, and the value without the one and with an SGL descriptor.
_FLAGS_MASK: Final = 0xC3
_SGL: Final = 0x40
#: SGL Data Block whose address is an offset in the capsule's data; Transport SGL Data Block.
_IN_CAPSULE: Final = 0x01
_BY_TRANSPORT: Final = 0x5A
_TYPE_SHIFT: Final = 56


def require_sgl(command: Command) -> None:
    """Make sure that *command* has an SGL descriptor, and is no part of a fused operation.

    Fabrics commands have no such flags: that byte is reserved in them.

    Raises:
        RefusedError: NVME_FIELD, as the standard says for reserved and for unsupported values.
    """
    if command.flags & _FLAGS_MASK != _SGL:
        raise RefusedError(NvmeRule.NVME_FIELD, f"flags {command.flags:02X}h in place of 40h")


def data_in_capsule(command: Command, capsule: memoryview, nr_bytes: int) -> memoryview | None:
    """Return the *nr_bytes* (> 0) that *command* moves from the host if *capsule* has them; None: they come by R2T.

    Raises:
        RefusedError: NVME_SGL_TYPE if the descriptor says another place than that of the data; NVME_SGL_OFFSET if it
            begins behind the data of the capsule; NVME_DATA_LENGTH if it describes, or the capsule has, more or fewer
            bytes.
    """
    if command.prp2 >> _TYPE_SHIFT != _IN_CAPSULE:
        require_transport(command, capsule)
        if command.sgl_bytes != nr_bytes:
            raise length_error(command.sgl_bytes, nr_bytes)
        return None
    offset = command.prp1
    if offset and offset >= len(capsule):
        raise RefusedError(NvmeRule.NVME_SGL_OFFSET, f"offset {offset} in {len(capsule)} bytes of a capsule")
    if command.sgl_bytes != nr_bytes:
        raise length_error(command.sgl_bytes, nr_bytes)
    if len(capsule) - offset != nr_bytes:
        raise RefusedError(NvmeRule.NVME_DATA_LENGTH, f"{nr_bytes} bytes are moved, not those in the capsule")
    return capsule[offset:]


def only_in_capsule(command: Command, capsule: memoryview, nr_bytes: int) -> memoryview:
    """Return the *nr_bytes* of a fabrics *command* from the host, which its *capsule* must have.

    Raises:
        RefusedError: as :func:`data_in_capsule`; NVME_SGL_TYPE also if the data are to come by R2T.
    """
    data = data_in_capsule(command, capsule, nr_bytes)
    if data is None:
        raise RefusedError(NvmeRule.NVME_SGL_TYPE, "data of a fabrics command outside of its capsule")
    return data


def require_transport(command: Command, capsule: memoryview) -> None:
    """Make sure that *command* and *capsule*, which has no data then, leave the data to PDUs of their own.

    Raises:
        RefusedError: NVME_SGL_TYPE.
    """
    kind = command.prp2 >> _TYPE_SHIFT
    if kind != _BY_TRANSPORT or capsule:
        what = f"an SGL descriptor of type {kind:02X}h, with {len(capsule)} bytes in the capsule"
        raise RefusedError(NvmeRule.NVME_SGL_TYPE, what)


def length_error(sgl_bytes: int, nr_bytes: int) -> RefusedError:
    """Return the refusal of a command whose descriptor has *sgl_bytes* in place of *nr_bytes*."""
    return RefusedError(NvmeRule.NVME_DATA_LENGTH, f"{sgl_bytes} bytes are described, {nr_bytes} are moved")
