"""A socket pair: which bytes are taken from it, and which are left for the keeper."""

import array
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from tests.readable import is_readable
from zonefs_emu.vfio_user.doorbell_reader import DoorbellReader
from zonefs_emu.vfio_user.drive_memory import DOORBELLS_END, DOORBELLS_OFFSET, MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.vfio_messages import (
    MessageFlag,
    RegionAccess,
    VfioCommand,
    encode_command,
    encode_region_access,
)


class Ends:
    """What a client writes to, and what a daemon reads."""

    def __init__(self) -> None:
        self.client, theirs = socket.socketpair()
        self.keepers = theirs.dup()
        self.memory = DriveMemory(bytearray(MEMORY_BYTES))
        self.reader = DoorbellReader(theirs, self.memory)

    def has_bytes(self) -> bool:
        """Whether bytes lie in the socket."""
        return is_readable(self.keepers)

    def left(self) -> bytes:
        """Return what the keeper finds."""
        try:
            return self.keepers.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for end in (self.client, self.keepers, self.reader):
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def write(
    offset: int, data: bytes, *, region: int = 0, flags: int = MessageFlag.NO_REPLY,
    command: VfioCommand = VfioCommand.REGION_WRITE,
) -> bytes:  # fmt: skip
    payload = encode_region_access(RegionAccess(offset, region, len(data)), data)
    return encode_command(7, command, payload, flags=flags)


def ring(index: int, value: int) -> bytes:
    return write(DOORBELLS_OFFSET + 4 * index, value.to_bytes(4, "little"))


OTHERS = {
    "a register": write(0x14, bytes(4)),
    "beyond the doorbells": write(DOORBELLS_END, bytes(4)),
    "not a word": write(DOORBELLS_OFFSET + 2, bytes(4)),
    "half a word": write(DOORBELLS_OFFSET, bytes(2)),
    "two words": write(DOORBELLS_OFFSET, bytes(8)),
    "another region": write(DOORBELLS_OFFSET, bytes(4), region=7),
    "an answer is wanted": write(DOORBELLS_OFFSET, bytes(4), flags=0),
    "a read": write(DOORBELLS_OFFSET, bytes(4), command=VfioCommand.REGION_READ),
    "a message without data": encode_command(1, VfioCommand.DEVICE_RESET),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_doorbells_are_stored_and_all_else_is_left(ends: Ends, other: bytes) -> None:
    assert ends.reader.take(), "nothing has come"
    ends.client.sendall(ring(2, 10) + ring(3, 11) + ring(2, 12) + other + ring(4, 1))
    assert ends.reader.take()
    assert list(ends.memory.doorbells[:6]) == [0, 0, 12, 11, 0, 0]
    assert not ends.reader.take()
    assert not ends.reader.take(), "it waits for the keeper"
    assert ends.left() == other + ring(4, 1)


def test_a_part_of_a_doorbell_is_left(ends: Ends) -> None:
    """The keeper waits for the rest, and gathers it."""
    ends.client.sendall(ring(2, 10) + ring(5, 6)[:-1])
    assert ends.reader.take()
    assert not ends.reader.take()
    assert ends.memory.doorbells[2] == 10
    assert ends.left() == ring(5, 6)[:-1]


def test_a_doorbell_is_stored_before_it_is_taken(ends: Ends) -> None:
    """Killed in between, it is still there for the keeper."""

    class Fatal:
        def __setitem__(self, index: int, value: int) -> None:
            raise KeyboardInterrupt

    ends.reader._doorbells = Fatal()  # type: ignore[assignment]
    ends.client.sendall(ring(2, 10))
    with pytest.raises(KeyboardInterrupt):
        ends.reader.take()
    assert ends.left() == ring(2, 10)


def test_any_number_is_taken_in_portions(ends: Ends) -> None:
    for value in range(200):
        ends.client.sendall(ring(1, value))
    nr_takes = 0
    while ends.memory.doorbells[1] < 199:
        assert ends.reader.take()
        nr_takes += 1
    assert nr_takes == 4
    assert ends.left() == b""


PIECES = st.lists(
    st.builds(ring, st.integers(0, 1023), st.integers(0, 2**32 - 1))
    | st.sampled_from([*OTHERS.values()])
    | st.binary(min_size=1, max_size=80),
    max_size=12,
)


@given(pieces=PIECES)
def test_nothing_is_lost_whatever_comes(pieces: list[bytes]) -> None:
    """Doorbells at the front are taken, as long as there are only such; the keeper finds every byte of the rest."""
    ends = Ends()
    try:
        sent = b"".join(pieces)
        ends.client.sendall(sent)
        while ends.has_bytes() and ends.reader.take():
            pass
        left = ends.left()
        assert sent.endswith(left)
        taken = sent[: len(sent) - len(left)]
        expected = DriveMemory(bytearray(MEMORY_BYTES))
        for at in range(0, len(taken), len(ring(0, 0))):
            number, _, _, _, _, offset, region, count, value = struct.unpack("<HHIIIQIII", taken[at : at + 36])
            assert taken[at : at + 36][2:] == ring(offset - DOORBELLS_OFFSET >> 2, value)[2:], number
            assert (region, count) == (0, 4)
            expected.doorbells[(offset - DOORBELLS_OFFSET) >> 2] = value
        assert list(ends.memory.doorbells) == list(expected.doorbells)
        assert bytes(ends.memory.registers(0, 4096)) == bytes(4096)
    finally:
        ends.close()


def test_descriptors_of_the_next_message_stay_with_it(ends: Ends) -> None:
    ends.client.sendall(ring(1, 5))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ends.client.fileno()]))]
    ends.client.sendmsg([OTHERS["a message without data"]], rights)
    assert ends.reader.take()
    assert not ends.reader.take()
    data, (found,), _, _ = ends.keepers.recvmsg(1 << 16, 64)
    assert data == OTHERS["a message without data"]
    (fd,) = array.array("i", found[2])
    assert os.fstat(fd).st_ino == os.fstat(ends.client.fileno()).st_ino
    os.close(fd)


def test_the_end_of_a_client_is_for_the_keeper(ends: Ends) -> None:
    ends.client.sendall(ring(1, 5))
    ends.client.close()
    assert ends.reader.take()
    assert not ends.reader.take()
    assert ends.left() == b""
