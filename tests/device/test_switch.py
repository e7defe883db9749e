"""Observers cannot fail a command: whatever of theirs raises, answers and image are the same as without it."""

import errno
import inspect
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from types import CodeType, FrameType
from typing import Final, TypeAlias
from unittest.mock import patch
from uuid import UUID

import pytest

import zonefs_emu
from tests import tracing
from zonefs_emu.device.counters import Counters
from zonefs_emu.device.cut_images import Moment, Plan
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.oplog import record
from zonefs_emu.device.port import Port
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.device.switch import Switch
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.codec.header import SectionKind
from zonefs_emu.persist.codec.words import decode_live
from zonefs_emu.persist.copy import Copy

ExpectWarning: TypeAlias = Callable[[str], None]

ZONE: Final = 64
SHAPE: Final = Geometry(
    size=ZONE * 100, zone_size=ZONE, zone_capacity=48, conventional=((0, 1),), max_append=32, max_open_zones=2,
    max_active_zones=4,
)  # fmt: skip
PACKAGE: Final = str(Path(zonefs_emu.__file__).parent)
#: The files of the observers.
OBSERVERS: Final = frozenset(
    ("counters.py", "refusals.py", "oplog.py", "powercut.py", "outcomes.py", "cut_images.py", "copy.py")
)


def opened(path: Path) -> ZonedDevice:
    if not path.exists():
        ZonedDevice.create(path, SHAPE, uuid=UUID(int=1))
    return ZonedDevice.open(path)


def test_the_first_error_counts_and_is_reported_once() -> None:
    switch = Switch("the counters")
    first, second = ValueError(1), ValueError(2)
    reported: list[tuple[str, Exception]] = []
    switch.put_off(first)
    switch.report_to(lambda *facts: reported.append(facts))
    switch.put_off(second)
    assert (switch.error, reported) == (first, [("the counters", first)])


# -- whatever raises ----------------------------------------------------------------------------------------------


class PlantedError(Exception):
    """No exception of the project's."""


def asked(port: Port) -> Iterator[object]:
    """Ask *port* for one of everything, refusals among it; yields the answers."""
    data = [b"x" * 512 * 8]
    yield port.write(0, 8, data)
    yield port.write(4, 8, data)
    yield port.write(0, 0, [])
    for zone_no in (1, 2, 3):  # the third closes the first
        yield port.write(zone_no * ZONE, 8, data)
    yield port.append(2 * ZONE, 8, data)
    yield port.append(2 * ZONE, 8, data)
    yield port.write(2 * ZONE + 1, 8, data)
    yield port.flush()
    yield port.manage(Operation.FINISH, 3 * ZONE)
    yield port.manage(Operation.RESET, 2 * ZONE)
    yield port.write(2 * ZONE, 8, data)
    yield port.manage(Operation.OPEN, 4 * ZONE)
    yield port.manage(Operation.OPEN, 5 * ZONE)
    yield port.manage(Operation.FINISH, 10 * ZONE, 80)
    yield port.manage_all(Operation.CLOSE)
    yield port.set_cond(95, Condition.OFFLINE)
    yield port.read(95 * ZONE, 8, [bytearray(4096)])
    buffer = bytearray(8192)
    yield port.read(ZONE, 16, [buffer])
    yield bytes(buffer)
    yield port.refusals.refuse(DeviceRule.UNSUPPORTED, None, Status.UNSUPPORTED, request="a request \udcff of bytes")
    port.power_cycle()
    yield port.manage_all(Operation.RESET)
    yield port.flush()


@contextmanager
def held_images() -> Iterator[None]:
    """Hold the thread of the power-cut lab, so that what commands save for it does not depend on how fast it copies."""
    over = threading.Event()
    run = Copy.run

    def held(copy: Copy) -> Iterator[int]:
        if threading.current_thread().name == "power cuts":
            over.wait()
        return run(copy)

    with patch.object(Copy, "run", held):
        try:
            yield
        finally:
            over.set()


