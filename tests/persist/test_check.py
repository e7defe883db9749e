import random
import shutil
from array import array
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.persist.worlds import BOOT, GEOMETRY, NEXT_BOOT, UUID_OF_TESTS, WIDE_GEOMETRY, World, fresh_memory
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import ImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.check import Finding, Severity, check_backing, check_image, lasting
from zonefs_emu.persist.codec.header import Header, SectionKind, encode_header, plan_header
from zonefs_emu.persist.codec.state import Mode, State, encode_state
from zonefs_emu.persist.codec.table import encode_table
from zonefs_emu.persist.codec.words import encode_live, pack_words
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.metadata import read_header
from zonefs_emu.persist.repair import repair_image
from zonefs_emu.testing.backings import MemoryBacking

MIB = 2048  # sectors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small image with a journal record."""
    path = tmp_path / "a.img"
    ZonedDevice.create(path, Geometry(size=4 * MIB, zone_size=MIB, zone_capacity=MIB), uuid=uuid4())
    device = ZonedDevice.open(path)
    port = device.port("test", VIRTIO)
    assert not port.write(MIB, 8, [bytes(4096)])
    device.close()
    return path


def header_of(path: Path) -> Header:
    backing = FileBacking.open(path)
    header = read_header(backing, backing.length)
    backing.close()
    return header


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_a_sound_image_has_no_findings(path: Path) -> None:
    assert check_image(path) == []


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("kind", [SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL])
def test_damage_to_one_copy_is_a_warning_that_says_where(kind: SectionKind, copy: int, path: Path) -> None:
    section = header_of(path).section(kind, copy)
    flip(path, section.offset + 30)
    (finding,) = check_image(path)
    assert finding.severity is Severity.WARNING
    assert finding.offset == section.offset
    assert f"the {('first', 'second')[copy]} copy of the " in finding.message


@pytest.mark.parametrize("kind", [SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL])
def test_damage_to_both_copies_is_an_error_first(kind: SectionKind, path: Path) -> None:
    header = header_of(path)
    for copy in (0, 1):
        flip(path, header.section(kind, copy).offset + 30)
    findings = check_image(path)
    assert findings[0].severity is Severity.ERROR
    with pytest.raises(ImageError):
        Image.open(path)


def test_a_cut_file_is_an_error(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4096)
    findings = check_image(path)
    assert findings[0].severity is Severity.ERROR
    path.write_bytes(b"")
    assert [finding.severity for finding in check_image(path)] == [Severity.ERROR]


def test_nothing_is_written(path: Path) -> None:
    flip(path, header_of(path).section(SectionKind.TABLE).offset + 30)
    before = path.read_bytes()
    check_image(path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_every_flipped_byte_of_the_metadata_is_found_or_harmless() -> None:
    """What check does not find must not keep the image from opening with the same zones."""
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:2 f w2:6 w3:1 Q")
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    reference = Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True)
    for offset in range(header.metadata_offset, header.file_bytes, 97):
        memory[offset] ^= 0x10
        if not findings_of(memory):
            image = Image.load(MemoryBacking(memory), len(memory), BOOT, readonly=True)
            assert (image.conds, image.wps) == (reference.conds, reference.wps), offset
        memory[offset] ^= 0x10


def test_lasting_findings() -> None:
    first, second = (Finding(severity=Severity.WARNING, offset=i, message="x") for i in range(2))
    assert lasting([[first, second], [second], [second, first]]) == [second]
    assert lasting([[first]]) == [first]


# -- what only an image in use, or one that is strange, shows -----------------------------------------------------


def findings_of(memory: bytearray, boot_id: bytes = BOOT) -> list[Finding]:
    return check_backing(MemoryBacking(memory), len(memory), boot_id)


def only(severity: Severity, findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.severity is severity]


def put_words(memory: bytearray, conds: list[int], wps: list[int], *, live: bool = False) -> None:
    """Put zone states into the image's table, or its live table, with all its CRCs right."""
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    words = pack_words(bytearray(conds), array("Q", wps))
    places = (
        [header.section(SectionKind.LIVE)] if live else [header.section(SectionKind.TABLE, copy) for copy in (0, 1)]
    )
    data = encode_live(words) if live else encode_table(words, 1, header.seed)
    for section in places:
        memory[section.offset : section.offset + len(data)] = data


