"""What messages do, with a drive that notes what it is told."""

import errno
import gc
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user import vfio_messages as messages
from zonefs_emu.vfio_user.client_connection import ClientMessage
from zonefs_emu.vfio_user.drive_memory import INTMC_WORD, INTMS_WORD, MEMORY_BYTES, DriveMemory
from zonefs_emu.vfio_user.pci_config import MSIX_BAR, NR_VECTORS, InterruptKind
from zonefs_emu.vfio_user.pci_function import DmaRegion, PciFunction
from zonefs_emu.vfio_user.vfio_messages import (
    DMA_MAPS_MAX,
    HEADER,
    DmaMapRequest,
    DmaUnmapRequest,
    IrqSetRequest,
    MessageFlag,
    MessageHeader,
    RegionAccess,
    VfioCommand,
)


class Notes:
    """A drive that does nothing."""

    def __init__(self, memory: DriveMemory) -> None:
        self.said: list[object] = []
        self.memory = memory
        self.interrupts: list[int] = []
        self.refuses = False

    def map_memory(self, region: DmaRegion) -> None:
        if self.refuses:
            raise PeerError("no")
        self.said.append(("map", region.iova, region.size, region.offset))

    def unmap_memory(self, region: DmaRegion) -> None:
        os.fstat(region.fd)  # it is still open
        self.said.append(("unmap", region.iova))

    def set_interrupts(self, fds: list[int]) -> None:
        self.interrupts = fds

    def reset(self) -> None:
        self.memory.clear()
        self.said.append("reset")

    def kick(self) -> None:
        self.said.append("kick")


