"""Images damaged in every way: check finds it or it is harmless, and a repair gives an image that opens.

The zones must then be what they were, or, where both copies of something are gone, what the rest tells.
"""

import errno
import random
import shutil
import subprocess
from bisect import bisect_left
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tests.persist.worlds import BOOT, GEOMETRY, NEXT_BOOT, UUID_OF_TESTS, Snapshot, World, fresh_memory, snapshot
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import BadMagicError, ImageBusyError, UnsupportedVersionError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.check import Finding, Severity, check_backing, check_image
from zonefs_emu.persist.codec.block import BLOCK_BYTES
from zonefs_emu.persist.codec.header import SectionKind, encode_header, plan_header
from zonefs_emu.persist.image import Image
from zonefs_emu.persist.repair import Plan, backup_lines, execute, plan_repair, repair_image
from zonefs_emu.testing.backings import CrashBacking, MemoryBacking
from zonefs_emu.units import round_up

HEADER = plan_header(GEOMETRY, uuid=UUID_OF_TESTS, label="tests")
PROGRAM = "w1:2 f w2:6 o3 f r1 x4:13 w1:1 f a3:2 k0:4"
#: How the image was left, and on which boot it is repaired.
CASES = {"clean": (" Q", BOOT), "killed": ("", BOOT), "power cut": ("", NEXT_BOOT)}
#: Zones of several blocks, so that their data extents tell something; the last zone is a runt.
ROOMY = Geometry(size=140, zone_size=32, zone_capacity=24, conventional=((0, 1),), max_active_zones=2)
ROOMY_PROGRAM = "w1:10 f w2:24 w3:3 f w3:4 r1 f w1:17 f3 w4:9"


def left_behind(case: str, geometry: Geometry = GEOMETRY, program: str = PROGRAM) -> tuple[bytearray, bytes]:
    end, boot_id = CASES[case]
    memory = fresh_memory(geometry)
    world = World(MemoryBacking(memory))
    world.image.save_faults(b"[]", durably=True)
    world.run(program + end)
    # A copy, as the killed process' maps would keep the original from being resized.
    return bytearray(memory), boot_id


def wrong(memory: bytearray, boot_id: bytes) -> list[Finding]:
    """What is not as it should be."""
    findings = check_backing(MemoryBacking(memory), len(memory), boot_id)
    return [finding for finding in findings if finding.severity is not Severity.INFO]


def zones_of(memory: bytearray, boot_id: bytes) -> Snapshot:
    """What a device that is opened has."""
    image = Image.load(MemoryBacking(memory), len(memory), boot_id, readonly=True)
    ZonedDevice(image)
    return snapshot(image, memory)


def planned(memory: bytearray, boot_id: bytes) -> Plan:
    return plan_repair(MemoryBacking(memory), len(memory), boot_id)


def repair(memory: bytearray, boot_id: bytes) -> Plan:
    """Repair *memory* and check all that holds of every repair: the data, the backup, the result."""
    former = bytes(memory)
    backing = MemoryBacking(memory)
    plan = planned(memory, boot_id)
    backup = list(backup_lines(backing, plan))
    execute(backing, plan)
    assert memory[: HEADER.metadata_offset] == former[: HEADER.metadata_offset]
    assert wrong(memory, boot_id) == []
    assert not planned(memory, boot_id).done
    assert put_back(memory, backup) == former
    return plan


def put_back(memory: bytearray, backup: list[str]) -> bytes:
    """Do what ``xxd -r`` and ``truncate -s`` do."""
    former = bytearray(memory)
    length = int(backup[0].split()[-3])
    former.extend(bytes(max(length - len(former), 0)))
    for line in backup[1:]:
        offset, row = line.split(":")
        data = bytes.fromhex(row)
        former[int(offset, 16) : int(offset, 16) + len(data)] = data
    return bytes(former[:length])


def flip(memory: bytearray, kind: SectionKind, copy: int = 0, at: int = 60) -> None:
    memory[HEADER.section(kind, copy).offset + at] ^= 0x10


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_done_to_what_is_sound(case: str) -> None:
    memory, boot_id = left_behind(case)
    plan = planned(memory, boot_id)
    assert (plan.steps, plan.done, plan.lost) == ((), (), ())


