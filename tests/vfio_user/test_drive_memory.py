"""Registers and doorbells as words of one piece of memory."""

from zonefs_emu.vfio_user.drive_memory import DOORBELLS_OFFSET, MEMORY_BYTES, DriveMemory


def test_words_of_both_widths_are_the_same_bytes() -> None:
    buffer = bytearray(MEMORY_BYTES)
    memory = DriveMemory(buffer)
    memory.wide_words[5] = 0x1122334455667788
    assert (memory.words[10], memory.words[11]) == (0x55667788, 0x11223344)
    assert memory.registers(0x28, 8) == bytes.fromhex("8877665544332211")
    memory.doorbells[3] = 7
    assert buffer[DOORBELLS_OFFSET + 12] == 7


def test_a_reset_is_counted_by_all_that_share_the_memory() -> None:
    buffer = bytearray(MEMORY_BYTES)
    memory, other = DriveMemory(buffer), DriveMemory(buffer)
    memory.words[5] = memory.doorbells[0] = 1
    memory.clear()
    assert (other.words[5], other.doorbells[0], other.nr_resets) == (0, 0, 1)


def test_admin_queues() -> None:
    memory = DriveMemory(bytearray(MEMORY_BYTES))
    memory.words[0x24 >> 2] = 0xF012_F3FF  # the bits above each size are reserved
    memory.wide_words[0x28 >> 3], memory.wide_words[0x30 >> 3] = 1 << 40, 0x5000
    assert memory.admin_queues == ((1 << 40, 0x400), (0x5000, 0x13))