class Run:
    """One device with every observer on, asked for one of everything."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        device = opened(directory / "image")
        device.inject(Fault(effect=Effect.FAIL, operations=frozenset((Operation.APPEND,)), nth=2))
        heard: list[object] = []
        device.refusals.listener = heard.append
        with (directory / "log").open("w", encoding="utf-8", buffering=1) as file:
            log = record(device, file)
            port, other = device.port("\udc80front-end", VIRTIO), device.port("other", VIRTIO)
            device.subscribe(lambda *change: heard.append(change), port=other)
            lab = None
            with held_images():
                with suppress(PlantedError):
                    lab = PowerCutLab(device)
                    lab.begin(Plan(directory=directory / "cuts", at=Moment.AFTER_WRITES, nr_writes=5, torn=True))
                copying = dump(device, directory / "dump")
                with suppress(PlantedError):
                    next(copying, None)
                self.answers = list(asked(port))
                with suppress(PlantedError):
                    list(copying)
            device.statistics()
            device.counters.zone(1)
            log.close()
            if lab is not None:
                lab.close()
        self.zones = device.save_zones()
        live = device.image.header.section(SectionKind.LIVE)
        self.live = device.image.backing.pread(8 * SHAPE.nr_zones, live.offset)
        self.off = set(device.unforeseen.observers_off)
        device.close()
        again = opened(directory / "image")
        assert again.image.recovery == ""
        self.kept = again.save_zones()
        again.close()

    def outcome(self) -> tuple[object, ...]:
        return self.answers, self.zones, self.live, self.kept


@cache
def is_boundary(code: CodeType) -> bool:
    """Whether what is raised below *code* ends there."""
    return "except Exception as error:" in inspect.getsource(code)


def is_below_a_boundary(frame: FrameType) -> bool:
    above = frame.f_back
    while above is not None and above.f_code.co_filename.startswith(PACKAGE):
        if is_boundary(above.f_code):
            return True
        above = above.f_back
    return False


@contextmanager
def traced(called: Callable[[FrameType], None]) -> Iterator[None]:
    """Have *called* hear of each call of a function in an observer's file."""

    def trace(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and PurePath(frame.f_code.co_filename).name in OBSERVERS:
            called(frame)

    with tracing.traced(trace):
        yield


def inner(directory: Path) -> tuple[Run, dict[CodeType, int]]:
    """Return the undisturbed run, and how often each function was called that is called below a boundary only."""
    counts: dict[CodeType, int] = {}
    outside: set[CodeType] = set()

    def called(frame: FrameType) -> None:
        counts[frame.f_code] = counts.get(frame.f_code, 0) + 1
        if not is_below_a_boundary(frame):
            outside.add(frame.f_code)

    with traced(called):
        run = Run(directory)
    return run, {code: count for code, count in counts.items() if code not in outside}


def test_whatever_an_observer_raises_changes_nothing(tmp_path: Path, expect_warning: ExpectWarning) -> None:
    expect_warning("switched off")
    quiet, functions = inner(tmp_path / "quiet")
    assert quiet.off == set()
    assert len(functions) > 25
    failed: set[str] = set()
    for number, (target, count) in enumerate(functions.items()):
        for nth in sorted({1, count}):
            left = nth

            def called(frame: FrameType, target: CodeType = target) -> None:
                nonlocal left
                if frame.f_code is target:
                    left -= 1
                    if not left:
                        raise PlantedError

            with traced(called):
                run = Run(tmp_path / f"{number}-{nth}")
            assert left <= 0, target.co_qualname
            assert run.outcome() == quiet.outcome(), target.co_qualname
            failed |= run.off
    assert failed >= {"the counters", "the log of refusals", "the operation log", "the power-cut lab"}


# -- what observers met -------------------------------------------------------------------------------------------


def test_a_bad_sector_under_the_counters_fails_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: ExpectWarning
) -> None:
    expect_warning(r"the counters failed \(bad sector\): switched off")
    device = opened(tmp_path / "image")
    port = device.port("test", VIRTIO)
    assert not port.write(3 * ZONE, 8, [b"x" * 4096])
    device.close()
    device = opened(tmp_path / "image")
    port = device.port("test", VIRTIO)
    section = device.image.header.section(SectionKind.COUNTERS)
    pread = device.image.backing.pread

    def bad(length: int, offset: int) -> bytes:
        if section.offset <= offset < section.offset + section.length:
            raise OSError(errno.EIO, "bad sector")
        return pread(length, offset)

    monkeypatch.setattr(device.image.backing, "pread", bad)
    assert not port.read(3 * ZONE, 8, [bytearray(4096)])
    assert not port.write(5 * ZONE, 8, [b"y" * 4096])
    assert not port.manage(Operation.RESET, 3 * ZONE)
    assert not port.manage(Operation.FINISH, 10 * ZONE, 80)
    assert port.write(5 * ZONE, 8, [b"y" * 4096]) is Status.UNALIGNED_WP
    assert device.unforeseen.observers_off == {"the counters": "bad sector"}
    assert list(device.statistics()) == ["nr_open", "nr_active"]
    live = device.image.header.section(SectionKind.LIVE)
    words = decode_live(pread(8 * SHAPE.nr_zones, live.offset), offset=live.offset)
    assert words == device.save_zones(), "what the machine says survives a kill"
    device.close()