def test_an_image_in_use_is_compared_with_its_last_flush() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:1 f w1:1 w3:2")
    findings = findings_of(memory)
    assert only(Severity.INFO, findings) == ["zones that changed since the last flush: 2, zone 1 first"]
    assert findings[0].zone_no == 1
    assert findings[0].section is SectionKind.LIVE
    message, beyond = only(Severity.INFO, findings_of(memory, NEXT_BOOT))
    assert "beyond write pointers" in beyond
    assert "in use by zonefs-emu when the host stopped" in message
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    memory[header.section(SectionKind.LIVE).offset + 8] ^= 1
    assert "live table, zone 1 at byte" in only(Severity.ERROR, findings_of(memory))[0]


def test_impossible_zones_are_all_errors_with_their_numbers() -> None:
    memory = fresh_memory()
    put_words(memory, [0, 1, 7, 1, 14, 1], [0, 2, 0, 0, 7, 0])
    findings = findings_of(memory)
    assert [finding.zone_no for finding in findings if finding.section is SectionKind.TABLE] == [1, 2, 4]
    assert len(only(Severity.ERROR, findings)) == 4
    wide = fresh_memory(WIDE_GEOMETRY)
    header = plan_header(WIDE_GEOMETRY, uuid=UUID_OF_TESTS)
    words = pack_words(bytearray(600), array("Q", bytes(4800)))
    for copy in (0, 1):
        offset = header.section(SectionKind.TABLE, copy).offset
        wide[offset : offset + 8192] = encode_table(words, 1, header.seed)
    assert only(Severity.ERROR, findings_of(wide))[-1] == "580 more zones are in impossible conditions"


def test_impossible_zones_of_the_live_table() -> None:
    memory = fresh_memory()
    World(MemoryBacking(memory)).run("w1:1")
    put_words(memory, [0, 1, 1, 1, 5, 1], [0, 0, 0, 0, 0, 0], live=True)
    findings = findings_of(memory)
    assert next(finding.zone_no for finding in findings if finding.section is SectionKind.LIVE) == 4


def test_more_open_and_active_zones_than_the_limits_are_warnings() -> None:
    memory = fresh_memory()
    put_words(memory, [0, 2, 3, 3, 4, 1], [0, 1, 1, 0, 2, 0])
    assert only(Severity.WARNING, findings_of(memory)) == [
        "3 zones are open, more than the limit 2",
        "4 zones are active, more than the limit 3",
    ]


def test_space_beyond_write_pointers_is_told() -> None:
    geometry = Geometry(size=64, zone_size=16, zone_capacity=16, conventional=((0, 1),))
    memory = fresh_memory(geometry)
    memory[0:4096] = b"c" * 4096
    memory[2 * 8192 + 4096 : 3 * 8192] = b"x" * 4096
    (finding,) = findings_of(memory)
    assert finding.severity is Severity.INFO
    assert finding.message == "4 KiB of space are taken beyond write pointers; zones: 1, zone 2 first"
    assert (finding.zone_no, finding.offset) == (2, 2 * 8192)


def test_interrupted_changes_are_told() -> None:
    memory = fresh_memory()
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    table, state = header.section(SectionKind.TABLE, 1), header.section(SectionKind.STATE)
    words = pack_words(bytearray((0, 1, 1, 1, 1, 1)), array("Q", bytes(48)))
    older = encode_table(words, 0, header.seed)
    memory[table.offset : table.offset + len(older)] = older
    newer = encode_state(State(generation=2, mode=Mode.CLEAN, boot_id=bytes(16), epoch=1), header.seed)
    memory[state.offset : state.offset + len(newer)] = newer
    states, tables = only(Severity.INFO, findings_of(memory))
    assert "generations 2 and 1: the last change of it was interrupted" in states
    assert "blocks of generations 0 to 1: its last rewriting was interrupted" in tables


