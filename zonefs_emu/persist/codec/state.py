"""The state block: whether the image is in use, and so which copy of the zone states counts."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from zonefs_emu.errors import CorruptImageError
from zonefs_emu.persist.codec.block import BLOCK_BYTES, check_crc, seal

STATE_MAGIC: Final = b"ZBDSTATE"
OWNER_BYTES: Final = 128

_STATE: Final = struct.Struct("<8sIIQ16sQQI4x128s")


class Mode(IntEnum):
    """Which copy of the zone states is current."""

    CLEAN = 0  #: stopped in order: table and journal are complete, conditions included
    LIVE = 1  #: in use: the live table, if this host has not rebooted since; else table and journal


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The small mutable block: whether the image is in use, since which boot, and by which process.

    *epoch* and *journal_seq* name the last journal record of a CLEAN image. *boot_id* and *owner* (pid and
    words) are those of the process that made it LIVE.
    """

    generation: int
    mode: Mode
    boot_id: bytes
    epoch: int = 0
    journal_seq: int = 0
    owner_pid: int = 0
    owner: str = ""


def encode_state(state: State, seed: int) -> bytes:
    """Return the block that holds *state*."""
    block = bytearray(BLOCK_BYTES)
    owner = state.owner.encode()[:OWNER_BYTES]
    _STATE.pack_into(
        block, 0, STATE_MAGIC, 0, state.mode, state.generation, state.boot_id, state.epoch, state.journal_seq,
        state.owner_pid, owner,
    )  # fmt: skip
    seal(block, 8, seed)
    return bytes(block)


def decode_state(block: bytes, seed: int, *, offset: int) -> State:
    """Return the state in *block*.

    Raises:
        CorruptImageError: magic, CRC or mode is wrong.
    """
    if block[:8] != STATE_MAGIC:
        raise CorruptImageError("state, magic", offset=offset, found=repr(block[:8]), expected=repr(STATE_MAGIC))
    check_crc(block, 8, seed, what="state", offset=offset)
    _, _, mode, generation, boot_id, epoch, journal_seq, owner_pid, owner = _STATE.unpack_from(block)
    if mode not in (Mode.CLEAN, Mode.LIVE):
        raise CorruptImageError("state, mode", offset=offset, found=str(mode), expected="0 or 1")
    return State(
        generation=generation, mode=Mode(mode), boot_id=boot_id, epoch=epoch, journal_seq=journal_seq,
        owner_pid=owner_pid, owner=owner.rstrip(b"\0").decode(errors="replace"),
    )  # fmt: skip
