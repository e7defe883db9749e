"""Configuration space, as an operating system walks through it."""

import struct

from zonefs_emu.vfio_user.pci_config import CONFIG_BYTES, MSIX_BAR, NR_VECTORS, InterruptKind, PciConfig


def capabilities(config: PciConfig) -> dict[int, int]:
    """Return the offset of each capability by its identifier."""
    found = {}
    at = config.read(0x34, 1)[0]
    while at:
        identifier, following = config.read(at, 2)
        assert identifier not in found, "the list has no circle"
        found[identifier] = at
        at = following
    return found


def test_it_is_an_nvme_controller_with_msix() -> None:
    config = PciConfig(InterruptKind.MSIX)
    assert config.read(0x09, 3) == bytes((0x02, 0x08, 0x01)), "interface, subclass, class"
    assert config.read(0x06, 2)[0] & 0x10, "there is a list of capabilities"
    found = capabilities(config)
    assert sorted(found) == [0x01, 0x10, 0x11]
    control, table, pending = struct.unpack("<HII", config.read(found[0x11] + 2, 10))
    assert (control & 0x7FF) + 1 == NR_VECTORS
    assert (table & 7, pending & 7) == (MSIX_BAR, MSIX_BAR)
    assert (pending & ~7) - (table & ~7) >= 16 * NR_VECTORS, "the table and the pending bits do not overlap"
    (abilities,) = struct.unpack("<I", config.read(found[0x10] + 4, 4))
    assert abilities >> 28 & 1, "it can be reset"


def test_it_has_msi_instead() -> None:
    config = PciConfig(InterruptKind.MSI)
    found = capabilities(config)
    assert sorted(found) == [0x01, 0x05, 0x10]
    at = found[0x05]
    (control,) = struct.unpack("<H", config.read(at + 2, 2))
    assert 1 << (control >> 1 & 7) == NR_VECTORS
    assert control & 0x80, "addresses have 8 bytes"
    config.write(at + 2, b"\xff\xff" + bytes(range(0xF1, 0xFF)))
    assert config.read(at + 2, 12) == struct.pack("<H", control | 0x71) + bytes(
        [0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA]
    )


def test_a_guest_writes_only_what_is_writable() -> None:
    config = PciConfig(InterruptKind.MSIX)
    before = config.read(0, CONFIG_BYTES)
    assert not config.write(0x04, b"\xff\xff")
    assert config.read(0x04, 2) == b"\x06\x04"
    for at in (0x00, 0x10, 0x30, 0x34, 0x3D, 0x100, CONFIG_BYTES - 4):
        assert not config.write(at, b"\xff\xff\xff\xff"[: 1 if at == 0x3D else 4])
        assert config.read(at, 1) == before[at : at + 1], "base addresses and the ROM stay zero"
    config.reset()
    assert config.read(0, CONFIG_BYTES) == before


def test_a_guest_asks_for_a_reset_of_the_function() -> None:
    config = PciConfig(InterruptKind.MSIX)
    control = capabilities(config)[0x10] + 8
    assert config.write(control, b"\x10\x80")
    assert config.write(control + 1, b"\x80")
    assert not config.write(control, b"\x10\x28")
    assert config.read(control, 2) == b"\x10\x28"
    assert not config.write(control, b"\x10")