def test_faults_and_features() -> None:
    memory = fresh_memory()
    world = World(MemoryBacking(memory))
    world.image.save_faults(b"[]", durably=True)
    world.run("Q")
    assert findings_of(memory) == []
    header = plan_header(GEOMETRY, uuid=UUID_OF_TESTS)
    first, second = (header.section(SectionKind.FAULTS, copy).offset for copy in (0, 1))
    memory[first + 50] ^= 1
    (finding,) = findings_of(memory)
    assert (finding.severity, finding.offset, finding.copy) == (Severity.WARNING, first, 0)
    memory[second + 50] ^= 1
    (finding,) = findings_of(memory)
    assert (finding.severity, finding.offset) == (Severity.ERROR, first)
    memory = fresh_memory()
    strange = replace(header, read_only_compatible=2)
    at = header.section(SectionKind.HEADER, 1).offset
    memory[at : at + 4096] = encode_header(strange, 1)
    messages = only(Severity.WARNING, findings_of(memory))
    assert messages[0] == "the features 0x2 are not known here, so it can only be read"
    assert "the first copy of the header is damaged: it differs from the second" in messages[1]


#: What is done to each section so that the image cannot be opened; the others have nothing that opening relies on.
DAMAGED = {
    SectionKind.HEADER: (30,),
    SectionKind.STATE: (30,),
    SectionKind.TABLE: (30,),
    SectionKind.JOURNAL: (40,),
    SectionKind.LIVE: (3,),
    SectionKind.FAULTS: (0, 40),
}


@pytest.mark.parametrize("kind", SectionKind)
def test_what_keeps_an_image_from_opening_is_an_error(kind: SectionKind, path: Path) -> None:
    device = ZonedDevice.open(path)
    device.inject(Fault(effect=Effect.RECOMMEND_RESET))
    assert not device.port("test", VIRTIO).write(MIB + 8, 8, [bytes(4096)])
    shutil.copy(path, path.with_name("killed"))  # with a live table that counts
    device.close()
    path = path.with_name("killed") if kind is SectionKind.LIVE else path
    sections = [section for section in header_of(path).sections if section.kind is kind]
    for section in sections:
        if kind in DAMAGED:
            for at in DAMAGED[kind]:
                flip(path, section.offset + at)
        else:
            with path.open("r+b") as file:
                file.seek(section.offset)
                file.write(random.Random(kind).randbytes(section.length))
    findings = check_image(path)
    if kind not in DAMAGED:
        ZonedDevice.open(path).close()
        assert findings == []
        return
    for readonly in (False, True):
        with pytest.raises(ImageError):
            ZonedDevice.open(path, readonly=readonly)
    assert findings[0].severity is Severity.ERROR
    assert [finding.severity for finding in findings].count(Severity.ERROR) == 1
    if kind is not SectionKind.HEADER:  # of which nothing says where the others are
        repair_image(path)
        ZonedDevice.open(path).close()
        assert not any(finding.severity is Severity.ERROR for finding in check_image(path))


def test_random_write_areas_hold_data_and_are_counted() -> None:
    geometry = Geometry(size=64, zone_size=16, zone_capacity=16, zrwa_size=8, zrwa_granularity=8, max_zrwa=1)
    memory = fresh_memory(geometry)
    header = plan_header(geometry, uuid=UUID_OF_TESTS)
    words = pack_words(bytearray((4, 4, 1, 1)), array("Q", (0, 0, 0, 0)), bytearray((2, 2, 0, 0)))
    for copy in (0, 1):
        offset = header.section(SectionKind.TABLE, copy).offset
        memory[offset : offset + 4096] = encode_table(words, 1, header.seed)
    memory[:4096] = b"a" * 4096
    assert [finding.message for finding in findings_of(memory)] == [
        "2 zones have a random write area, more than the limit 1"
    ]
    memory[8192 + 4096 : 2 * 8192] = b"x" * 4096
    assert "4 KiB of space are taken beyond write pointers; zones: 1, zone 1 first" in only(
        Severity.INFO, findings_of(memory)
    )