# -- every byte -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "step", "copies"),
    [("clean", 1, (0, 1, 0)), ("clean", 5, (1, 0, 1)), ("killed", 11, (0, 1, 0)), ("power cut", 11, (0, 0, 1))],
)
def test_every_byte_of_header_state_and_table(case: str, step: int, copies: tuple[int, int, int]) -> None:
    """The same byte of one copy of each at once: each is found and repaired, whatever the others say."""
    memory, boot_id = left_behind(case)
    right = zones_of(memory, boot_id)
    sound = bytes(memory)
    rng = random.Random(step)
    kinds = (SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE)
    places = [HEADER.section(kind, copy).offset for kind, copy in zip(kinds, copies, strict=True)]
    plans = set()
    for at in range(0, BLOCK_BYTES, step):
        for place in places:
            memory[place + at] ^= rng.randrange(1, 256)
        assert {(finding.section, finding.copy) for finding in wrong(memory, boot_id)} == set(
            zip(kinds, copies, strict=True)
        )
        assert zones_of(memory, boot_id) == right
        plans.add(planned(memory, boot_id))
        if at == 0:
            repair(memory, boot_id)
            assert zones_of(memory, boot_id) == right
            memory[:] = sound
        for place in places:
            memory[place + at] = sound[place + at]
    # What is written, and that is all that was damaged, is the same in every case.
    assert len(plans) == 1


def in_use(memory: bytearray) -> int:
    """Length of the records in the journal, in bytes."""
    section = HEADER.section(SectionKind.JOURNAL)
    content = bytes(memory[section.offset : section.offset + section.length])
    return round_up(len(content.rstrip(b"\0")), 512)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [("clean", 1), ("killed", 7), ("power cut", 7)])
@pytest.mark.parametrize("copy", [0, 1])
def test_every_byte_of_the_journal(case: str, step: int, copy: int) -> None:
    memory, boot_id = left_behind(case)
    right = zones_of(memory, boot_id)
    sound = bytes(memory)
    start = HEADER.section(SectionKind.JOURNAL, copy).offset
    # Records are not written anew, so that what is there matters to every repair.
    for at in range(0, in_use(memory), step):
        memory[start + at] ^= 0x81
        findings = wrong(memory, boot_id)
        assert [(finding.section, finding.copy) for finding in findings] == [(SectionKind.JOURNAL, copy)]
        plan = planned(memory, boot_id)
        assert (len(plan.steps), plan.lost) == (5, ())
        if at % 45 == 0:
            repair(memory, boot_id)
        assert zones_of(memory, boot_id) == right
        memory[:] = sound


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_byte_of_the_rest(case: str) -> None:
    """The same byte of all sectors at once: of what was never used, of logs and statistics, and of the faults."""
    memory, boot_id = left_behind(case)
    right = zones_of(memory, boot_id)
    sound = bytes(memory)
    journals, faults = (
        [HEADER.section(kind, copy) for copy in (0, 1)] for kind in (SectionKind.JOURNAL, SectionKind.FAULTS)
    )
    logs = [HEADER.section(kind) for kind in (SectionKind.REFUSALS, SectionKind.COUNTERS)]
    used = in_use(memory)
    unused = [(section.offset + used, section.length - used) for section in journals]
    unused += [(section.offset, section.length) for section in logs]
    for at in range(0, 512, 1 if case == "clean" else 5):
        for runs in (unused, *([(section.offset, section.length)] for section in faults)):
            places = [place for offset, length in runs for place in range(offset + at, offset + length, 512)]
            for place in places:
                memory[place] ^= 0x81
            findings = wrong(memory, boot_id)
            assert [finding.section for finding in findings] == ([] if runs is unused else [SectionKind.FAULTS])
            plan = planned(memory, boot_id)
            assert (len(plan.steps), plan.lost) == (len(findings), ())
            assert zones_of(memory, boot_id) == right
            for place in places:
                memory[place] = sound[place]


