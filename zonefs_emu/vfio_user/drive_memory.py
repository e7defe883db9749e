"""The memory of a drive: the registers and doorbells of the guest, and a counter of resets.

The function (:mod:`pci_function`) stores what the guest writes, and the drive (:mod:`pci_drive`) stores what the guest
reads. Each word has one writer at a time and is stored at once, so two processes can share the memory.

::

    offset  0x0000  registers, as BAR0 has them
            0x1000  doorbells: tail of submission queue 0, head of completion queue 0, tail of queue 1, …
            0x2000  words of 8 bytes: how many resets there were

A guest may disable the controller and enable it again between two looks of the drive. That is a reset, so the function
counts resets.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

DOORBELLS_OFFSET: Final = 0x1000
DOORBELLS_END: Final = 0x2000
MEMORY_BYTES: Final = 0x3000
_RESETS: Final = 0
#: Controller Configuration as a word, and its bit that enables the controller.
CC_WORD: Final = 0x14 >> 2
ENABLE: Final = 1
#: Interrupt Mask Set and Interrupt Mask Clear as words. Both are read as the mask, a bit for each vector.
INTMS_WORD: Final = 0x0C >> 2
INTMC_WORD: Final = 0x10 >> 2
_REGISTER_BYTES: Final = 0x1000
#: Admin Queue Attributes as a word, and the base addresses as words of 8 bytes.
_AQA: Final = 0x24 >> 2
_ASQ: Final = 0x28 >> 3
_ACQ: Final = 0x30 >> 3

#: INTMS, INTMC, CC, CSTS, AQA, ASQ and ACQ, which a reset sets to zero.
_RESET_WORDS: Final = (INTMS_WORD, INTMC_WORD, CC_WORD, 0x1C >> 2, *range(0x24 >> 2, 0x38 >> 2))


class AdminQueue(NamedTuple):
    """Where the guest wants an admin queue: the guest address *base*, and the *size* in entries, 1 to 4096."""

    base: int
    size: int


class DriveMemory:
    """The memory as words; *buffer* has :data:`MEMORY_BYTES`, zero at first."""

    def __init__(self, buffer: "Buffer") -> None:
        view = memoryview(buffer).cast("B")
        assert len(view) == MEMORY_BYTES
        self._registers = view[:_REGISTER_BYTES]
        #: Registers, 4 and 8 bytes each.
        self.words = view[:_REGISTER_BYTES].cast("I")
        self.wide_words = view[:_REGISTER_BYTES].cast("Q")
        self.doorbells = view[DOORBELLS_OFFSET:DOORBELLS_END].cast("I")
        self._control = view[DOORBELLS_END:].cast("Q")

    def registers(self, offset: int, count: int) -> bytes:
        """Return *count* bytes of the registers at *offset*, as the guest reads them."""
        return bytes(self._registers[offset : offset + count])

    @property
    def admin_queues(self) -> tuple[AdminQueue, AdminQueue]:
        """The admin submission queue and its completion queue."""
        aqa, bases = self.words[_AQA], self.wide_words
        return AdminQueue(bases[_ASQ], (aqa & 0xFFF) + 1), AdminQueue(bases[_ACQ], (aqa >> 16 & 0xFFF) + 1)

    def configure(self, value: int) -> None:
        """Store what the guest writes to the register CC."""
        is_reset = self.words[CC_WORD] & ENABLE and not value & ENABLE
        # Stored before the reset is counted: otherwise a drive that sees the count could enable the controller by the
        # old value.
        self.words[CC_WORD] = value
        if is_reset:
            # A reset of the controller keeps AQA, ASQ and ACQ, and no mask.
            self.words[INTMS_WORD] = self.words[INTMC_WORD] = 0
            self._control[_RESETS] += 1

    def clear(self) -> None:
        """Set the guest's values and the status to zero, as a reset does, and count the reset."""
        for index in _RESET_WORDS:
            self.words[index] = 0
        for index in range(len(self.doorbells)):
            self.doorbells[index] = 0
        self._control[_RESETS] += 1

    @property
    def nr_resets(self) -> int:
        """The number of times that the guest has disabled the controller or reset the function."""
        return self._control[_RESETS]