def test_counters_that_cannot_be_read_do_not_keep_an_image_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: ExpectWarning
) -> None:
    expect_warning("the counters failed")
    opened(tmp_path / "image").close()

    def bad(_counters: Counters, _zone_no: int) -> list[int]:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(Counters, "_read_row", bad)
    device = opened(tmp_path / "image")
    assert device.unforeseen.observers_off == {"the counters": "bad sector"}
    assert not device.port("test", VIRTIO).write(0, 8, [b"x" * 4096])
    device.close()


def test_text_that_is_no_utf_8_is_noted(tmp_path: Path) -> None:
    device = opened(tmp_path / "image")
    port = device.port("front\udcffend\0", VIRTIO)
    assert (
        port.refusals.refuse(DeviceRule.UNSUPPORTED, None, Status.UNSUPPORTED, request="CDB \ud800 \0 €" * 50)
        is Status.UNSUPPORTED
    )
    (refusal,) = device.refusals.last(1)
    assert (refusal.front_end, refusal.request[:11]) == ("front\\udcffend", "CDB \\ud800 ")
    assert EXPLAINER.explain(refusal, device.geometry)
    assert device.unforeseen.observers_off == {}
    device.close()


def test_a_listener_that_raises_is_not_called_again(tmp_path: Path, expect_warning: ExpectWarning) -> None:
    expect_warning(r"the zone listener of mount failed \(PlantedError: \): switched off")
    expect_warning(r"the listener of the log of refusals failed \(PlantedError: \): switched off")
    device = opened(tmp_path / "image")
    port, mount = device.port("test", VIRTIO), device.port("mount", VIRTIO)
    calls: list[object] = []

    def bad(*told: object) -> None:
        calls.append(told)
        raise PlantedError

    def bad_too(refusal: Refusal) -> None:
        calls.append(refusal)
        raise PlantedError

    others: list[tuple[int, int]] = []
    device.subscribe(bad, port=mount)
    device.subscribe(lambda *change: others.append(change))
    device.refusals.listener = bad_too
    for offset in (0, 8):
        assert not port.write(ZONE + offset, 8, [b"x" * 4096])
        assert port.write(ZONE, 8, [b"x" * 4096]) is Status.UNALIGNED_WP
    device.power_cycle()
    assert len(calls) == 2
    assert others == [(1, 1), (1, 1), (0, SHAPE.nr_zones)]
    device.close()


class FullFile(io.StringIO):
    """A text file on a disk that has room for one line."""

    def write(self, text: str) -> int:
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def close(self) -> None:
        super().close()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_operation_log_fails_no_command(tmp_path: Path, expect_warning: ExpectWarning) -> None:
    expect_warning(r"the operation log failed \(No space left on device\): switched off")
    device = opened(tmp_path / "image")
    log = record(device, FullFile())
    port = device.port("test", VIRTIO)
    for number in range(3):
        assert not port.write(3 * ZONE + 8 * number, 8, [b"x" * 4096])
    assert device.machine.wps[3] == 24
    assert device.unforeseen.observers_off == {"the operation log": "No space left on device"}
    log.close()
    device.close()


def test_the_lab_sees_no_empty_write_and_what_it_cannot_read_fails_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_warning: ExpectWarning
) -> None:
    expect_warning(r"the power-cut lab failed \(bad sector\): switched off")
    device = opened(tmp_path / "image")
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)
    assert not port.write(3 * ZONE, 0, [])
    assert port.append(4 * ZONE, 0, [b""]) == (Status.OK, 4 * ZONE)
    assert not port.write(0, 0, [])
    assert lab.history().draw(0, torn=True).kept == ()
    assert not port.write(3 * ZONE, 8, [b"x" * 4096])
    assert [lab.history().draw(seed, torn=True).kept for seed in range(9)].count((8,)) > 0

    pread = device.image.backing.pread

    def bad(length: int, offset: int) -> bytes:
        if offset < SHAPE.size * 512:
            raise OSError(errno.EIO, "bad sector")
        return pread(length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(device.image.backing, "pread", bad)
        assert not port.write(0, 8, [b"y" * 4096])
    assert lab.failure == "the power-cut lab failed: OSError: [Errno 5] bad sector"
    with pytest.raises(UsageError, match="the power-cut lab failed"):
        lab.begin(Plan(directory=tmp_path / "cuts", at=Moment.NOW))
    lab.close()
    assert not device.image.poison
    device.close()


def test_a_write_that_the_host_failed_is_none_for_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(tmp_path / "image")
    port = device.port("test", VIRTIO)
    lab = PowerCutLab(device)

    def failing(buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, "bad sector")

    with monkeypatch.context() as patch:
        patch.setattr(device.image.backing, "pwritev", failing)
        assert port.write(3 * ZONE, 8, [b"x" * 4096]) is Status.IO_ERROR
    assert lab.nr_seen == 0
    assert lab.history().draw(0).kept == ()
    device.close()