@pytest.mark.parametrize("case", CASES)
def test_every_byte_of_the_live_table(case: str) -> None:
    memory, boot_id = left_behind(case)
    right = zones_of(memory, boot_id)
    sound = bytes(memory)
    live = HEADER.section(SectionKind.LIVE).offset
    for at in range(8 * GEOMETRY.nr_zones + 8):
        memory[live + at] ^= 0x24
        if case == "killed" and at < 8 * GEOMETRY.nr_zones:
            assert wrong(memory, boot_id)[0].severity is Severity.ERROR
            plan = repair(memory, boot_id)
            zone_no = at // 8
            assert plan.lost == (f"what changed after the last completed flush in zone {zone_no}",)
            # Zone 3 was only open at the last flush, its data came later.
            lost = (Condition.EMPTY, b"") if zone_no == 3 else right[zone_no]
            after = zones_of(memory, boot_id)
            assert after[zone_no][1] == lost[1]
            assert [zone for other, zone in enumerate(after) if other != zone_no] == [
                zone for other, zone in enumerate(right) if other != zone_no
            ]
            memory[:] = sound
        else:
            assert not planned(memory, boot_id).done
            assert zones_of(memory, boot_id) == right
            memory[live + at] = sound[live + at]


# -- every length -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [("clean", 1), ("killed", 5), ("power cut", 5)])
def test_every_length_of_the_metadata(case: str, step: int) -> None:
    """All lengths within what the sections hold, around all boundaries of blocks, and some of the zeros between.

    With every byte that is not zero as the last one and as the first that is gone, that is all that a cut can leave.
    """
    cuts = Cuts(case)
    lengths = {HEADER.file_bytes - 1}
    for section in HEADER.sections:
        start, end = section.offset, section.offset + section.length
        held = start + len(cuts.memory[start:end].rstrip(b"\0"))
        lengths.update(range(start, held, step), range(held, end, 4099))
        lengths.update(at + more for at in range(start, end, BLOCK_BYTES) for more in (-1, 0, 1))
    lengths.update(at + more for at in cuts.telling for more in (0, 1))
    for length in sorted(lengths):
        cuts.check(length)
    assert len(cuts.known) > 300


class Cuts:
    """An image that is cut to many lengths. Each is checked, and repaired if none before it comes to the same end."""

    def __init__(self, case: str) -> None:
        self.memory, self.boot_id = left_behind(case)
        self.right = zones_of(self.memory, self.boot_id)
        #: A file that goes up to here has all that is to be known of the zones.
        self.enough = HEADER.section(SectionKind.REFUSALS if case == "killed" else SectionKind.LIVE).offset
        #: Where the metadata are not zero.
        self.telling = [at for at in range(HEADER.metadata_offset, len(self.memory)) if self.memory[at]]
        #: What the ends of the repairs depend on: how many of these bytes there are, and what is done.
        self.known: set[object] = set()

    def check(self, length: int) -> None:
        start = HEADER.metadata_offset
        cut = self.memory[:length]
        assert wrong(cut, self.boot_id)[0].severity is Severity.ERROR
        if length < start + 192:
            with pytest.raises(BadMagicError, match="no copy of a zonefs_emu header can be read"):
                planned(cut, self.boot_id)
            return
        try:
            plan = planned(cut, self.boot_id)
        except BadMagicError:
            # The list of conventional zones was cut: they are in the header only.
            assert length < start + 1032
            return
        assert plan.done[0] == f"the file was made longer again, from {length} to {HEADER.file_bytes} bytes"
        end = (bisect_left(self.telling, length), plan.steps, plan.done[1:], plan.lost)
        if end in self.known:
            return
        self.known.add(end)
        assert repair(cut, self.boot_id) == plan
        assert len(cut) == HEADER.file_bytes
        if length >= self.enough:
            assert zones_of(cut, self.boot_id) == self.right


@pytest.mark.parametrize("tail", [b"x", bytes(511), b"\x89ZBD\r\n\x1a\n", b"x" * 4096, bytes(8192) + b"y" * 5000])
def test_what_was_appended_is_cut_off(tail: bytes) -> None:
    memory, boot_id = left_behind("clean")
    right = zones_of(memory, boot_id)
    memory += tail
    plan = repair(memory, boot_id)
    assert len(memory) == HEADER.file_bytes
    assert zones_of(memory, boot_id) == right
    assert (plan.steps, plan.lost) == ((), ())


