"""The counters that last: rows in memory and in the file, and that both together always give the right numbers."""

import errno
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest

from zonefs_emu.device import counters as module
from zonefs_emu.device.counters import Counter, Counters
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.persist.codec.header import COUNTER_ROW_BYTES, Header, SectionKind, plan_header
from zonefs_emu.testing.backings import FailingBacking, MemoryBacking

UUID_HERE: Final = UUID("12345678-1234-5678-1234-567812345678")
NR_ZONES: Final = 3000
GEOMETRY: Final = Geometry(size=8 * NR_ZONES, zone_size=8, zone_capacity=8)
SECOND_NS: Final = 1_000_000_000

Opener = Callable[[], Counters]


@pytest.fixture
def header() -> Header:
    return plan_header(GEOMETRY, uuid=UUID_HERE)


@pytest.fixture
def opened(tmp_path: Path, header: Header) -> Iterator[Opener]:
    """Open the counters of one file, again and again."""
    path = tmp_path / "a.img"
    backing = FileBacking.create(path, header.file_bytes, [])
    yield lambda: Counters(backing, header, readonly=False)
    backing.close()


class Clock:
    """What the counters take for the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 5 * SECOND_NS
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now_ns)


def number(counters: Counters, zone_no: int, counter: Counter) -> int:
    return counters.zone(zone_no)[counter.name.lower()]


def test_a_fresh_image_has_counted_nothing(opened: Opener) -> None:
    counters = opened()
    assert set(counters.totals().values()) == {0}
    assert counters.top(Counter.RESETS, 10) == []
    assert counters.rows == {}


def test_the_device_s_own_counters_are_not_a_zone_s(opened: Opener) -> None:
    device_only = {"FLUSHES", "POWER_CYCLES", "INTERNAL_ERRORS"}
    assert set(Counter.__members__) - {name.upper() for name in opened().zone(0)} == device_only


def test_the_places_of_the_counters_are_part_of_the_format(opened: Opener, header: Header, tmp_path: Path) -> None:
    counters = opened()
    for counter in Counter:
        for _ in range(counter + 1):
            counters.count(2, counter)
    counters.device[Counter.FLUSHES] = 77
    counters.save()
    offset = header.section(SectionKind.COUNTERS).offset
    section = (tmp_path / "a.img").read_bytes()[offset:]
    assert section[11 * 8 : 12 * 8] == (77).to_bytes(8, "little")
    row = section[3 * COUNTER_ROW_BYTES : 4 * COUNTER_ROW_BYTES]
    assert row == b"".join(n.to_bytes(8, "little") for n in (*range(1, 15), 0, 0))


def test_what_was_saved_lasts_and_what_was_not_is_forgotten(opened: Opener) -> None:
    first = opened()
    first.count(5, Counter.RESETS)
    first.device[Counter.POWER_CYCLES] += 1
    first.save()
    first.count(5, Counter.RESETS)
    again = opened()
    assert number(first, 5, Counter.RESETS) == 2
    assert number(again, 5, Counter.RESETS) == 1
    assert again.totals()["power_cycles"] == 1


def test_closing_saves_the_rows(opened: Opener) -> None:
    first = opened()
    first.count(5, Counter.RESETS)
    first.device[Counter.POWER_CYCLES] += 1
    first.close()
    again = opened()
    assert number(again, 5, Counter.RESETS) == 1
    assert again.totals()["power_cycles"] == 1


def test_rows_are_written_back_once_a_second(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    counters = opened()
    counters.count(1, Counter.READS)
    clock.now_ns += SECOND_NS - 1
    counters.save_sometimes()
    assert number(opened(), 1, Counter.READS) == 0
    clock.now_ns += 1
    counters.save_sometimes()
    assert number(opened(), 1, Counter.READS) == 1
    counters.count(1, Counter.READS)
    counters.save_sometimes()
    assert number(opened(), 1, Counter.READS) == 1


def test_many_rows_are_written_back_and_make_room(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_MAX", 4)
    counters = opened()
    for zone_no in range(10):
        counters.count(zone_no, Counter.OPENS)
        assert len(counters.rows) <= 4
    counters.count(0, Counter.OPENS)
    assert [number(counters, zone_no, Counter.OPENS) for zone_no in range(11)] == [2] + 9 * [1] + [0]
    assert counters.totals()["opens"] == 11
    counters.save()
    assert opened().totals()["opens"] == 11


def test_only_what_changed_is_written(header: Header) -> None:
    backing = FailingBacking(bytearray(header.file_bytes))
    counters = Counters(backing, header, readonly=False)
    counters.count(1, Counter.READS)
    counters.count(2, Counter.READS)
    calls = []
    for zone_no in (None, None, 2, None):
        if zone_no is not None:
            counters.count(zone_no, Counter.RESETS)
        before = backing.calls
        counters.save()
        calls.append(backing.calls - before)
    assert calls == [2, 0, 1, 0]
    counters.device[Counter.FLUSHES] += 1
    counters.save()
    assert Counters(backing, header, readonly=True).totals()["flushes"] == 1


def test_a_full_disk_switches_them_off(header: Header) -> None:
    backing = FailingBacking(bytearray(header.file_bytes), fail_at=1, errno=errno.ENOSPC)
    counters = Counters(backing, header, readonly=False)
    reported: list[tuple[str, str | None]] = []
    counters.switch.report_to(lambda name, error: reported.append((name, getattr(error, "strerror", None))))
    counters.count(3, Counter.WRITES)
    counters.save()
    calls = backing.calls
    counters.count(4, Counter.WRITES)
    counters.save()
    counters.count_all(range(500), Counter.FINISHES)
    assert backing.calls == calls, "the section is not touched any more"
    assert reported == [("the counters", "No space left on device")]
    assert (counters.totals(), counters.top(Counter.WRITES, 5), counters.zone(3)) == ({}, [], {})


def test_a_full_disk_under_one_big_command_switches_them_off(header: Header) -> None:
    counters = Counters(
        FailingBacking(bytearray(header.file_bytes), fail_at=1, errno=errno.ENOSPC), header, readonly=False
    )
    counters.count_all(range(500), Counter.FINISHES)
    assert counters.switch.error is not None
    assert counters.totals() == {}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad sector"), ValueError("a bug"), None])
def test_a_section_that_cannot_be_read_switches_them_off(
    header: Header, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """None: the section is cut short."""

    def pread(length: int, offset: int) -> bytes:
        if error is not None:
            raise error
        return b""

    backing = MemoryBacking(bytearray(header.file_bytes))
    first = Counters(backing, header, readonly=False)
    first.count(1, Counter.READS)
    first.save()
    asks: tuple[Callable[[Counters], object], ...] = (
        lambda counters: counters.totals(),
        lambda counters: counters.top(Counter.READS, 5),
        lambda counters: counters.zone(7),
        lambda counters: counters.count(7, Counter.READS),
        lambda counters: counters.count_all(range(500), Counter.READS),
    )
    for ask in asks:
        counters = Counters(backing, header, readonly=False)
        with monkeypatch.context() as patch:
            patch.setattr(backing, "pread", pread)
            ask(counters)
        assert counters.switch.error is not None
        assert counters.totals() == {}
    monkeypatch.setattr(backing, "pread", pread)
    reported: list[str] = []
    Counters(backing, header, readonly=False).switch.report_to(lambda name, _: reported.append(name))
    assert reported == ["the counters"], "what failed before the report was asked for is reported as well"


def test_rows_are_bounded_while_they_are_off(header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_MAX", 4)
    backing = FailingBacking(bytearray(header.file_bytes), fail_at=1, errno=errno.EIO)
    counters = Counters(backing, header, readonly=False)
    for zone_no in range(100):
        counters.count(zone_no, Counter.OPENS)
        assert len(counters.rows) <= 4
    assert counters.switch.error is not None


def test_a_read_only_image_counts_in_memory_only(header: Header) -> None:
    memory = bytearray(header.file_bytes)
    counters = Counters(MemoryBacking(memory), header, readonly=True)
    counters.count(3, Counter.READS)
    counters.save()
    assert number(counters, 3, Counter.READS) == 1
    assert not any(memory)


def test_the_top_zones_come_from_memory_and_file(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_MAX", 3)
    counters = opened()
    for zone_no, times in ((7, 3), (2900, 5), (1, 3), (40, 1), (8, 4)):
        for _ in range(times):
            counters.count(zone_no, Counter.RESETS)
    assert len(counters.rows) < 5
    assert counters.top(Counter.RESETS, 3) == [(2900, 5), (8, 4), (1, 3)]
    assert counters.top(Counter.RESETS, 99) == [(2900, 5), (8, 4), (1, 3), (7, 3), (40, 1)]
    assert counters.top(Counter.READS, 99) == []


def test_untouched_zones_take_no_space(opened: Opener, header: Header, tmp_path: Path) -> None:
    counters = opened()
    counters.count_all(range(0, NR_ZONES, 40), Counter.CLOSES)
    counters.count_all(range(100, 300), Counter.CLOSES)
    counters.count(2999, Counter.CLOSES)
    counters.save()
    backing = FileBacking.peek(tmp_path / "a.img")
    section = header.section(SectionKind.COUNTERS)
    runs = list(backing.extents(section.offset, section.offset + section.length))
    backing.close()
    pages = {
        (zone_no + 1) * COUNTER_ROW_BYTES // 4096 for zone_no in (-1, 2999, *range(0, NR_ZONES, 40), *range(100, 300))
    }
    assert sum(length for _, length in runs) == 4096 * len(pages) < section.length
    assert counters.totals()["closes"] == 75 + 200 + 1


@pytest.mark.parametrize("nr_chunks", [1, 7, 1000], ids=lambda n: f"{n} zones a run")
def test_counting_many_at_once_is_counting_each(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, nr_chunks: int
) -> None:
    """Single counts, many at once, evictions and saves in a drawn order; compared with plain numbers."""
    monkeypatch.setattr(module, "_ROWS_MAX", 50)
    monkeypatch.setattr(module, "_FEW", 8)
    monkeypatch.setattr(module, "_RUN_ROWS", nr_chunks)
    rng = random.Random(nr_chunks)
    counters = opened()
    expected = [0] * NR_ZONES
    for _ in range(200):
        match rng.randrange(4):
            case 0:
                asked = [rng.randrange(NR_ZONES)]
            case 1:
                first = rng.randrange(NR_ZONES)
                asked = list(range(first, min(first + rng.randrange(1, 2000), NR_ZONES)))
            case 2:
                asked = sorted(rng.sample(range(NR_ZONES), rng.randrange(1, 60)))
            case _:
                asked = []
                counters.save()
        if len(asked) == 1:
            counters.count(asked[0], Counter.RESETS)
        else:
            counters.count_all(asked, Counter.RESETS)
        for zone_no in asked:
            expected[zone_no] += 1
    assert counters.totals()["resets"] == sum(expected)
    assert [number(counters, zone_no, Counter.RESETS) for zone_no in range(NR_ZONES)] == expected
    order = sorted(range(NR_ZONES), key=lambda zone_no: (-expected[zone_no], zone_no))
    assert counters.top(Counter.RESETS, 20) == [(zone_no, expected[zone_no]) for zone_no in order[:20]]
    counters.save()
    again = opened()
    assert [number(again, zone_no, Counter.RESETS) for zone_no in range(NR_ZONES)] == expected
    assert (sum(again.totals().values()), again.totals()["resets"]) == (sum(expected), sum(expected))


@pytest.mark.parametrize("nr_zones", [3, 1000])
def test_commands_on_ranges_and_all_zones_count_each_zone(tmp_path: Path, nr_zones: int) -> None:
    geometry = Geometry(size=8 * 2000, zone_size=8, zone_capacity=8, max_open_zones=3, max_active_zones=3)
    ZonedDevice.create(tmp_path / "a.img", geometry, uuid=UUID_HERE)
    device = ZonedDevice.open(tmp_path / "a.img")
    port = device.port("test", VIRTIO)
    assert not port.manage(Operation.FINISH, 80, nr_zones)
    for zone_no in (0, 1, 2):
        assert not port.write(8 * zone_no, 1, [bytes(512)])
    assert not port.manage(Operation.CLOSE, 8)
    assert not port.write(9, 1, [bytes(512)])
    assert not port.manage_all(Operation.RESET)
    statistics = device.statistics()
    assert (statistics["finishes"], statistics["resets"], statistics["closes"]) == (nr_zones, nr_zones + 3, 1)
    assert device.counters.zone(9)["finishes"] == 0
    assert device.counters.zone(10)["finishes"] == device.counters.zone(9 + nr_zones)["finishes"] == 1
    device.close()


def test_zones_closed_to_make_room_were_not_opened(tmp_path: Path) -> None:
    geometry = Geometry(size=8 * 6, zone_size=8, zone_capacity=8, max_open_zones=2, max_active_zones=4)
    ZonedDevice.create(tmp_path / "a.img", geometry, uuid=UUID_HERE)
    device = ZonedDevice.open(tmp_path / "a.img")
    port = device.port("test", VIRTIO)
    for zone_no in (4, 0, 1):  # 4 is closed to make room for 1
        assert not port.write(8 * zone_no, 1, [bytes(512)])
    assert not port.manage(Operation.CLOSE, 0)
    assert not port.manage_all(Operation.OPEN)  # 0 and 4, for which 1 is closed
    assert [zone.cond.name for zone in port.report(0, 5)] == ["EXP_OPEN", "CLOSED", "EMPTY", "EMPTY", "EXP_OPEN"]
    assert [device.counters.zone(zone_no)["opens"] for zone_no in range(5)] == [1, 0, 0, 0, 1]
    assert device.statistics()["implicit_closes"] == 2
    device.close()


@pytest.mark.parametrize("ask", ["zone", "totals", "top", "save"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_what_was_noted_without_the_file_is_counted_before_anything_is_told(
    opened: Opener, ask: str, *, in_memory: bool
) -> None:
    counters = opened()
    if in_memory:
        counters.load(9)
    for _ in range(3):
        counters.note(9, Counter.IMPLICIT_CLOSES)
    assert (9 in counters.rows) is in_memory, "the file is not looked at"
    match ask:
        case "zone":
            assert number(counters, 9, Counter.IMPLICIT_CLOSES) == 3
        case "totals":
            assert counters.totals()["implicit_closes"] == 3
        case "top":
            assert counters.top(Counter.IMPLICIT_CLOSES, 5) == [(9, 3)]
        case _:
            counters.save()
            assert number(opened(), 9, Counter.IMPLICIT_CLOSES) == 3
