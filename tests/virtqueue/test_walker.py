"""The compiled ring walker, held equal to Python, and what it takes and what not."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings, strategies as st

from tests.requires import requires
from tests.virtqueue.walker_rig import (
    CAPACITY,
    GEOMETRY,
    LUN_0,
    NR_ZONES,
    QUEUE_SIZE,
    USER,
    ZONE,
    Ask,
    Protocol,
    Rig,
    fuzz,
    same,
)  # fmt: skip
from zonefs_emu.device import oplog
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import Operation
from zonefs_emu.persist.backing import FileBacking
from zonefs_emu.scsi import sense
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.virtio.blk import Blk
from zonefs_emu.virtio.memory import GuestMemory, Region
from zonefs_emu.virtio.scsi import decode_address
from zonefs_emu.virtqueue.dirty_log import DirtyLog
from zonefs_emu.virtqueue.scsi_host import ScsiHost

#: The first sequential zone, and the first write to it, which opens it and so is no plain one.
START: Final = 2 * ZONE
OPENING: Final = Ask("write", START, 8)


@pytest.fixture(autouse=True)
def compiled() -> None:
    requires("walker")


Options = tuple[Protocol, bool, bool]
OPTIONS: Final[list[Options]] = [
    (protocol, is_packed, has_record)
    for protocol in ("blk", "scsi")
    for is_packed in (False, True)
    for has_record in (False, True)
]
MakeRig = Callable[..., Rig]


@pytest.fixture(params=OPTIONS, ids=lambda options: "-".join(map(str, options)))
def make_rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeRig]:
    protocol, is_packed, has_record = request.param
    rigs: list[Rig] = []

    def make(*, geometry: Geometry = GEOMETRY, is_compiled: bool = True) -> Rig:
        rig = Rig(
            tmp_path, protocol, is_packed=is_packed, has_record=has_record, is_compiled=is_compiled, geometry=geometry
        )
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.close()


def good(rig: Rig, asks: list[Ask]) -> None:
    """All *asks* are done."""
    for ask, answer in zip(asks, rig.ask_all(asks), strict=True):
        size = ask.nr_sectors * 512 if ask.operation == "read" else 0
        if rig.protocol == "blk":
            assert (answer.answer, answer.written) == (b"\0", size + 1)
        else:
            assert (answer.answer[:12], answer.written) == (bytes(12), size + 108)


def test_it_takes_plain_reads_and_runs_of_plain_writes(make_rig: MakeRig) -> None:
    rig = make_rig()
    good(rig, [OPENING])
    assert rig.nr_taken == 0
    good(rig, [Ask("write", START + 8 + 4 * index, 4, nr_segments=1 + index) for index in range(8)])
    assert rig.nr_taken == 8
    counters = rig.device.counters.totals()
    assert (counters["written_sectors"], counters["writes"]) == (40, 2), "a run is one command"
    asks = [Ask("read", START + index, 3, nr_segments=1 + index % 3, is_indirect=bool(index % 2)) for index in range(9)]
    good(rig, asks)
    assert rig.nr_taken == 17
    assert rig.device.counters.zone(2)["reads"] == 9
    assert rig.device.machine.zone(2).wp == START + 40
    assert rig.queue.requests == 18


def test_what_is_written_is_what_is_read(make_rig: MakeRig) -> None:
    rig, pure = make_rig(), make_rig(is_compiled=False)
    asks = [OPENING, *(Ask("write", START + 8 + 8 * index, 8, nr_segments=1 + index % 5) for index in range(6))]
    for one in (rig, pure):
        for ask in asks:
            good(one, [ask])
        good(one, [Ask("read", START + index, 56 - index, nr_segments=1 + index) for index in range(8)])
    same((rig, pure))
    assert (rig.nr_taken, pure.nr_taken) == (14, 0)


def test_a_zone_that_becomes_full_is_closed_by_the_machine(make_rig: MakeRig) -> None:
    rig = make_rig()
    good(rig, [OPENING])
    good(rig, [Ask("write", START + at, 16) for at in range(8, CAPACITY, 16)])
    assert rig.nr_taken == 15
    assert rig.device.machine.zone(2).cond.name == "FULL"
    assert rig.device.nr_open == 0


_SECTORS = st.sampled_from([1, 2, 3, 8, 16, 32])
_ZONES = st.integers(2, NR_ZONES - 1)
#: zone_no, what is done there, sectors, segments, indirect, and how far from where it is plain.
_STEPS = st.lists(
    st.tuples(
        _ZONES, st.sampled_from(["write"] * 6 + ["read"] * 5 + ["reset", "finish", "open", "flush", "unknown"]),
        _SECTORS, st.integers(1, 5), st.booleans(), st.sampled_from([0] * 12 + [1, -1, ZONE, 1 << 40]),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options)))
@settings(max_examples=12)
@given(batches=st.lists(_STEPS, min_size=1, max_size=10))
def test_it_answers_as_python_does_and_takes_what_it_should(
    options: Options,
    batches: list[list[tuple[int, str, int, int, bool, int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    protocol, is_packed, has_record = options
    directory = tmp_path_factory.mktemp("equal")
    rigs = [
        Rig(directory, protocol, is_packed=is_packed, has_record=has_record, is_compiled=is_compiled)
        for is_compiled in (True, False)
    ]
    try:
        for batch in batches:
            asks = []
            wps = list(rigs[1].device.machine.wps)
            for zone_no, operation, nr_sectors, nr_segments, is_indirect, away in batch:
                start = zone_no * ZONE
                if operation == "write":
                    ask = Ask(operation, max(start + wps[zone_no] + away, 0), nr_sectors, nr_segments, is_indirect)
                    wps[zone_no] += nr_sectors
                elif operation == "read":
                    length = max(min(nr_sectors, wps[zone_no]), 1)
                    at = start + max(wps[zone_no] - length, 0) + away
                    ask = Ask(operation, max(at, 0), length, nr_segments, is_indirect)
                else:
                    ask = Ask(operation, start if operation in ("reset", "finish", "open") else 0)
                asks.append(ask)
            before, nr_plain = rigs[0].nr_taken, rigs[1].count_plain(asks)
            answers = [rig.ask_all(asks) for rig in rigs]
            assert answers[0] == answers[1]
            same(rigs)
            assert rigs[0].nr_taken - before >= nr_plain
    finally:
        for rig in rigs:
            rig.close()


@pytest.mark.parametrize("seed", range(8))
def test_rings_that_a_driver_has_spoiled(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    nr_taken = 0
    for _ in range(6):
        nr_taken += fuzz(tmp_path, draw, nr_batches=12)[1]
    assert nr_taken


# -- what it does not take ------------------------------------------------------------------------------------------


def opened(rig: Rig) -> Rig:
    """Write twice, so that the zone is open, has data, and the walker is known to work."""
    good(rig, [OPENING])
    good(rig, [Ask("write", START + 8, 8)])
    assert rig.nr_taken == 1
    return rig


def test_an_armed_fault_is_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    fault = rig.device.inject(Fault(operations=frozenset({Operation.READ}), effect=Effect.FAIL, status=Status.IO_ERROR))
    rig.ask_all([Ask("read", START, 8)])
    rig.ask_all([Ask("write", START + 16, 8)])
    assert rig.nr_taken == 1
    rig.device.remove_fault(fault.id)
    good(rig, [Ask("read", START, 8)])
    assert rig.nr_taken == 2


def test_writes_are_pythons_while_there_is_a_write_hook(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    seen: list[tuple[int, int]] = []

    def hook(offset: int, length: int) -> None:
        seen.append((offset, length))

    rig.device.add_write_hook(hook, observer="a test", failed=lambda _: None)
    good(rig, [Ask("write", START + 16, 8)])
    good(rig, [Ask("read", START, 24)])
    assert (seen, rig.nr_taken) == ([((START + 16) * 512, 4096)], 2)
    rig.device.remove_write_hook(hook)
    good(rig, [Ask("write", START + 24, 8)])
    assert rig.nr_taken == 3


def test_listeners_are_told(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    told: list[tuple[int, int]] = []
    rig.device.subscribe(lambda zone_no, nr_zones: told.append((zone_no, nr_zones)))
    good(rig, [Ask("write", START + 16, 8), Ask("write", START + 24, 8)])
    assert (told, rig.nr_taken) == ([(2, 1)], 3)


def test_zones_with_old_bytes_are_pythons_until_a_flush(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    good(rig, [Ask("reset", START), Ask("open", START)])
    good(rig, [Ask("write", START, 4)])
    assert rig.nr_taken == 1
    assert rig.device.machine.zone(2).wp == START + 4
    good(rig, [Ask("write", START + 4, 4)])
    assert rig.nr_taken == 2


def test_conventional_zones_and_the_last_one_are_pythons(make_rig: MakeRig) -> None:
    rig = make_rig()
    last = (NR_ZONES - 1) * ZONE
    for _ in range(2):
        good(rig, [Ask("write", 8, 8)])
    good(rig, [Ask("read", 8, 8)])
    good(rig, [Ask("write", last, 8)])
    good(rig, [Ask("write", last + 8, 8)])
    assert rig.nr_taken == 0
    good(rig, [Ask("read", last, 16)])
    assert rig.nr_taken == 1


def test_zones_that_a_long_command_holds_are_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    with rig.device.lock:
        hold = rig.device.holds.take(5, 6)
    with rig.device.holds.kept(hold):
        good(rig, [Ask("write", START + 16, 8)])
        good(rig, [Ask("read", START, 24)])
    assert rig.nr_taken == 2
    good(rig, [Ask("write", START + 24, 8)])
    assert rig.nr_taken == 3


def test_a_poisoned_image_is_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    rig.device.image.poison = "a test"
    (answer,) = rig.ask_all([Ask("write", START + 16, 8)])
    assert any(answer.answer)
    good(rig, [Ask("read", START, 16)])
    assert rig.nr_taken == 2
    assert rig.device.machine.zone(2).wp == START + 16
    rig.device.image.poison = None


def test_an_image_that_was_let_go_is_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    rig.device.access.let_go()
    (answer,) = rig.ask_all([Ask("read", START, 8)])
    assert any(answer.answer)
    assert rig.nr_taken == 1
    rig.queue.stop()
    rig.start()
    assert rig.queue._walker is None


def test_what_the_host_refuses_is_pythons(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(FileBacking, "descriptor", property(lambda _: reader))
    rig = make_rig()
    good(rig, [OPENING])
    good(rig, [Ask("write", START + 8, 8), Ask("write", START + 16, 8)])
    good(rig, [Ask("read", START, 24)])
    assert rig.nr_taken == 0
    os.close(reader)
    os.close(writer)


def test_buffers_that_are_no_memory_are_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    rig.add_all([Ask("write", START + 16, 8, nr_segments=2)])
    desc = rig.memory[rig.areas[0].offset : rig.areas[0].offset + rig.areas[0].length].cast("Q")
    places = [index for index in range(0, 2 * QUEUE_SIZE, 2) if desc[index] == GUEST_BASE + rig.data_at]
    for index in places:
        desc[index] = 77
    assert places
    rig.serve()
    assert rig.nr_taken == 1
    assert rig.queue.broken


def test_a_port_that_records_is_pythons(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "blk", is_packed=False, has_record=False, is_compiled=True)
    port = rig.virtio_device.port
    with (tmp_path / "log").open("w") as file:
        log = oplog.OpLog(file, rig.device)
        recording = oplog.RecordingPort(rig.device, port.name, port.dialect, log=log)
        handler = rig.virtio_device.handler(0)
        assert isinstance(handler, Blk)
        assert handler.plain is not None
        handler.plain = handler.plain._replace(port=recording)
        rig.queue.stop()
        rig.start()
        assert rig.queue._walker is None
    rig.close()


def test_without_a_write_cache_writes_are_pythons(tmp_path: Path) -> None:
    rig = opened(Rig(tmp_path, "blk", is_packed=False, has_record=False, is_compiled=True))
    rig.virtio_device.accept(rig.features & ~(1 << 9))  # FLUSH
    good(rig, [Ask("write", START + 16, 8)])
    good(rig, [Ask("read", START, 24)])
    assert rig.nr_taken == 2
    rig.close()


def test_a_unit_attention_stops_the_walker(tmp_path: Path) -> None:
    rig = opened(Rig(tmp_path, "scsi", is_packed=False, has_record=False, is_compiled=True))
    assert isinstance(rig.virtio_device, ScsiHost)
    rig.virtio_device.target.attend(sense.POWER_ON)
    (answer,) = rig.ask_all([Ask("read", START, 8)])
    assert answer.answer[10] == 2
    assert rig.nr_taken == 1
    good(rig, [Ask("read", START, 8)])
    assert rig.nr_taken == 2
    rig.close()


@pytest.mark.parametrize(
    ("at", "value", "status"),
    [(1, 0x08, 0), (1, 0x20, 2), (15, 0x04, 2), (13, 9, 0), (13, 7, 0), (9, 1, 0)],
    ids=["FUA", "protection", "NACA", "overrun", "underrun", "another place"],
)
def test_unusual_scsi_commands_are_pythons(
    at: int, value: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.virtqueue import walker_rig

    rigs = [
        opened_by_both(Rig(tmp_path, "scsi", is_packed=False, has_record=False, is_compiled=compiled))
        for compiled in (True, False)
    ]
    plain = walker_rig.cdb

    def changed(ask: Ask) -> bytes:
        cdb = bytearray(plain(ask))
        cdb[at] = value
        return bytes(cdb)

    monkeypatch.setattr(walker_rig, "cdb", changed)
    taken = rigs[0].nr_taken
    answers = [rig.ask_all([Ask("read", START + 2, 8)]) for rig in rigs]
    assert answers[0] == answers[1]
    assert answers[0][0].answer[10] == status
    assert rigs[0].nr_taken - taken == (at == 9)
    same(rigs)
    for rig in rigs:
        rig.close()


def opened_by_both(rig: Rig) -> Rig:
    good(rig, [OPENING])
    good(rig, [Ask("write", START + 8, 8)])
    return rig


def test_other_logical_units_are_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.virtqueue import walker_rig

    rig = opened(Rig(tmp_path, "scsi", is_packed=False, has_record=False, is_compiled=True))
    monkeypatch.setattr(walker_rig, "LUN_0", b"\x01\0\x40\x05\0\0\0\0")
    (answer,) = rig.ask_all([Ask("read", START, 8)])
    assert answer.answer[10] == 2
    assert rig.nr_taken == 1
    assert decode_address(LUN_0) == 0
    rig.close()


def test_memory_that_cannot_be_written_is_pythons(tmp_path: Path) -> None:
    rig = opened(Rig(tmp_path, "blk", is_packed=False, has_record=False, is_compiled=True))
    whole = rig.guest_memory()
    second = whole.regions[1]
    readonly = Region(second.guest_address, second.size, second.user_address, second.view.toreadonly())
    memory = GuestMemory([whole.regions[0], readonly])
    assert rig.queue.ring is not None
    rig.queue.ring.memory = memory
    rig.queue._walker = None
    rig.queue.set_log(None)
    rig.ask_all([Ask("read", START, 8)])  # the answer would be there
    assert rig.nr_taken == 0
    rig.close()


def test_memory_that_grows_is_found(tmp_path: Path) -> None:
    rig = opened(Rig(tmp_path, "blk", is_packed=False, has_record=False, is_compiled=True))
    assert rig.queue.ring is not None
    memory = rig.queue.ring.memory
    extra = memoryview(bytearray(4096))
    GuestMemory.__init__(memory, (*memory.regions, Region(1 << 50, 4096, 5 * USER, extra)))
    good(rig, [Ask("read", START, 8)])
    assert rig.nr_taken == 2
    rig.close()


def test_rings_at_odd_addresses_have_no_walker(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "blk", is_packed=False, has_record=False, is_compiled=True)
    rig.queue.stop()
    assert rig.queue.address is not None
    desc, driver, device, log = rig.queue.address
    rig.queue.address = type(rig.queue.address)(desc + 4, driver, device, log)
    rig.start()
    assert rig.queue._walker is None
    rig.close()


# -- exceptions, recovery ---------------------------------------------------------------------------------------------


def test_a_bug_of_the_machine_costs_one_request(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig())
    port = rig.virtio_device.port
    assert rig.queue._handler is not None
    whole = port.commit
    calls = [0]

    def broken(*arguments: object) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise AssertionError("a bug")
        whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(port, "commit", broken)
    answers = rig.ask_all([Ask("write", START + 16, 8), Ask("write", START + 16, 8), Ask("write", START + 24, 8)])
    assert [bool(any(answer.answer)) for answer in answers] == [True, False, False]
    assert [str(error) for error in rig.contained] == ["a bug"]
    assert rig.nr_taken == 3
    assert rig.device.machine.zone(2).wp == START + 32
    assert not rig.queue.broken


def test_while_a_record_is_recovered_requests_are_pythons(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    if rig.record is None:
        pytest.skip("has no record")
    rig.queue.stop()
    rig.start()
    for index in range(QUEUE_SIZE):
        good(rig, [Ask("read", START, 8)])
        assert rig.nr_taken == 0, index
    good(rig, [Ask("read", START, 8)])
    assert rig.nr_taken == 1


def test_after_a_kill_a_write_that_the_walker_committed_is_not_done_again(make_rig: MakeRig) -> None:
    rig = opened(make_rig())
    if rig.record is None:
        pytest.skip("has no record")
    asks = [Ask("write", START + 16, 8), Ask("write", START + 24, 8)]
    rig.add_all(asks)
    memory, record = bytes(rig.memory), bytes(rig.record)
    rig.serve()
    committed = bytes(rig.record)
    assert rig.nr_taken == 3
    # The ring as it was before it was shown the answers, the record as it was after the change.
    rig.queue.stop()
    rig.memory[: rig.data_at] = memory[: rig.data_at]
    words, before = memoryview(bytearray(committed)).cast("Q"), memoryview(record).cast("Q")
    words[1], words[2] = before[1], before[2]
    rig.record[:] = words.cast("B")
    rig.queue.base = rig.driver.base
    rig.start()
    rig.serve()
    assert [answer.answer[:12].strip(b"\0") for answer in rig.reap()] == [b"", b""]
    assert rig.device.machine.zone(2).wp == START + 32


def test_pages_are_logged_by_python(make_rig: MakeRig) -> None:
    class Log(DirtyLog):
        def __init__(self) -> None:
            """Do not map a log."""

        def mark(self, runs: object) -> None:
            pass

    rig = opened(make_rig())
    rig.queue.set_log(Log())
    assert rig.queue._walker is None
    good(rig, [Ask("read", START, 8)])
    rig.queue.set_log(None)
    good(rig, [Ask("read", START, 8)])
    assert rig.nr_taken == 1
