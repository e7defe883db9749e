"""The end of a device: closing beside reads, files that are lost."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device.sectors import RESET, Maker, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import PoisonedError, Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.persist.image import LOST, Image


def test_a_read_beside_closing_never_reads_another_file(make_device: Maker, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret--" * 8192)
    for _ in range(30):
        (tmp_path / "a.img").unlink(missing_ok=True)
        device = make_device()
        port = device.port("test", VIRTIO)
        assert not port.write(0, 8, [b"ours----" * 512])
        started = threading.Barrier(4)
        found: set[bytes] = set()
        statuses: set[Status] = set()

        def read(port: Port, started: threading.Barrier, found: set[bytes], statuses: set[Status]) -> None:
            started.wait()
            while not statuses.intersection((Status.IO_ERROR,)):
                buffer = bytearray(4096)
                status = port.read(0, 8, [buffer])
                statuses.add(status)
                if not status:
                    found.add(bytes(buffer[:8]))

        threads = [threading.Thread(target=read, args=(port, started, found, statuses)) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        device.close()
        others = [os.open(secret, os.O_RDONLY) for _ in range(5)]
        for thread in threads:
            thread.join()
        for other in others:
            os.close(other)
        assert found <= {b"ours----"}
        assert statuses <= {Status.OK, Status.IO_ERROR}


def test_a_read_between_letting_the_file_go_and_the_ports(
    make_device: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"secret--" * 8192)
    device = make_device()
    port = device.port("test", VIRTIO)
    assert not port.write(0, 8, [b"ours----" * 512])
    buffer = bytearray(4096)
    close = device.image.close

    def closed() -> None:
        close()
        other = os.open(tmp_path / "secret", os.O_RDONLY)
        assert port.read(0, 8, [buffer]) is Status.IO_ERROR
        assert port.write(0, 8, [b"x" * 4096]) is Status.POISONED
        os.close(other)

    monkeypatch.setattr(device.image, "close", closed)
    device.close()
    assert buffer == bytes(4096)


def test_faults_that_cannot_be_kept_keep_no_lock(make_device: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    device = make_device()
    device.inject(Fault(effect=Effect.RECOMMEND_RESET))

    def failing(data: bytes, offset: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(device.image.backing, "pwrite", failing)
        with pytest.raises(PoisonedError):
            device.close()
    Image.open(device.image.backing.path).close()  # type: ignore[attr-defined]  # a FileBacking


@pytest.mark.parametrize("how", ["emptied", "cut", "overwritten"])
@pytest.mark.parametrize("first", ["write", "reset", "read", "flush", "tick"])
def test_a_file_that_is_lost_is_an_io_error_and_one_line(
    make_device: Maker, expect_warning: Callable[[str], None], caplog: pytest.LogCaptureFixture, how: str, first: str
) -> None:
    expect_warning("the image's file was cut or overwritten by another program while it was in use")
    device = make_device()
    port = device.port("test", VIRTIO)
    assert not write(port, 128, 4)
    path: Path = device.image.backing.path  # type: ignore[attr-defined]  # a FileBacking
    length = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(length - 4096 if how == "cut" else 0)
        if how == "overwritten":
            file.truncate(length)
    cut_behind_the_live_table = how == "cut"
    match first:
        case "write":
            status = write(port, 132, 4)
        case "reset":
            status = port.manage(RESET, 128)
        case "read":
            status = port.read(128, 4, [bytearray(2048)])
        case "flush":
            status = port.flush()
        case _:
            device.look_after_image()
            status = Status.IO_ERROR
    # Of what lies where nothing is missing, a flush or the next look finds out.
    if first in ("write", "reset", "read") and (cut_behind_the_live_table or how == "overwritten"):
        device.look_after_image()
    else:
        assert status is Status.IO_ERROR
    late = device.port("late", VIRTIO)
    for each in (port, late):
        assert each.read(128, 4, [bytearray(2048)]) is Status.IO_ERROR
        assert each.write(136, 4, [bytes(2048)]) is Status.IO_ERROR
        assert each.manage(RESET, 128) is Status.IO_ERROR
        assert each.flush() is Status.IO_ERROR
    assert device.refusals.last(1)[0].rule == DeviceRule.LOST
    assert "restore it from a copy" in EXPLAINER.explain(device.refusals.last(1)[0], device.geometry)
    assert device.image.poison == LOST
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert device.unforeseen.observers_off == {}
    device.close()
    assert path.stat().st_size <= length


def test_a_file_that_got_another_name_or_grew_is_the_same(make_device: Maker, tmp_path: Path) -> None:
    device = make_device()
    port = device.port("test", VIRTIO)
    path = tmp_path / "a.img"
    path.rename(tmp_path / "b.img")
    path.write_bytes(b"another")
    assert not write(port, 128, 4)
    assert not port.flush()
    device.look_after_image()
    assert not device.image.poison
    device.close()
    again = ZonedDevice.open(tmp_path / "b.img")
    assert again.machine.wps[2] == 4
    again.close()