# -- both copies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [SectionKind.HEADER, SectionKind.STATE, SectionKind.TABLE, SectionKind.JOURNAL])
def test_damage_to_both_copies(case: str, kind: SectionKind) -> None:
    memory, boot_id = left_behind(case)
    right = zones_of(memory, boot_id)
    flip(memory, kind, 0)
    flip(memory, kind, 1, 61)
    assert wrong(memory, boot_id)[0].severity is Severity.ERROR
    plan = repair(memory, boot_id)
    after = zones_of(memory, boot_id)
    # Data that were flushed are always there.
    flushed = (1, 2) if case == "killed" and kind is SectionKind.STATE else range(1, 6)
    assert all(after[zone_no][1].startswith(right[zone_no][1]) for zone_no in flushed)
    if case == "clean" or kind is SectionKind.HEADER:
        assert (after, plan.lost) == (right, ())


def test_faults_in_neither_copy_are_lost() -> None:
    memory, boot_id = left_behind("clean")
    for copy in (0, 1):
        flip(memory, SectionKind.FAULTS, copy)
    plan = repair(memory, boot_id)
    assert plan.lost == ("the injected faults",)
    assert plan.done == tuple(
        f"the {name} copy of the fault table was written anew, empty" for name in ("first", "second")
    )


def test_what_is_not_for_this_version_is_left_alone() -> None:
    memory, boot_id = left_behind("clean")
    for copy in (0, 1):
        section = HEADER.section(SectionKind.HEADER, copy)
        block = encode_header(replace(HEADER, read_only_compatible=4), copy)
        memory[section.offset : section.offset + len(block)] = block
    with pytest.raises(UnsupportedVersionError, match=r"features 0x4 .* only be read, not repaired"):
        planned(memory, boot_id)


