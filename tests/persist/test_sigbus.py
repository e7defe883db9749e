"""Mapped memory whose file is cut, for real: the process lives, and the listener knows."""

import mmap
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from zonefs_emu.daemon.client import call
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.persist import sigbus
from zonefs_emu.persist.image import LOST

PAGE = mmap.PAGESIZE


class Mapped:
    """A file of sixteen pages, mapped and watched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"x" * 16 * PAGE)
        with path.open("r+b") as file:
            self.mapping = mmap.mmap(file.fileno(), 16 * PAGE)
        self.view = memoryview(self.mapping)
        self.nr_losses = 0
        self.address = sigbus.watch(self.view, self.lose)

    def lose(self) -> None:
        self.nr_losses += 1


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    mapped = Mapped(tmp_path / "file")
    yield mapped
    sigbus.unwatch(mapped.address)
    mapped.view.release()
    mapped.mapping.close()


def truncate(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def test_a_store_to_a_page_that_is_gone_tells_the_listener(mapped: Mapped) -> None:
    mapped.view[0] = 1
    assert mapped.nr_losses == 0
    truncate(mapped.path, 2 * PAGE)
    mapped.view[PAGE] = 2
    assert mapped.nr_losses == 0
    mapped.view[2 * PAGE] = 3
    mapped.view[2 * PAGE + 1] = 4
    assert (mapped.nr_losses, mapped.view[2 * PAGE], mapped.view[2 * PAGE + 2]) == (1, 3, 0)
    assert mapped.view[5 * PAGE] == 0
    assert mapped.nr_losses == 2
    mapped.view[6 * PAGE - 10 : 8 * PAGE] = bytes(2 * PAGE + 10)
    assert mapped.nr_losses == 4
    assert mapped.path.stat().st_size == 2 * PAGE


def test_any_other_memory_ends_the_process_as_before(tmp_path: Path) -> None:
    program = f"""
import mmap, pathlib
from zonefs_emu.persist import sigbus
path = pathlib.Path({str(tmp_path / "file")!r})
path.write_bytes(bytes(4 * {PAGE}))
with path.open("r+b") as file:
    mapping, other = mmap.mmap(file.fileno(), 0), mmap.mmap(file.fileno(), 0)
    lost = []
    sigbus.watch(memoryview(mapping), lambda: lost.append(1))
    file.truncate(0)
mapping[0] = 1
print(len(lost), flush=True)
other[0] = 1
print("still here", flush=True)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-7, "1\n"), run.stderr


DAEMON = """
import logging, sys
from pathlib import Path
from zonefs_emu.front_ends.known import run
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
run(Path(sys.argv[1]), [], ready=lambda: print("ready", flush=True), owner="a test")
"""


def test_a_daemon_survives_the_cut_of_its_image_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "a.img"
    ZonedDevice.create(
        path, Geometry(size=64 * 64, zone_size=64, zone_capacity=64, conventional=((0, 1),)), uuid=uuid4()
    )
    loaded = threading.Barrier(3)
    ended: list[str] = []

    def load(zone_no: int) -> None:
        number = 0
        with open_target(path) as target:
            while True:
                try:
                    call(target, {"verb": "write", "sector": number % 8 * 8, "zone_no": zone_no}, bytes(4096))
                    call(target, {"verb": "append", "zone_no": zone_no}, bytes(512))
                    call(target, {"verb": "manage", "operation": "reset", "zone_no": zone_no})
                except UsageError as error:
                    ended.append(str(error))
                    return
                number += 1
                if number == 5:
                    loaded.wait()

    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        threads = [threading.Thread(target=load, args=(zone_no,)) for zone_no in (1, 2)]
        for thread in threads:
            thread.start()
        loaded.wait()
        truncate(path, 0)
        for thread in threads:
            thread.join()
        with open_target(path) as target:
            info = call(target, {"verb": "info"})[0]
            refusals = call(target, {"verb": "why"})[0]["refusals"]
        daemon.send_signal(signal.SIGTERM)
        _, errors = daemon.communicate(timeout=60)
    assert daemon.returncode == 0, errors
    assert len(ended) == 2
    assert all("(IO_ERROR)" in sentence and "restore it from a copy" in sentence for sentence in ended)
    assert info["poison"] == LOST
    assert isinstance(refusals, list)
    (refusal,) = refusals
    assert isinstance(refusal, dict)
    assert (refusal["rule"], refusal["status"]) == ("LOST", "IO_ERROR")
    assert [line for line in errors.splitlines() if line.startswith(("WARNING", "ERROR"))] == [f"ERROR {LOST}"]
    assert path.stat().st_size < 64 * 64 * 512, "nothing makes the file whole again"
