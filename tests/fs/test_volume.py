"""zonefs without a mount: sizes, checks in the kernel's order, accounting, recovery. Real images, no FUSE."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.fs.conftest import (
    APPEND_DIRECT,
    BLOCK,
    CAPACITY,
    RW_DIRECT,
    SHAPES,
    UUID_1,
    Bench,
    blocks,
    cnv,
    geometry,
    read,
    refused,
    seq,
)
from tests.requires import requires
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import BadMagicError, CorruptImageError, Status, UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.fs import mkfs, volume
from zonefs_emu.fs.files import Handle, ZoneFile
from zonefs_emu.fs.options import ErrorPolicy, parse_options
from zonefs_emu.fs.rules import ZonefsRule
from zonefs_emu.fs.superblock import SuperBlock, encode
from zonefs_emu.fs.volume import Volume
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

POLICIES: Final = [policy.value for policy in ErrorPolicy]
DAY_NS: Final = 24 * 3600 * 10**9


def files(mounted: Volume) -> list[ZoneFile]:
    return [mounted.file(group.zones(file_no)[0]) for group in mounted.tree.groups for file_no in range(group.nr_files)]


def consistent(mounted: Volume) -> None:
    """What is counted on the way equals what a count over all files gives."""
    everything = files(mounted)
    assert mounted.used_bytes == sum(file.size for file in everything)
    assert mounted.total_bytes == sum(file.capacity for file in everything)
    assert mounted.nr_active_files == sum(file.active for file in everything)
    assert mounted.nr_wro_files == sum(file.sequential and file.nr_writers > 0 for file in everything)
    assert all(file.wp == file.size for file in everything if file.sequential)


# -- 00xx: mounting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_0010_a_fresh_device_of_every_shape(make_bench: Callable[..., Bench], shape: str) -> None:
    mounted = make_bench(shape).mount()
    expected = SHAPES[shape]
    everything = files(mounted)
    assert len(everything) == expected.nr_zones - 1
    for file in everything:
        assert file.capacity == expected.zone_cap(file.zone_no) * 512
        assert file.size == (0 if file.sequential else file.capacity)
        assert file.sequential != expected.is_conventional(file.zone_no)
        assert file.mode == 0o640
    assert mounted.max_file_bytes == max(file.capacity for file in everything)
    consistent(mounted)


@pytest.mark.parametrize("shape", SHAPES)
def test_0011_a_zone_of_every_shape_is_filled_and_read(make_bench: Callable[..., Bench], shape: str) -> None:
    bench = make_bench(shape)
    mounted = bench.mount()
    for file in files(mounted):
        handle = mounted.open(file, RW_DIRECT)
        block = mounted.block_bytes
        data = b"".join(bytes([1 + i % 255]) * block for i in range(file.capacity // block))
        offset = 0
        while offset < file.capacity:
            offset += mounted.write(handle, offset, data[offset : offset + 3 * block])
        assert read(mounted, handle, 0, 2 * file.capacity) == data
        mounted.release(handle)
        if file.sequential:
            assert bench.cond(file.zone_no) is Condition.FULL
            if mounted.max_active_files:
                mounted.truncate(file, 0)
    consistent(mounted)


def test_0012_sizes_come_from_the_zones(bench: Bench) -> None:
    bench.write_raw(2, 2 * BLOCK)
    bench.write_raw(3, CAPACITY)
    bench.write_raw(4, BLOCK)
    assert not bench.raw.manage(Operation.FINISH, bench.raw.geometry.zone_start(4))
    mounted = bench.mount()
    assert [file.size for file in files(mounted)] == [CAPACITY, 2 * BLOCK, CAPACITY, CAPACITY, 0, 0, 0]
    assert mounted.statistics().nr_active_seq_files == 1
    consistent(mounted)


@pytest.mark.parametrize("portion", [1, 3, 4096])
def test_0013_open_zones_are_closed_at_mount(bench: Bench, monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    monkeypatch.setattr(volume, "_REPORT_ZONES", portion)
    bench.write_raw(2, BLOCK)  # implicitly open
    for zone_no in (3, 4):
        assert not bench.raw.manage(Operation.OPEN, bench.raw.geometry.zone_start(zone_no))
    bench.write_raw(4, BLOCK)
    mounted = bench.mount()
    assert [bench.cond(zone_no) for zone_no in (2, 3, 4)] == [Condition.CLOSED, Condition.EMPTY, Condition.CLOSED]
    assert mounted.nr_active_files == 2
    consistent(mounted)


def test_0014_a_zone_that_cannot_be_closed_fails_the_mount(bench: Bench) -> None:
    bench.write_raw(2, BLOCK)
    bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.CLOSE}), first_zone=2, nr_zones=1))
    with pytest.raises(UsageError, match=r"zone 2 is open and cannot be closed \(IO_ERROR\)"):
        bench.mount()


def test_0015_lost_zones_at_mount(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(geometry(conventional=((0, 4),)))
    for zone_no in (4, 5, 6):
        bench.write_raw(zone_no, BLOCK)
    for zone_no, cond in ((1, "READONLY"), (2, "OFFLINE"), (4, "READONLY"), (5, "OFFLINE")):
        bench.set_cond(zone_no, Condition[cond])
    mounted = bench.mount()
    assert [(file.path, file.size, file.mode, file.immutable) for file in files(mounted)] == [
        ("cnv/0", CAPACITY, 0, True),
        ("cnv/1", 0, 0, True),
        ("cnv/2", CAPACITY, 0o640, False),
        ("seq/0", 0, 0, True),
        ("seq/1", 0, 0, True),
        ("seq/2", BLOCK, 0o640, False),
        ("seq/3", 0, 0o640, False),
    ]
    assert not mounted.readonly
    assert mounted.nr_active_files == 1
    consistent(mounted)
    handle = mounted.open(cnv(mounted, 0), os.O_RDONLY)
    with refused(errno.EPERM):
        mounted.read(handle, 0, BLOCK)
    for flags in (os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
        with refused(errno.EPERM):
            mounted.open(seq(mounted, 1), flags)


@pytest.mark.parametrize(("lost", "size", "mode"), [(None, 3, 0o640), ("READONLY", 3, 0), ("OFFLINE", 0, 0)])
def test_0016_aggregated_conventional_zones(
    make_bench: Callable[..., Bench], lost: str | None, size: int, mode: int
) -> None:
    bench = make_bench(geometry(conventional=((0, 4), (6, 1))), "aggr_cnv")
    if lost:
        bench.set_cond(2, Condition[lost])
    mounted = bench.mount()
    file = cnv(mounted, 0)
    assert (file.zone_no, file.capacity, file.size, file.mode) == (1, 3 * CAPACITY, size * CAPACITY, mode)
    assert cnv(mounted, 1).zone_no == 6
    assert mounted.max_file_bytes == 3 * CAPACITY
    consistent(mounted)
    if not lost:
        handle = mounted.open(file, RW_DIRECT)
        data = blocks(1, b"a") + blocks(2, b"b")
        assert mounted.write(handle, CAPACITY - BLOCK, data) == len(data)
        assert read(mounted, handle, CAPACITY - BLOCK, 3 * BLOCK) == data


def test_0017_owner_and_permissions(make_bench: Callable[..., Bench]) -> None:
    given = seq(make_bench("plain", "uid=12,gid=34,perm=4777").mount(owner=(5, 6)))
    assert (given.uid, given.gid, given.mode) == (12, 34, 0o4777)
    mounted = make_bench().mount(owner=(5, 6))
    assert (seq(mounted).uid, seq(mounted).gid, seq(mounted).mode) == (5, 6, 0o640)
    assert (mounted.root.uid, mounted.directories["seq"].gid, mounted.root.mode) == (5, 6, 0o555)


def test_0018_without_a_sound_super_block_nothing_is_mounted(bench: Bench) -> None:
    assert not bench.raw.write(0, 8, (b"S" + bytes(4095),))
    with pytest.raises(BadMagicError):
        bench.mount()
    block = bytearray(encode(SuperBlock(uuid=UUID_1)))
    block[200] = 1
    assert not bench.raw.write(0, 8, (block,))
    with pytest.raises(CorruptImageError):
        bench.mount()
    bench.set_cond(0, Condition.OFFLINE)
    with pytest.raises(UsageError, match=r"cannot be read \(ZONE_OFFLINE\)"):
        bench.mount()


def test_a_device_of_one_zone_has_no_files(tmp_path: Path) -> None:
    ZonedDevice.create(tmp_path / "image", geometry(size=128, conventional=()), uuid=UUID_1)
    device = ZonedDevice.open(tmp_path / "image")
    port = device.port("zonefs", VIRTIO)
    mkfs.format_device(port, SuperBlock(uuid=UUID_1))
    with pytest.raises(UsageError, match="no zone is left for files"):
        Volume(port, parse_options(""))
    device.close()


def test_0019_explicit_open_needs_a_limit(make_bench: Callable[..., Bench]) -> None:
    assert not make_bench().mount("explicit-open").explicit_open
    assert make_bench("active-limit").mount("explicit-open").explicit_open
    assert make_bench("open-limit").mount("explicit-open").explicit_open


def test_0020_options_are_of_one_mount(bench: Bench) -> None:
    mounted = bench.mount("errors=repair,ro")
    with refused(errno.EROFS):
        mounted.open(seq(mounted), RW_DIRECT)
    mounted = bench.mount()
    mounted.open(seq(mounted), RW_DIRECT)
    assert mounted.errors is ErrorPolicy.REMOUNT_RO


def test_0021_a_read_only_image_mounts_read_only(bench: Bench) -> None:
    bench.write_raw(2, BLOCK)
    bench.device.close()
    device = ZonedDevice.open(bench.path, readonly=True)
    mounted = Volume(device.port("zonefs", VIRTIO), parse_options(""))
    assert mounted.readonly
    assert seq(mounted).size == BLOCK
    with refused(errno.EROFS):
        mounted.open(seq(mounted), RW_DIRECT)
    device.close()
    bench.device = ZonedDevice.open(bench.path)


# -- 02xx: conventional files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_RDWR, RW_DIRECT])
def test_0210_conventional_files_take_writes_anywhere(bench: Bench, flags: int) -> None:
    mounted = bench.mount()
    handle = mounted.open(cnv(mounted), flags)
    for block_no in (5, 0, 5, 15):
        assert mounted.write(handle, block_no * BLOCK, blocks(1, bytes([65 + block_no]))) == BLOCK
    assert read(mounted, handle, 4 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + blocks(1, b"F")
    assert mounted.write(handle, CAPACITY - BLOCK, blocks(3, b"z")) == BLOCK
    with refused(errno.EFBIG):
        mounted.write(handle, CAPACITY, blocks(1))
    consistent(mounted)


def test_0211_buffered_writes_of_parts_of_blocks(bench: Bench) -> None:
    mounted = bench.mount()
    handle = mounted.open(cnv(mounted), os.O_RDWR)
    model = bytearray(CAPACITY)
    for offset, count in ((0, 1), (4095, 2), (100, 5000), (3 * BLOCK, 7), (CAPACITY - 3, 3)):
        data = bytes([offset % 250 + 1]) * count
        assert mounted.write(handle, offset, data) == count
        model[offset : offset + count] = data
    assert mounted.write(handle, CAPACITY - 2, b"1234") == 2
    model[-2:] = b"12"
    assert read(mounted, handle, 0, CAPACITY) == model
    assert read(mounted, handle, 4090, 10) == model[4090:4100]


def test_0212_conventional_files_cannot_be_appended_or_truncated(bench: Bench) -> None:
    mounted = bench.mount()
    file = cnv(mounted)
    for flags in (APPEND_DIRECT, os.O_WRONLY | os.O_APPEND):
        with refused(errno.EINVAL):
            mounted.write(mounted.open(file, flags), CAPACITY, blocks(1))
    for size in (0, BLOCK, CAPACITY):
        with refused(errno.EPERM):
            mounted.truncate(file, size)
    with refused(errno.EFBIG):
        mounted.truncate(file, CAPACITY + 1)
    with refused(errno.EPERM):
        mounted.open(file, os.O_WRONLY | os.O_TRUNC)
    assert file.nr_writers == 0


def test_0213_direct_io_is_in_blocks(bench: Bench) -> None:
    mounted = bench.mount()
    handle = mounted.open(cnv(mounted), RW_DIRECT)
    for offset, count in ((0, 512), (512, BLOCK), (BLOCK, BLOCK + 1)):
        with refused(errno.EINVAL):
            mounted.write(handle, offset, b"x" * count)
        with refused(errno.EINVAL):
            mounted.read(handle, offset, count)


# -- 03xx: sequential files -----------------------------------------------------------------------------------


def test_0310_sequential_files_are_written_at_their_end(bench: Bench) -> None:
    mounted = bench.mount()
    file = seq(mounted)
    handle = mounted.open(file, RW_DIRECT)
    assert mounted.write(handle, 0, blocks(2, b"a")) == 2 * BLOCK
    for offset in (0, BLOCK, 3 * BLOCK):
        with refused(errno.EINVAL):
            mounted.write(handle, offset, blocks(1))
    assert mounted.write(handle, 2 * BLOCK, blocks(1, b"b")) == BLOCK
    assert (file.size, bench.cond(2)) == (3 * BLOCK, Condition.IMP_OPEN)
    assert read(mounted, handle, BLOCK, 9 * BLOCK) == blocks(1, b"a") + blocks(1, b"b")
    assert not mounted.readonly  # a rule was broken; nothing failed
    consistent(mounted)


def test_0311_only_direct_writes(bench: Bench) -> None:
    mounted = bench.mount()
    handle = mounted.open(seq(mounted), os.O_RDWR)
    with refused(errno.EIO):
        mounted.write(handle, 0, blocks(1))
    # The position is looked at first, the caller's, which is not the end that O_APPEND means.
    with refused(errno.EFBIG):
        mounted.write(handle, CAPACITY, blocks(1))
    with refused(errno.EIO):
        mounted.write(mounted.open(seq(mounted), os.O_WRONLY | os.O_APPEND), CAPACITY, blocks(1))


def test_0312_append_goes_by_the_write_pointer(bench: Bench) -> None:
    mounted = bench.mount()
    file = seq(mounted)
    handle = mounted.open(file, APPEND_DIRECT)
    for stale in (0, 0, 5 * BLOCK):
        assert mounted.write(handle, stale, blocks(2)) == 2 * BLOCK
    assert file.size == 6 * BLOCK
    assert mounted.write(handle, 0, b"x" * CAPACITY) == CAPACITY - 6 * BLOCK
    with refused(errno.EFBIG):
        mounted.write(handle, 0, blocks(1))
    with refused(errno.EFBIG):
        mounted.write(handle, CAPACITY, blocks(1))


def test_0313_a_write_across_the_capacity_is_short(make_bench: Callable[..., Bench]) -> None:
    mounted = make_bench("capacity").mount()
    capacity = 96 * 512
    handle = mounted.open(seq(mounted), RW_DIRECT)
    assert mounted.write(handle, 0, blocks(10)) == 10 * BLOCK
    # Aligned is what is left after the cut.
    assert mounted.write(handle, 10 * BLOCK, b"x" * (2 * BLOCK + 100)) == 2 * BLOCK
    assert seq(mounted).size == capacity
    with refused(errno.EINVAL):
        mounted.write(handle, 0, blocks(1))
    consistent(mounted)


@pytest.mark.parametrize(("offset", "count"), [(0, 100), (0, BLOCK + 512), (512, BLOCK)])
def test_0314_writes_are_whole_blocks(bench: Bench, offset: int, count: int) -> None:
    mounted = bench.mount()
    with refused(errno.EINVAL):
        mounted.write(mounted.open(seq(mounted), RW_DIRECT), offset, b"x" * count)
    assert bench.cond(2) is Condition.EMPTY


def test_0315_reads_are_cut_at_the_end_then_aligned(bench: Bench) -> None:
    mounted = bench.mount()
    file = seq(mounted)
    mounted.write(mounted.open(file, RW_DIRECT), 0, blocks(1))
    handle = mounted.open(file, os.O_RDONLY | os.O_DIRECT)
    assert read(mounted, handle, 0, 3 * BLOCK + 100) == blocks(1)
    assert read(mounted, handle, BLOCK, BLOCK) == b""
    assert read(mounted, handle, CAPACITY * 2, BLOCK) == b""
    with refused(errno.EINVAL):
        mounted.read(handle, 0, 100)
    buffered = mounted.open(file, os.O_RDONLY)
    assert read(mounted, buffered, 10, 100) == b"x" * 100
    assert read(mounted, buffered, BLOCK - 1, 100) == b"x"


def test_0316_large_reads(make_bench: Callable[..., Bench]) -> None:
    zone = 4 << 11
    mounted = make_bench(geometry(size=3 * zone, zone_size=zone, zone_capacity=zone, conventional=())).mount()
    handle = mounted.open(seq(mounted), RW_DIRECT)
    data = os.urandom(3 << 20)
    assert mounted.write(handle, 0, data) == len(data)
    assert read(mounted, handle, 0, 1 << 30) == data


def test_0317_plain_reads_and_writes_are_compiled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    requires("walker")
    mounted = bench.mount()
    handle = mounted.open(seq(mounted), RW_DIRECT)
    assert mounted.write(handle, 0, blocks(1, b"a")) == BLOCK  # opens the zone
    for command in ("read", "write"):
        monkeypatch.setattr(mounted.port, command, None)
    assert mounted.write(handle, BLOCK, blocks(2, b"b")) == 2 * BLOCK
    assert read(mounted, handle, 0, 9 * BLOCK) == blocks(1, b"a") + blocks(2, b"b")
    consistent(mounted)


def test_0320_truncate_to_zero_resets(bench: Bench) -> None:
    mounted = bench.mount()
    file = seq(mounted)
    handle = mounted.open(file, RW_DIRECT)
    mounted.write(handle, 0, blocks(3))
    mounted.truncate(file, 0)
    assert (file.size, bench.cond(2)) == (0, Condition.EMPTY)
    assert mounted.write(handle, 0, blocks(1)) == BLOCK
    mounted.open(file, os.O_RDONLY | os.O_TRUNC)
    assert (file.size, bench.cond(2)) == (0, Condition.EMPTY)
    consistent(mounted)


def test_0321_truncate_to_the_capacity_finishes(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("capacity")
    mounted = bench.mount()
    for file_no, count in ((0, 0), (1, 2)):
        file = seq(mounted, file_no)
        handle = mounted.open(file, RW_DIRECT)
        if count:
            mounted.write(handle, 0, blocks(count))
        mounted.truncate(file, file.capacity)
        assert (file.size, bench.cond(file.zone_no)) == (96 * 512, Condition.FULL)
        assert read(mounted, handle, 0, CAPACITY) == blocks(count) + bytes(96 * 512 - count * BLOCK)
        with refused(errno.EFBIG):
            mounted.write(handle, file.capacity, blocks(1))
    consistent(mounted)


def test_0322_other_sizes_are_refused(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("capacity")
    mounted = bench.mount()
    file = seq(mounted)
    mounted.write(mounted.open(file, RW_DIRECT), 0, blocks(2))
    # The largest file is conventional: up to its size EPERM, then EFBIG. The own size is no exception.
    for size, number in (
        (BLOCK, errno.EPERM),
        (2 * BLOCK, errno.EPERM),
        (CAPACITY, errno.EPERM),
        (CAPACITY + 1, errno.EFBIG),
    ):
        with refused(number):
            mounted.truncate(file, size)
    assert file.size == 2 * BLOCK


def test_0323_truncate_to_what_it_is_asks_nothing_of_the_device(bench: Bench) -> None:
    mounted = bench.mount()
    bench.set_cond(2, Condition.OFFLINE)
    mounted.truncate(seq(mounted), 0)
    bench.set_cond(3, Condition.OFFLINE)
    file = seq(mounted, 2)
    mounted.write(mounted.open(file, RW_DIRECT), 0, b"x" * CAPACITY)
    bench.set_cond(4, Condition.READONLY)
    mounted.truncate(file, CAPACITY)


def test_0324_what_the_device_says_to_a_reset_is_returned(bench: Bench) -> None:
    mounted = bench.mount()
    file = seq(mounted)
    mounted.write(mounted.open(file, RW_DIRECT), 0, blocks(2))
    bench.set_cond(2, Condition.READONLY)
    with refused(errno.EIO):
        mounted.truncate(file, 0)
    # Truncating is no I/O: nothing is looked at, nothing is marked.
    assert (file.size, file.immutable, mounted.readonly) == (2 * BLOCK, False, False)


# -- 03xx: open files -----------------------------------------------------------------------------------------


def test_0330_writers_are_counted_by_file(bench: Bench) -> None:
    mounted = bench.mount()
    first = mounted.open(seq(mounted, 0), RW_DIRECT)
    second = mounted.open(seq(mounted, 0), os.O_WRONLY)
    mounted.open(seq(mounted, 1), os.O_RDONLY)
    mounted.open(cnv(mounted), os.O_RDWR)
    assert mounted.statistics().nr_wro_seq_files == 1
    third = mounted.open(seq(mounted, 1), RW_DIRECT)
    assert mounted.statistics().nr_wro_seq_files == 2
    for handle in (first, third, second):
        mounted.release(handle)
    assert mounted.statistics().nr_wro_seq_files == 0
    consistent(mounted)


def test_0331_explicit_open_opens_and_closes_zones(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open")
    handle = mounted.open(seq(mounted), RW_DIRECT)
    assert bench.cond(2) is Condition.EXP_OPEN
    assert mounted.statistics().nr_active_seq_files == 1
    again = mounted.open(seq(mounted), RW_DIRECT)
    mounted.release(handle)
    assert bench.cond(2) is Condition.EXP_OPEN
    mounted.release(again)
    assert bench.cond(2) is Condition.EMPTY  # nothing was written: reset, not closed
    handle = mounted.open(seq(mounted), RW_DIRECT)
    mounted.write(handle, 0, blocks(1))
    mounted.release(handle)
    assert bench.cond(2) is Condition.CLOSED
    assert mounted.statistics().nr_active_seq_files == 1
    consistent(mounted)


def test_0332_explicit_open_has_a_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open")
    handles = [mounted.open(seq(mounted, i), RW_DIRECT) for i in range(2)]
    with refused(errno.EBUSY):
        mounted.open(seq(mounted, 2), RW_DIRECT)
    # A full file counts too, though its zone is not opened.
    mounted.open(seq(mounted, 1), RW_DIRECT)
    mounted.release(handles[0])
    mounted.open(seq(mounted, 2), RW_DIRECT)
    consistent(mounted)


def test_0333_explicit_open_meets_the_active_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("active-limit")
    bench.write_raw(5, BLOCK)
    bench.write_raw(6, BLOCK)
    mounted = bench.mount("explicit-open")
    with refused(errno.EOVERFLOW):
        mounted.open(seq(mounted), RW_DIRECT)
    assert mounted.statistics().nr_wro_seq_files == 0
    assert not mounted.readonly
    consistent(mounted)


def test_0334_explicit_open_meets_other_users_of_the_open_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("open-limit")
    mounted = bench.mount("explicit-open")
    for zone_no in (5, 6):
        assert not bench.raw.manage(Operation.OPEN, bench.raw.geometry.zone_start(zone_no))
    with refused(errno.ETOOMANYREFS):
        mounted.open(seq(mounted), RW_DIRECT)
    consistent(mounted)


def test_0335_explicit_open_and_truncate(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open")
    file = seq(mounted)
    handle = mounted.open(file, RW_DIRECT)
    mounted.write(handle, 0, blocks(1))
    mounted.truncate(file, 0)
    assert (bench.cond(2), bench.raw.zone(2).wp, file.zone_open) == (Condition.EXP_OPEN, 256, True)
    mounted.truncate(file, CAPACITY)
    assert (bench.cond(2), file.zone_open) == (Condition.FULL, False)
    assert mounted.statistics().nr_active_seq_files == 0
    mounted.release(handle)
    assert bench.cond(2) is Condition.FULL
    # A full zone is opened without asking the device, and stays what it is.
    mounted.release(mounted.open(file, RW_DIRECT))
    assert bench.cond(2) is Condition.FULL
    consistent(mounted)


def test_0336_a_zone_written_full_needs_no_closing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open")
    handle = mounted.open(seq(mounted), RW_DIRECT)
    mounted.write(handle, 0, b"x" * CAPACITY)
    assert mounted.statistics().nr_active_seq_files == 0
    mounted.release(handle)
    assert bench.cond(2) is Condition.FULL
    consistent(mounted)


def test_0337_a_zone_that_cannot_be_closed_stops_writing(
    make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]
) -> None:
    expect_warning("seq/0: its zone could not be closed")
    expect_warning("read-only from now on")
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open,errors=repair")
    handle = mounted.open(seq(mounted), RW_DIRECT)
    mounted.write(handle, 0, blocks(1))
    bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.CLOSE})))
    mounted.release(handle)
    assert mounted.readonly
    assert mounted.statistics().nr_wro_seq_files == 0


def test_0338_unmounting_closes_zones(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    mounted = bench.mount("explicit-open")
    for i in range(2):
        mounted.open(seq(mounted, i), RW_DIRECT)
    mounted.write(mounted.open(seq(mounted, 1), RW_DIRECT), 0, blocks(1))
    mounted.close()
    assert (bench.cond(2), bench.cond(3)) == (Condition.EMPTY, Condition.CLOSED)
    assert mounted.statistics().nr_wro_seq_files == 0


def test_0339_without_explicit_open_a_write_meets_the_active_limit(
    make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]
) -> None:
    expect_warning("read-only from now on")
    bench = make_bench("active-limit")
    mounted = bench.mount()
    for i in range(2):
        mounted.write(mounted.open(seq(mounted, i), RW_DIRECT), 0, blocks(1))
    handle = mounted.open(seq(mounted, 2), RW_DIRECT)
    with refused(errno.EOVERFLOW):
        mounted.write(handle, 0, blocks(1))
    assert mounted.readonly  # a failed write is a failed write
    assert mounted.statistics().nr_active_seq_files == 2
    consistent(mounted)


# -- 05xx: attributes -----------------------------------------------------------------------------------------


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 1000

    def __call__(self) -> int:
        return self.now_ns


def test_0510_times(make_bench: Callable[..., Bench]) -> None:
    clock = Clock()
    mounted = make_bench().mount(now_ns=clock)
    file = seq(mounted)
    handle = mounted.open(file, RW_DIRECT)
    clock.now_ns = 2000
    mounted.write(handle, 0, blocks(1))
    mounted.truncate(file, 0)
    mounted.write(handle, 0, blocks(1))
    assert (file.atime_ns, file.mtime_ns, file.ctime_ns) == (1000, 1000, 1000)
    for clock.now_ns in (3000, 4000, 3000 + DAY_NS - 1):  # relatime: the first read after a change counts
        mounted.read(handle, 0, BLOCK)
        assert (file.atime_ns, file.mtime_ns) == (3000, 1000)
    clock.now_ns = 3000 + DAY_NS  # and one a day
    mounted.read(handle, 0, BLOCK)
    assert file.atime_ns == 3000 + DAY_NS
    clock.now_ns += 1
    mounted.open(file, os.O_RDWR | os.O_TRUNC)
    assert (file.atime_ns, file.mtime_ns, file.ctime_ns) == (3000 + DAY_NS, clock.now_ns, clock.now_ns)


def test_0510_o_noatime(make_bench: Callable[..., Bench]) -> None:
    clock = Clock()
    mounted = make_bench().mount(now_ns=clock)
    file = seq(mounted)
    mounted.write(mounted.open(file, RW_DIRECT), 0, blocks(1))
    clock.now_ns = 2000
    mounted.read(mounted.open(file, os.O_RDONLY | os.O_NOATIME), 0, BLOCK)
    assert file.atime_ns == 1000
    mounted.read(mounted.open(file, os.O_RDONLY), 0, BLOCK)
    assert file.atime_ns == 2000


@pytest.mark.parametrize(("options", "noted"), [("", True), ("noatime", False), ("nodiratime", False), ("ro", False)])
def test_0510_listing_a_directory_is_an_access(bench: Bench, options: str, noted: bool) -> None:
    clock = Clock()
    mounted = bench.mount(options, now_ns=clock)
    clock.now_ns = 2000
    mounted.touch_directory(mounted.root)
    assert mounted.root.atime_ns == (2000 if noted else 1000)


@pytest.mark.parametrize("options", ["noatime", "ro"])
def test_0511_reads_leave_no_trace_where_they_must_not(bench: Bench, options: str) -> None:
    bench.write_raw(2, BLOCK)
    clock = Clock()
    mounted = bench.mount(options, now_ns=clock)
    clock.now_ns = 2000
    mounted.read(mounted.open(seq(mounted), os.O_RDONLY), 0, BLOCK)
    assert seq(mounted).atime_ns == 1000


def test_0512_read_only_mount(bench: Bench) -> None:
    bench.write_raw(2, BLOCK)
    mounted = bench.mount("ro")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        for file in (seq(mounted), cnv(mounted)):
            with refused(errno.EROFS):
                mounted.open(file, flags)
    handle = mounted.open(seq(mounted), os.O_RDONLY)
    assert read(mounted, handle, 0, BLOCK) == blocks(1, b"r")
    mounted.check_sync(seq(mounted))


# -- 06xx: I/O errors -----------------------------------------------------------------------------------------


class Case:
    """A sequential file with two blocks, open for reading and writing, on a mount with some policy."""

    def __init__(self, bench: Bench, options: str) -> None:
        self.bench = bench
        self.mounted = bench.mount(options)
        self.file = seq(self.mounted)
        self.handle: Handle = self.mounted.open(self.file, RW_DIRECT)
        self.mounted.write(self.handle, 0, blocks(2))

    def fail(self, operation: Operation, **more: int) -> None:
        effect = Effect.PARTIAL if more else Effect.FAIL
        fault = Fault(effect=effect, operations=frozenset({operation}), first_zone=2, nr_zones=1, **more)  # type: ignore[arg-type]  # numbers by name
        self.bench.device.inject(fault)

    def write(self) -> None:
        self.mounted.write(self.handle, self.file.wp, blocks(4))

    def read(self) -> None:
        self.mounted.read(self.handle, 0, BLOCK)

    def state(self) -> tuple[int, int, bool, bool]:
        """Size in blocks, mode, immutable, fs read-only."""
        consistent(self.mounted)
        return self.file.size // BLOCK, self.file.mode, self.file.immutable, self.mounted.readonly


OUTCOMES: Final = {
    # what happens: {policy: (size in blocks, mode, immutable, fs read-only)}
    "read-only zone": {
        "remount-ro": (2, 0o440, True, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (2, 0o440, True, False),
    },
    "offline zone": {
        "remount-ro": (0, 0, True, True),
        "zone-ro": (0, 0, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (0, 0, True, False),
    },
    "failed write": {
        "remount-ro": (2, 0o640, False, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (2, 0o640, False, False),
    },
    "partial write": {
        "remount-ro": (2, 0o640, False, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (3, 0o640, False, False),
    },
    "more behind the back": {
        "remount-ro": (2, 0o640, False, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (4, 0o640, False, False),
    },
    "reset behind the back": {
        "remount-ro": (0, 0o640, False, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (0, 0o640, False, False),
    },
    "finish behind the back": {
        "remount-ro": (2, 0o640, False, True),
        "zone-ro": (2, 0o440, True, False),
        "zone-offline": (0, 0, True, False),
        "repair": (16, 0o640, False, False),
    },
}


def cause(case: Case, what: str) -> None:
    bench = case.bench
    match what:
        case "read-only zone":
            bench.set_cond(2, Condition.READONLY)
        case "offline zone":
            bench.set_cond(2, Condition.OFFLINE)
        case "failed write":
            case.fail(Operation.WRITE)
        case "partial write":
            case.fail(Operation.WRITE, nr_sectors=8)
        case "more behind the back":
            bench.write_raw(2, 2 * BLOCK)
        case "reset behind the back":
            assert not bench.raw.manage(Operation.RESET, 256)
        case "finish behind the back":
            assert not bench.raw.manage(Operation.FINISH, 256)
        case _:
            pytest.fail(what)


@pytest.fixture
def any_warning(expect_warning: Callable[[str], None], request: pytest.FixtureRequest) -> None:
    """Errors are told, except where they only correct a size."""
    outcome = OUTCOMES[request.getfixturevalue("what")][request.getfixturevalue("policy")]
    if outcome[2]:
        expect_warning("access disabled after an I/O error")
    if outcome[3]:
        expect_warning("read-only from now on")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("what", OUTCOMES)
@pytest.mark.usefixtures("any_warning")
def test_0610_a_failed_write(bench: Bench, what: str, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    cause(case, what)
    # Nothing is noticed before an I/O fails.
    assert case.state() == (2, 0o640, False, False)
    with refused(errno.EIO):
        case.write()
    assert case.state() == OUTCOMES[what][policy]
    size, mode, immutable, readonly = case.state()
    # What is left can be read, and what is not cannot.
    if mode:
        assert len(read(case.mounted, case.handle, 0, CAPACITY)) == size * BLOCK
    else:
        with refused(errno.EPERM):
            case.read()
    if immutable or readonly:
        with refused(errno.EPERM if immutable else errno.EROFS):
            case.write()
        with refused(errno.EROFS if readonly else errno.EPERM):
            case.mounted.open(case.file, RW_DIRECT)
    elif size < 16:
        case.write()
        assert case.state()[0] == size + 4
    if immutable:
        with refused(errno.EPERM):
            case.mounted.check_sync(case.file)
    else:
        case.mounted.check_sync(case.file)


@pytest.mark.parametrize("policy", POLICIES)
def test_0620_a_failed_read_of_a_good_zone_changes_nothing(bench: Bench, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    case.fail(Operation.READ)
    with refused(errno.EIO):
        case.read()
    assert case.state() == (2, 0o640, False, False)
    case.read()


@pytest.mark.parametrize("policy", POLICIES)
def test_0621_reads_of_a_read_only_zone_succeed_and_change_nothing(bench: Bench, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    bench.set_cond(2, Condition.READONLY)
    case.read()
    assert case.state() == (2, 0o640, False, False)


@pytest.mark.parametrize("what", ["offline zone"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.usefixtures("any_warning")
def test_0622_a_read_of_an_offline_zone(bench: Bench, what: str, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    cause(case, what)
    with refused(errno.EIO):
        case.read()
    assert case.state() == OUTCOMES[what][policy]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("what", ["more behind the back", "reset behind the back"])
@pytest.mark.usefixtures("any_warning")
def test_0623_a_failed_read_notices_a_wrong_size(bench: Bench, what: str, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    cause(case, what)
    case.fail(Operation.READ)
    with refused(errno.EIO):
        case.read()
    assert case.state() == OUTCOMES[what][policy]


@pytest.mark.parametrize("what", ["failed write"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.usefixtures("any_warning")
def test_0630_a_failed_flush(bench: Bench, what: str, policy: str) -> None:
    case = Case(bench, f"errors={policy}")
    case.fail(Operation.FLUSH)
    bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.FLUSH})))
    with refused(errno.EIO):
        case.mounted.synced(case.file, case.mounted.port.flush())
    assert case.state() == OUTCOMES[what][policy]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cond", [Condition.READONLY, Condition.OFFLINE])
def test_0640_marks_of_bad_zones_outlive_the_mount_those_of_good_ones_do_not(
    bench: Bench, policy: str, cond: Condition, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("access disabled")
    if policy == "remount-ro":
        expect_warning("read-only from now on")
    case = Case(bench, f"errors={policy}")
    bench.set_cond(2, cond)
    with refused(errno.EIO):
        case.write()
    again = bench.mount(f"errors={policy}")
    assert (seq(again).size, seq(again).mode, again.readonly) == (0, 0, False)


@pytest.mark.parametrize("policy", ["zone-ro", "zone-offline"])
def test_0641_marks_of_good_zones_are_forgotten(
    bench: Bench, policy: str, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("access disabled")
    case = Case(bench, f"errors={policy}")
    case.fail(Operation.WRITE)
    with refused(errno.EIO):
        case.write()
    assert bench.cond(2) is Condition.IMP_OPEN
    again = bench.mount()
    assert (seq(again).size, seq(again).mode) == (2 * BLOCK, 0o640)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("remount-ro", (0o640, CAPACITY, True)),
        ("zone-ro", (0o440, CAPACITY, False)),
        ("zone-offline", (0, 0, False)),
        ("repair", (0o640, CAPACITY, False)),
    ],
)
@pytest.mark.parametrize("flags", [os.O_RDWR, RW_DIRECT])
def test_0650_conventional_zones_are_taken_to_be_good(
    bench: Bench, policy: str, expected: tuple[int, int, bool], flags: int, expect_warning: Callable[[str], None]
) -> None:
    mode, _, readonly = expected
    if readonly:
        expect_warning("read-only from now on")
    elif mode != 0o640:
        expect_warning("access disabled")
    mounted = bench.mount(f"errors={policy}")
    file = cnv(mounted)
    handle = mounted.open(file, flags)
    bench.set_cond(1, Condition.OFFLINE)
    with refused(errno.EIO):
        mounted.read(handle, 0, BLOCK)
    assert (file.mode, file.size, mounted.readonly) == (0o640, CAPACITY, False)
    with refused(errno.EIO):
        mounted.write(handle, 0, blocks(1))
    assert (file.mode, file.size, mounted.readonly) == expected
    consistent(mounted)


def test_0651_a_part_of_a_block_that_cannot_be_read_or_written(bench: Bench) -> None:
    mounted = bench.mount("errors=repair")
    handle = mounted.open(cnv(mounted), os.O_RDWR)
    for operation in (Operation.READ, Operation.WRITE):
        bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({operation}), first_zone=1, nr_zones=1))
        with refused(errno.EIO):
            mounted.write(handle, 0, b"abc")
    assert mounted.write(handle, 0, b"abc") == 3


def test_0660_an_explicitly_open_zone_that_is_lost_is_not_closed(
    make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]
) -> None:
    expect_warning("access disabled")
    bench = make_bench("limits")
    case = Case(bench, "explicit-open,errors=zone-ro")
    bench.set_cond(2, Condition.READONLY)
    with refused(errno.EIO):
        case.write()
    assert not case.file.zone_open
    assert case.mounted.nr_active_files == 0
    case.mounted.release(case.handle)
    assert bench.cond(2) is Condition.READONLY


def test_0661_a_lost_zone_found_when_closing(
    make_bench: Callable[..., Bench], expect_warning: Callable[[str], None]
) -> None:
    expect_warning("access disabled")
    bench = make_bench("limits")
    case = Case(bench, "explicit-open,errors=repair")
    bench.set_cond(2, Condition.OFFLINE)
    case.mounted.release(case.handle)
    assert case.state() == (0, 0, True, False)


def test_0662_after_a_reset_that_cannot_reopen(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench("limits")
    case = Case(bench, "explicit-open")
    bench.device.inject(Fault(effect=Effect.FAIL, operations=frozenset({Operation.OPEN})))
    with refused(errno.EIO):
        case.mounted.truncate(case.file, 0)
    assert (case.file.size, bench.raw.zone(2).wp) == (0, 256)
    consistent(case.mounted)


# -- telling why ----------------------------------------------------------------------------------------------


def test_refusals_are_explained(bench: Bench) -> None:
    mounted = bench.mount()
    handle = mounted.open(seq(mounted), os.O_RDWR)
    for _ in range(3):
        with refused(errno.EIO):
            mounted.write(handle, 0, blocks(1))
    last = bench.device.refusals.last(10)
    assert [(refusal.rule, refusal.status, refusal.zone_no) for refusal in last] == [
        (ZonefsRule.FS_DIRECT_ONLY, Status.UNSUPPORTED, 2)
    ] * 3
    assert EXPLAINER.explain(last[0], bench.device.geometry) == (
        "zonefs: write of 8 sectors at sector 256 was refused (UNSUPPORTED): EIO, a sequential file must be opened "
        "with O_DIRECT to be written; zone 2 is EMPTY with wp at sector 256 and its capacity ends at sector 384 "
        "[zonefs.rst, Sequential zone files]"
    )


def test_a_zone_that_the_drive_finishes_is_a_full_file(make_bench: Callable[..., Bench]) -> None:
    """The mount learns of it by a write that fails, as from any drive; the next mount sees a full file."""
    bench = make_bench(geometry(active_excursions=True))
    mounted = bench.mount("errors=repair")
    file = seq(mounted)
    handle = mounted.open(file, RW_DIRECT)
    assert mounted.write(handle, 0, blocks(1)) == BLOCK
    assert not bench.raw.finish_by_controller(file.zone_no)
    with refused(errno.EIO):
        mounted.write(handle, BLOCK, blocks(1))
    assert file.size == CAPACITY
    again = bench.mount()
    assert seq(again).size == CAPACITY
    consistent(again)