@pytest.mark.parametrize("case", CASES)
def test_random_damage(case: str) -> None:
    """Whole sectors of the metadata overwritten. After a clean stop no data are left beyond a write pointer."""
    memory, boot_id = left_behind(case, ROOMY, ROOMY_PROGRAM)
    header = plan_header(ROOMY, uuid=UUID_OF_TESTS)
    right = Image.load(MemoryBacking(memory), len(memory), boot_id, readonly=True)
    sound = bytes(memory)
    rng = random.Random(case)
    # The logs, which are most of it, tell nothing.
    telling = [section for section in header.sections if section.kind.name in {"HEADER", "STATE", "TABLE", "LIVE"}]
    repaired = 0
    for _ in range(120):
        for section in rng.sample(telling, rng.randrange(1, 5)):
            at = section.offset + 512 * rng.randrange(section.length // 512 if rng.random() < 0.2 else 1)
            memory[at : at + 512] = rng.choice((rng.randbytes(512), bytes(512)))
        for copy in (0, 1):
            if rng.random() < 0.5:
                journal = header.section(SectionKind.JOURNAL, copy).offset + 512 * rng.randrange(4)
                memory[journal : journal + 512] = rng.randbytes(512)
        try:
            plan = planned(memory, boot_id)
        except BadMagicError:
            memory[:] = sound
            continue
        execute(MemoryBacking(memory), plan)
        assert wrong(memory, boot_id) == []
        assert memory[: header.metadata_offset] == sound[: header.metadata_offset]
        after = Image.load(MemoryBacking(memory), len(memory), boot_id, readonly=True)
        if case == "clean":
            assert all(now >= then for now, then in zip(after.wps, right.wps, strict=True)), plan
        repaired += 1
        memory[:] = sound
    assert repaired > 60


# -- interrupted ------------------------------------------------------------------------------------------------------

DAMAGE = {
    "table": [(SectionKind.TABLE, 0), (SectionKind.TABLE, 1)],
    "journal": [(SectionKind.JOURNAL, 0), (SectionKind.JOURNAL, 1)],
    "states": [(SectionKind.STATE, 0), (SectionKind.STATE, 1)],
    "live": [(SectionKind.LIVE, 0)],
    "headers": [(SectionKind.HEADER, 0), (SectionKind.HEADER, 1), (SectionKind.FAULTS, 0)],
    "all": list(product((SectionKind.STATE, SectionKind.TABLE, SectionKind.LIVE, SectionKind.HEADER), (0, 1)))[:-1],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_power_may_go_at_any_instant_of_a_repair(case: str, damage: str) -> None:
    memory, boot_id = left_behind(case)
    for kind, copy in DAMAGE[damage]:
        if kind is not SectionKind.LIVE or not copy:
            flip(memory, kind, copy, at=(17 if kind is SectionKind.LIVE else 60 + copy))
    del memory[HEADER.file_bytes - 3000 :]
    start = bytes(memory)
    backing = CrashBacking(memory)
    execute(backing, planned(memory, boot_id))
    right = zones_of(memory, boot_id)
    cuts = 0
    for cut in backing.power_cuts(random.Random(1), limit=12):
        # This host may run on (the process was killed), or have lost power.
        for after in (boot_id, NEXT_BOOT):
            content = bytearray(cut.content)
            execute(MemoryBacking(content), planned(content, after))
            assert wrong(content, after) == []
            found = zones_of(content, after)
            if after == boot_id:
                assert found == right, cut.position
            assert content[: HEADER.metadata_offset] == start[: HEADER.metadata_offset]
        cuts += 1
    assert cuts > 10


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    ZonedDevice.create(path, ROOMY, uuid=UUID_OF_TESTS)
    device = ZonedDevice.open(path)
    port = device.port("test", VIRTIO)
    assert not port.write(32, 9, [b"d" * 9 * 512])
    assert not port.write(64, 24, [b"f" * 24 * 512])
    device.close()
    return path


def spoil(path: Path, *kinds: SectionKind) -> bytes:
    """Overwrite the first sector of all sections of *kinds*, and return what the file is then."""
    with path.open("r+b") as file:
        for section in plan_header(ROOMY, uuid=UUID_OF_TESTS).sections:
            if section.kind in kinds:
                file.seek(section.offset)
                file.write(b"\xa5" * 512)
    return path.read_bytes()


def test_a_file_and_back_again(path: Path) -> None:
    data = path.read_bytes()[: 140 * 512]
    spoil(path, SectionKind.TABLE, SectionKind.STATE, SectionKind.JOURNAL, SectionKind.LIVE)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5000)
    former = path.read_bytes()
    repair = repair_image(path)
    assert repair.before[0].severity is Severity.ERROR
    assert repair.backup == path.with_name("a.img.backup-1")
    assert [finding for finding in repair.after if finding.severity is not Severity.INFO] == []
    assert check_image(path) == list(repair.after)
    image = Image.open(path, readonly=True)
    # 9 sectors were written; the file system gives blocks of at least 8.
    assert list(image.conds) == [0, 4, 14, 1, 1]
    assert list(image.wps) == [0, 16, 24, 0, 0]
    image.backing.close()
    assert path.read_bytes()[: 140 * 512] == data
    assert repair_image(path).backup is None
    assert put_back(bytearray(path.read_bytes()), repair.backup.read_text().splitlines()) == former


@pytest.mark.skipif(shutil.which("xxd") is None, reason="needs xxd")
def test_xxd_puts_it_back(path: Path) -> None:
    former = spoil(path, SectionKind.TABLE, SectionKind.FAULTS) + b"more" * 500
    path.write_bytes(former)
    backup = repair_image(path).backup
    assert backup is not None
    assert path.read_bytes() != former
    subprocess.run(["xxd", "-r", backup, path], check=True)
    assert path.read_bytes() == former


def test_backups_are_numbered(path: Path) -> None:
    for number in (1, 2):
        spoil(path, SectionKind.STATE)
        backup = repair_image(path).backup
        assert backup is not None
        assert backup.name == f"a.img.backup-{number}"


def test_without_a_backup_nothing_is_changed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = spoil(path, SectionKind.STATE)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zonefs_emu.persist.repair.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        repair_image(path)
    assert path.read_bytes() == former
    assert list(path.parent.glob("*.backup-*")) == []


def test_an_image_in_use_is_refused(path: Path) -> None:
    image = Image.open(path, owner="vgchange")
    with pytest.raises(ImageBusyError, match=r"in use by vgchange \(pid \d+\), and is repaired only when nothing uses"):
        repair_image(path)
    image.close()
    backing = FileBacking.open(path, readonly=True)
    with pytest.raises(ImageBusyError, match="in use by another process"):
        repair_image(path)
    backing.close()
