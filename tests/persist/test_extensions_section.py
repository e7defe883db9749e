"""Descriptor extensions in their section of an image, and through crashes."""

import random
from pathlib import Path
from uuid import UUID

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import ZNS, Operation
from zonefs_emu.model.zone import Attribute, Condition
from zonefs_emu.persist.check import Severity, check_image
from zonefs_emu.persist.codec.header import SectionKind, plan_header
from zonefs_emu.persist.copy import copy_image
from zonefs_emu.persist.extensions_section import ExtensionsSection
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import initialize
from zonefs_emu.testing.backings import CrashBacking, MemoryBacking

GEOMETRY = Geometry(size=96, zone_size=16, zone_capacity=16, extension_bytes=128)
HEADER = plan_header(GEOMETRY, uuid=UUID(int=7))
BOOT, LATER = bytes(range(16)), bytes(range(1, 17))
ONE, TWO = b"1" * 128, b"2" * 128


def memory() -> bytearray:
    content = bytearray(HEADER.file_bytes)
    initialize(MemoryBacking(content), HEADER)
    return content


def device_on(content: bytearray, boot_id: bytes = BOOT) -> tuple[ZonedDevice, Port]:
    device = ZonedDevice(Image.load(MemoryBacking(content), len(content), boot_id))
    return device, device.port("nvme", ZNS)


def seen(port: Port, zone_no: int) -> tuple[Condition, int, bytes]:
    zone = port.zone(zone_no)
    status, data = port.extension(zone_no)
    assert status is Status.OK
    return zone.cond, zone.attributes, data


def test_it_is_there_after_a_stop_in_order_and_after_a_kill() -> None:
    content = memory()
    device, port = device_on(content)
    assert port.set_extension(16, ONE) is Status.OK
    assert seen(port, 1) == (Condition.CLOSED, Attribute.EXTENSION, ONE)
    assert seen(port, 0) == (Condition.EMPTY, 0, bytes(128))
    _, killed = device_on(bytearray(content))
    assert seen(killed, 1) == (Condition.CLOSED, Attribute.EXTENSION, ONE)
    device.close()
    _, reopened = device_on(content, LATER)
    assert seen(reopened, 1) == (Condition.CLOSED, Attribute.EXTENSION, ONE)


def test_it_is_there_after_a_power_cut_if_it_was_flushed() -> None:
    content = memory()
    _, port = device_on(content)
    assert not port.set_extension(0, ONE)
    assert not port.flush()
    assert not port.set_extension(16, TWO)
    _, after = device_on(bytearray(content), LATER)
    assert seen(after, 0) == (Condition.CLOSED, Attribute.EXTENSION, ONE)
    assert seen(after, 1) == (Condition.EMPTY, 0, bytes(128))


@pytest.mark.parametrize("with_data", [False, True])
def test_power_cuts_leave_one_extension_or_the_other(*, with_data: bool) -> None:
    """A zone gets an extension, and after a reset another one: each outcome is a state that it had since the flush."""
    backing = CrashBacking(memory())
    device = ZonedDevice(Image.load(backing, HEADER.file_bytes, BOOT))
    port = device.port("nvme", ZNS)
    assert not port.set_extension(0, ONE)
    if with_data:
        assert not port.write(0, 8, (b"x" * 4096,))
    assert not port.flush()
    begin = backing.position
    assert not port.manage(Operation.RESET, 0)
    assert not port.set_extension(0, TWO)
    allowed = {
        (Condition.CLOSED, Attribute.EXTENSION, ONE), (Condition.EMPTY, 0, bytes(128)),
        (Condition.CLOSED, Attribute.EXTENSION, TWO),
    }  # fmt: skip
    found = set()
    for cut in backing.power_cuts(random.Random(1), limit=64):
        if cut.position >= begin:
            _, after = device_on(cut.content, LATER)
            found.add(seen(after, 0))
    assert found <= allowed
    assert (Condition.CLOSED, Attribute.EXTENSION, ONE) in found


def test_a_damaged_extension_fails_its_reports_and_is_found() -> None:
    content = memory()
    device, port = device_on(content)
    assert not port.set_extension(16, ONE)
    device.close()
    content[HEADER.section(SectionKind.EXTENSIONS).offset + 136 + 20] ^= 1
    _, port = device_on(content)
    assert port.extension(1) == (Status.IO_ERROR, b"")
    assert port.extension(0) == (Status.OK, bytes(128))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ZonedDevice.create(tmp_path / "a.img", GEOMETRY, uuid=UUID(int=7))
    device = ZonedDevice.open(tmp_path / "a.img")
    port = device.port("nvme", ZNS)
    assert not port.set_extension(16, ONE)
    assert not port.set_extension(32, TWO)
    assert not port.manage(Operation.RESET, 32)
    device.close()
    return tmp_path / "a.img"


def test_check_names_a_damaged_extension(path: Path) -> None:
    assert check_image(path) == []
    with path.open("r+b") as file:
        file.seek(HEADER.section(SectionKind.EXTENSIONS).offset + 136 + 20)
        file.write(b"?")
    (finding,) = check_image(path)
    assert (finding.severity, finding.zone_no, finding.section) == (Severity.WARNING, 1, SectionKind.EXTENSIONS)


def test_a_copy_has_the_extensions(path: Path, tmp_path: Path) -> None:
    image = Image.open(path, readonly=True)
    for _ in copy_image(image.backing, image.header, tmp_path / "copy", image.states):
        pass
    image.close()
    copy = ZonedDevice.open(tmp_path / "copy", readonly=True)
    port = copy.port("nvme", ZNS)
    assert seen(port, 1) == (Condition.CLOSED, Attribute.EXTENSION, ONE)
    assert seen(port, 2) == (Condition.EMPTY, 0, bytes(128))
    copy.close()


def test_a_record_of_a_file_that_was_cut_is_zeros() -> None:
    section = ExtensionsSection(MemoryBacking(memory()[: HEADER.section(SectionKind.EXTENSIONS).offset + 100]), HEADER)
    assert section.record(0)[100:] == bytes(36)
    assert section.load(0) is None


BOTH = Geometry(size=96, zone_size=16, zone_capacity=16, extension_bytes=128, zrwa_size=4, zrwa_granularity=2)


def test_power_cuts_leave_extension_and_area_together_or_neither() -> None:
    header = plan_header(BOTH, uuid=UUID(int=7))
    content = bytearray(header.file_bytes)
    initialize(MemoryBacking(content), header)
    backing = CrashBacking(content)
    port = ZonedDevice(Image.load(backing, header.file_bytes, BOOT)).port("nvme", ZNS)
    assert not port.set_extension(0, ONE, zrwa=True)
    assert not port.write(2, 2, (b"a" * 1024,))
    assert not port.flush()
    begin = backing.position
    assert not port.manage(Operation.RESET, 0)
    assert not port.set_extension(0, TWO, zrwa=True)
    both = Attribute.EXTENSION | Attribute.ZRWA
    found = set()
    for cut in backing.power_cuts(random.Random(1), limit=64):
        if cut.position >= begin:
            _, after = device_on(cut.content, LATER)
            data = bytearray(2048)
            assert not after.read(0, 4, (data,))
            found.add((*seen(after, 0), bytes(data[::512])))
    assert found <= {
        (Condition.CLOSED, both, ONE, b"\0\0aa"), (Condition.EMPTY, 0, bytes(128), bytes(4)),
        (Condition.CLOSED, both, TWO, bytes(4)),
    }  # fmt: skip
    assert (Condition.CLOSED, both, ONE, b"\0\0aa") in found