class Client:
    """Sends messages to a function without a socket."""

    def __init__(self, interrupt_kind: InterruptKind = InterruptKind.MSIX) -> None:
        self.memory = DriveMemory(bytearray(MEMORY_BYTES))
        self.drive = Notes(self.memory)
        self.function = PciFunction(self.drive, self.memory, interrupt_kind)
        self.call(VfioCommand.VERSION, bytes(4))

    def send(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0) -> bytes | None:
        header = MessageHeader(5, command, flags, len(payload))
        return self.function.handle(ClientMessage(header, payload, [os.dup(fd) for fd in fds]))

    def call(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        reply = self.send(command, payload, fds)
        assert reply is not None
        assert HEADER.unpack_from(reply) == (5, command, len(reply), MessageFlag.REPLY, 0)
        return reply[HEADER.size :]

    def error(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> int:
        reply = self.send(command, payload, fds)
        assert reply is not None
        assert HEADER.unpack_from(reply)[:4] == (5, command, HEADER.size, MessageFlag.REPLY | MessageFlag.ERROR)
        number: int = HEADER.unpack_from(reply)[4]
        return number

    def map(self, iova: int, size: int) -> bytes:
        return messages.encode_dma_map(DmaMapRequest(3, 0, iova, size))

    def read(self, region: int, offset: int, nr_bytes: int) -> bytes:
        answer = self.call(
            VfioCommand.REGION_READ, messages.encode_region_access(RegionAccess(offset, region, nr_bytes))
        )
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        access = messages.encode_region_access(RegionAccess(offset, region, len(data)), data)
        assert self.call(VfioCommand.REGION_WRITE, access) == access[:16]


@pytest.fixture
def client() -> Iterator[Client]:
    gc.collect()  # mappings of earlier tests, each of which has a descriptor
    before = set(Path("/proc/self/fd").iterdir())
    client = Client()
    yield client
    client.function.close()
    # Fewer may be open, because objects of earlier tests are collected at any time.
    assert set(Path("/proc/self/fd").iterdir()) <= before, "no descriptor is left open"


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("memory")
    yield fd
    os.close(fd)


def test_nothing_comes_before_the_version() -> None:
    memory = DriveMemory(bytearray(MEMORY_BYTES))
    function = PciFunction(Notes(memory), memory)
    with pytest.raises(PeerError, match="command 13 came before the version"):
        function.handle(ClientMessage(MessageHeader(1, VfioCommand.DEVICE_RESET, 0, 0), b"", []))
    with pytest.raises(PeerError, match=r"version 1\.0"):
        function.handle(ClientMessage(MessageHeader(1, VfioCommand.VERSION, 0, 4), b"\1\0\0\0", []))


def test_a_message_of_no_known_kind(client: Client, fd: int) -> None:
    assert client.error(99, b"", (fd,)) == errno.ENOSYS


def test_what_the_device_has(client: Client) -> None:
    assert client.call(VfioCommand.DEVICE_GET_INFO, bytes(16)) == messages.encode_device_info(9, 5)
    sizes = [
        struct.unpack("<IIIIQQ", client.call(VfioCommand.DEVICE_GET_REGION_INFO, messages.encode_index(index)))[4]
        for index in range(9)
    ]
    assert sizes == [0x2000, 0, 0, 0, 0x1000, 0, 0, 4096, 0]
    assert client.error(VfioCommand.DEVICE_GET_REGION_INFO, messages.encode_index(9)) == errno.EINVAL
    counts = [
        struct.unpack("<IIII", client.call(VfioCommand.DEVICE_GET_IRQ_INFO, messages.encode_index(kind)))[3]
        for kind in range(3)
    ]
    assert counts == [0, 0, NR_VECTORS]
    assert client.error(VfioCommand.DEVICE_GET_IRQ_INFO, messages.encode_index(3)) == errno.EINVAL


def test_memory_comes_and_goes(client: Client, fd: int) -> None:
    client.call(VfioCommand.DMA_MAP, client.map(0x1000, 0x1000), (fd,))
    client.call(VfioCommand.DMA_MAP, client.map(0x3000, 0x1000))  # firmware, without a descriptor
    assert client.error(VfioCommand.DMA_MAP, client.map(0x1FFF, 0x10), (fd,)) == errno.EEXIST
    assert client.error(VfioCommand.DMA_MAP, client.map(0x8000, 0), (fd,)) == errno.EINVAL
    assert client.error(VfioCommand.DMA_MAP, client.map((1 << 64) - 1, 2), (fd,)) == errno.EINVAL
    assert client.error(VfioCommand.DMA_MAP, client.map(0x8000, 1), (fd, fd)) == errno.EINVAL
    client.drive.refuses = True
    assert client.error(VfioCommand.DMA_MAP, client.map(0x8000, 1), (fd,)) == errno.EINVAL
    client.drive.refuses = False
    removal = messages.encode_dma_unmap(DmaUnmapRequest(24, 0, 0x1000, 0x800))
    assert client.error(VfioCommand.DMA_UNMAP, removal) == errno.ENOENT
    removal = messages.encode_dma_unmap(DmaUnmapRequest(24, 0, 0x1000, 0x1000))
    assert client.call(VfioCommand.DMA_UNMAP, removal) == removal
    client.call(VfioCommand.DMA_MAP, client.map(0x1000, 0x1000), (fd,))
    client.call(VfioCommand.DMA_UNMAP, messages.encode_dma_unmap(DmaUnmapRequest(24, 2, 0, 0)))
    assert client.drive.said == [
        ("map", 0x1000, 0x1000, 0), ("unmap", 0x1000), ("map", 0x1000, 0x1000, 0), ("unmap", 0x1000),
    ]  # fmt: skip


def test_a_client_has_a_limited_number_of_maps(client: Client) -> None:
    for number in range(DMA_MAPS_MAX):
        client.call(VfioCommand.DMA_MAP, client.map(number << 12, 1))
    assert client.error(VfioCommand.DMA_MAP, client.map(1 << 40, 1)) == errno.ENOSPC


def irqs(flags: int, start: int, nr_vectors: int, kind: int = 2) -> bytes:
    return messages.encode_irq_set(IrqSetRequest(flags, kind, start, nr_vectors))


def test_a_function_with_msi() -> None:
    client = Client(InterruptKind.MSI)
    size = client.call(VfioCommand.DEVICE_GET_REGION_INFO, messages.encode_index(MSIX_BAR))[16:24]
    assert size == bytes(8), "no table of MSI-X"
    counts = [client.call(VfioCommand.DEVICE_GET_IRQ_INFO, messages.encode_index(kind))[12] for kind in range(3)]
    assert counts == [0, NR_VECTORS, 0]
    fd = os.eventfd(0)
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x24, 0, 1, kind=1), (fd,))
    assert [number >= 0 for number in client.drive.interrupts] == [True] + [False] * (NR_VECTORS - 1)
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x21, 0, 0, kind=2))
    assert client.drive.interrupts[0] >= 0, "the kind that is not there has none to take away"
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x21, 0, 0, kind=1))
    assert client.drive.interrupts == [-1] * NR_VECTORS
    client.function.close()


@pytest.mark.parametrize(("kind", "mask"), [(InterruptKind.MSI, 0b101), (InterruptKind.MSIX, 0)])
def test_interrupts_are_masked_where_there_is_no_table_of_msix(kind: InterruptKind, mask: int) -> None:
    client = Client(kind)
    for word, bits in ((INTMS_WORD, 0b011), (INTMS_WORD, 0b110), (INTMC_WORD, 0b010)):
        access = RegionAccess(4 * word, 0, 4)
        client.call(VfioCommand.REGION_WRITE, messages.encode_region_access(access, struct.pack("<I", bits)))
    for word in (INTMS_WORD, INTMC_WORD):
        answer = client.call(VfioCommand.REGION_READ, messages.encode_region_access(RegionAccess(4 * word, 0, 4)))
        assert struct.unpack("<I", answer[-4:]) == (mask,)
    client.memory.configure(1)
    assert client.memory.words[INTMS_WORD] == mask
    client.memory.configure(0)
    assert (client.memory.words[INTMS_WORD], client.memory.words[INTMC_WORD]) == (0, 0), "a reset of the controller"
    client.memory.words[INTMS_WORD] = mask
    client.function.reset()
    assert client.memory.words[INTMS_WORD] == 0
    client.function.close()


