import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.vhost_user.serving import GEOMETRY, ZONE, create
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.vhost_user.state_transfer import encode, geometry_digest, load, read_all, stream_bytes, write_all


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[tuple[ZonedDevice, ZonedDevice]]:
    """Two of one shape: one with a history, one fresh."""
    first, second = (ZonedDevice.open(create(tmp_path / name)) for name in ("first", "second"))
    port = first.port("test", VIRTIO)
    port.write(2 * ZONE, 5, [bytes(5 * 512)])
    port.manage(Operation.OPEN, 3 * ZONE)
    port.manage(Operation.FINISH, 4 * ZONE)
    port.set_cond(5, Condition.READONLY)
    port.set_cond(6, Condition.OFFLINE)
    port.write(7 * ZONE, 1, [bytes(512)])
    port.manage(Operation.CLOSE, 7 * ZONE)
    yield first, second
    first.close()
    second.close()


def zones(device: ZonedDevice) -> object:
    return device.port("look", VIRTIO).report(0, 32), device.nr_open, device.nr_active


def test_the_state_moves_as_a_whole(devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    first, second = devices
    told: list[tuple[int, int]] = []
    second.subscribe(lambda zone_no, nr_zones: told.append((zone_no, nr_zones)))
    stream = encode(first)
    assert len(stream) == stream_bytes(first.geometry) == 32 + 8 * 32 + 4
    load(second, stream)
    assert zones(second) == zones(first)
    assert told == [(0, 32)]


def test_what_arrived_survives(tmp_path: Path, devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    first, _ = devices
    third = ZonedDevice.open(create(tmp_path / "third"))
    load(third, encode(first))
    expected = zones(first)
    third.image._live.release()
    third.image.refusals.release()
    third.image.backing.close()  # killed
    again = ZonedDevice.open(tmp_path / "third")
    assert zones(again) == expected
    again.close()


def test_another_geometry_is_refused(tmp_path: Path, devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    first, _ = devices
    for number, geometry in enumerate(
        (
            replace(GEOMETRY, zone_capacity=1024),
            replace(GEOMETRY, conventional=((0, 3),)),
            replace(GEOMETRY, size=ZONE * 31),
        )
    ):
        assert geometry_digest(geometry) != geometry_digest(GEOMETRY)
        other = ZonedDevice.open(create(tmp_path / f"other{number}", geometry))
        before = zones(other)
        with pytest.raises(PeerError, match="another geometry"):
            load(other, encode(first))
        assert zones(other) == before
        other.close()


@pytest.mark.parametrize("change", [-8, -3, 5, 8])
def test_a_sound_stream_of_another_length_is_refused(devices: tuple[ZonedDevice, ZonedDevice], change: int) -> None:
    first, second = devices
    body = encode(first)[:-4]
    body = body[:change] if change < 0 else body + bytes(change)
    before = zones(second)
    with pytest.raises(PeerError, match=f"the device state has {288 + 4 + change} bytes, but 32 zones take 292"):
        load(second, body + zlib.crc32(body).to_bytes(4, "little"))
    assert zones(second) == before


def test_every_cut_and_every_flipped_bit_is_found(devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    first, second = devices
    stream = encode(first)
    before = zones(second)
    for length in range(len(stream)):
        with pytest.raises(PeerError):
            load(second, stream[:length])
    for at in range(len(stream)):
        damaged = bytearray(stream)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(PeerError):
            load(second, bytes(damaged))
    assert zones(second) == before


@given(words=st.binary(min_size=256, max_size=256))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_states_that_cannot_be_are_refused(devices: tuple[ZonedDevice, ZonedDevice], words: bytes) -> None:
    """A stream with a good checksum and impossible zones."""
    import zlib

    first, second = devices
    body = encode(first)[:32] + words
    before = zones(second)
    try:
        load(second, body + zlib.crc32(body).to_bytes(4, "little"))
    except PeerError:
        assert zones(second) == before


def test_more_open_zones_than_may_be_are_refused(devices: tuple[ZonedDevice, ZonedDevice]) -> None:
    import zlib

    first, second = devices
    words = bytearray(encode(first)[32:-4])
    for zone_no in range(10, 17):
        words[8 * zone_no] = Condition.EXP_OPEN
    body = encode(first)[:32] + bytes(words)
    with pytest.raises(PeerError, match="cannot be taken over"):
        load(second, body + zlib.crc32(body).to_bytes(4, "little"))


def test_through_a_pipe_with_a_slow_reader() -> None:
    reader, writer = os.pipe()
    stream = os.urandom(1 << 20)

    def write() -> None:
        write_all(writer, stream)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_all(reader, len(stream)) == stream
    thread.join()
    os.close(reader)


@pytest.mark.parametrize("saving", [True, False], ids=["save", "load"])
@pytest.mark.parametrize("in_main", [True, False], ids=["main thread", "thread"])
def test_signals_disturb_nothing(*, saving: bool, in_main: bool) -> None:
    """The peer is slow: before each portion it interrupts the thread that moves the state and waits for its turn."""
    stream = os.urandom(1 << 19)
    reader, writer = os.pipe()
    arrived = bytearray()
    nr_signals = 0
    peer_is_done = threading.Event()

    def note(_number: int, _frame: object) -> None:
        nonlocal nr_signals
        nr_signals += 1

    def move() -> None:
        try:
            if saving:
                write_all(writer, stream)
            else:
                arrived.extend(read_all(reader, len(stream)))
        finally:
            os.close(writer if saving else reader)
            # What is sent to a thread that is gone may end the process.
            assert peer_is_done.wait(60)

    def attend(mover: int) -> None:
        nr_moved = 0
        while nr_moved < len(stream):
            before = nr_signals
            while nr_signals == before:
                # Again and again: one that comes just before the thread begins to wait interrupts nothing, and the
                # handler runs only when something does.
                signal.pthread_kill(mover, signal.SIGUSR1)
                time.sleep(0.0001)
            try:
                if saving:
                    portion = os.read(reader, 1 << 13)
                    arrived.extend(portion)
                    nr_now = len(portion)
                else:
                    nr_now = os.write(writer, stream[nr_moved : nr_moved + (1 << 13)])
            except BrokenPipeError:
                nr_now = 0
            if not nr_now:
                break
            nr_moved += nr_now
        os.close(reader if saving else writer)
        peer_is_done.set()

    # It stays: a signal that is still on its way to a thread would end the process.
    signal.signal(signal.SIGUSR1, note)
    thread: threading.Thread | None = None
    try:
        if in_main:
            thread = threading.Thread(target=attend, args=(threading.get_ident(),))
            thread.start()
            move()
        else:
            thread = threading.Thread(target=move)
            thread.start()
            assert thread.ident is not None
            attend(thread.ident)
    finally:
        if thread is not None:
            thread.join()
    assert arrived == stream
    assert nr_signals >= len(stream) >> 13


def test_a_pipe_that_gives_too_much() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(100))
    with pytest.raises(PeerError, match="more than 50 bytes"):
        read_all(reader, 50)
    os.close(reader)
    os.close(writer)


def test_pipes_that_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zonefs_emu.vhost_user.state_transfer._TIMEOUT_MS", 20)
    reader, writer = os.pipe()
    with pytest.raises(PeerError, match="stopped moving"):
        read_all(reader, 50)
    with pytest.raises(PeerError, match="stopped moving"):
        write_all(writer, bytes(1 << 20))
    os.close(reader)
    with pytest.raises(PeerError, match="Broken pipe"):
        write_all(writer, bytes(1 << 20))
    os.close(writer)