def test_interrupts_are_set_and_taken_away(client: Client, fd: int) -> None:
    no_eventfd, fd = fd, os.eventfd(0)
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x24, 1, 2), (fd, fd))
    assert [number >= 0 for number in client.drive.interrupts] == [False, True, True] + [False] * (NR_VECTORS - 3)
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x24, 1, 1))
    assert [number >= 0 for number in client.drive.interrupts] == [False, False, True] + [False] * (NR_VECTORS - 3)
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x28, 2, 1))  # mask: QEMU does that by itself
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x22, 2, 1) + b"\1")
    assert client.drive.interrupts[2] >= 0
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x21, 0, 0))
    assert client.drive.interrupts == [-1] * NR_VECTORS
    client.call(VfioCommand.DEVICE_SET_IRQS, irqs(0x21, 0, 0, kind=0))
    for payload, fds in (
        (irqs(0x24, NR_VECTORS - 1, 2), (fd, fd)),
        (irqs(0x24, 0, 2), (fd,)),
        (irqs(0x24, 0, 2), (fd, no_eventfd)),
        (irqs(0x24, 0, 1, kind=0), (fd,)),
        (irqs(0x24, 0, 1, kind=5), (fd,)),
        (irqs(0x24, 0, 0xFFFFFFFF), ()),
    ):
        assert client.error(VfioCommand.DEVICE_SET_IRQS, payload, fds) == errno.EINVAL
    os.close(fd)


def test_registers_and_doorbells(client: Client) -> None:
    client.memory.words[7] = 0x1234
    assert client.read(0, 0x1C, 4) == b"\x34\x12\0\0"
    client.write(0, 0x14, b"\1\0\x46\0")
    client.write(0, 0x28, bytes(range(8)))
    client.write(0, 0x1008, b"\7\0\0\0")
    assert (client.memory.words[5], client.memory.wide_words[5]) == (0x460001, 0x0706050403020100)
    assert client.memory.doorbells[2] == 7
    assert client.drive.said == ["kick"] * 3
    for offset, data in ((0x00, bytes(8)), (0x1C, bytes(4)), (0x15, b"\1\1\1\1"), (0x14, b"\1"), (0x14, bytes(12))):
        client.write(0, offset, data)
    assert (client.memory.words[5], client.memory.words[7]) == (0x460001, 0x1234)
    assert client.read(0, 0x1008, 4) == bytes(4), "doorbells are not read"
    assert client.read(0, 0x0, 4096) == bytes(4096)
    assert client.read(4, 0, 16) == bytes(16)
    client.write(4, 0, b"\xff" * 16)


@pytest.mark.parametrize(("region", "offset", "nr_bytes"), [(0, 0x1FFD, 4), (1, 0, 4), (9, 0, 1), (7, 1 << 63, 4)])
def test_what_lies_outside_of_a_region(client: Client, region: int, offset: int, nr_bytes: int) -> None:
    access = messages.encode_region_access(RegionAccess(offset, region, nr_bytes), bytes(nr_bytes))
    for command in (VfioCommand.REGION_READ, VfioCommand.REGION_WRITE):
        assert client.error(command, access) == errno.EINVAL


def test_a_write_without_its_bytes_is_no_message(client: Client) -> None:
    with pytest.raises(PeerError, match="4 bytes for a region were announced, but 3 came"):
        client.send(VfioCommand.REGION_WRITE, messages.encode_region_access(RegionAccess(0x14, 0, 4), bytes(3)))


def test_posted_writes_are_not_answered(client: Client) -> None:
    access = messages.encode_region_access(RegionAccess(0x1000, 0, 4), b"\1\0\0\0")
    assert client.send(VfioCommand.REGION_WRITE, access, flags=MessageFlag.NO_REPLY) is None
    assert client.memory.doorbells[0] == 1
    outside = messages.encode_region_access(RegionAccess(0x9000, 0, 4), b"\1\0\0\0")
    assert client.send(VfioCommand.REGION_WRITE, outside, flags=MessageFlag.NO_REPLY) is None


def test_a_reset_by_message_and_by_configuration_space(client: Client) -> None:
    client.write(0, 0x14, b"\1\0\0\0")
    client.write(7, 4, b"\6\0")
    client.call(VfioCommand.DEVICE_RESET)
    assert (client.memory.words[5], client.memory.nr_resets) == (0, 1)
    assert client.read(7, 4, 2) == bytes(2)
    client.write(7, 0x48, b"\0\x80")
    assert client.memory.nr_resets == 2
    assert client.drive.said == ["kick", "reset", "reset"]
