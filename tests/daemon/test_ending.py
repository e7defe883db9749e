import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.served import CHECKOUT, Served
from zonefs_emu.daemon import control, ending, framing
from zonefs_emu.daemon.rendezvous import connect
from zonefs_emu.fs import mount
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtio.blk_codec import T_IN

# Takes the times of the module as seconds, and what to do as an argument.
SCRIPT = """
import os, signal, sys, threading, time
from zonefs_emu.daemon import ending

ending.END_S = ending.FLUSH_S = 0.1
waiter = ending.EndBySignal()
came = threading.Event()

def in_time():
    with waiter.watching(came.set):
        print("ready", flush=True)
        came.wait()
    print("ended", waiter.came)

def without_a_signal():
    with waiter.watching(came.set):
        pass
    print("ended", waiter.came, came.is_set(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))

def stuck():
    with waiter.watching(came.set):
        print("ready", flush=True)
        time.sleep(3600)

def flush():
    with ending.bounded_flush(bounded=True):
        time.sleep(3600)

def long_flush():
    with ending.bounded_flush(bounded=False):
        time.sleep(0.5)
    print("ended")

def short_flush():
    with ending.bounded_flush(bounded=True):
        pass
    time.sleep(0.5)
    print("ended")

globals()[sys.argv[1]]()
"""


def run(name: str, number: signal.Signals | None = None) -> tuple[int, str, str]:
    """Run a function of the script, with a signal once it is ready; returns its exit code and what it said."""
    command = [sys.executable, "-c", SCRIPT, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if number is not None:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(3):
                process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_what_ends_in_time_ends_in_order(number: signal.Signals) -> None:
    assert run("in_time", number) == (0, "ended True\n", "")


def test_without_a_signal_nothing_is_left_behind() -> None:
    assert run("without_a_signal") == (0, "ended False False set()\n", "")


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_what_is_stuck_is_left(number: signal.Signals) -> None:
    code, _, err = run("stuck", number)
    assert code == 1
    assert "what was under way has not ended within 0 seconds: leaving without a flush" in err
    assert "in stuck" in err


def test_a_flush_that_is_stuck_is_left() -> None:
    code, _, err = run("flush")
    assert code == 1
    assert "the last flush has not ended within 0 seconds: leaving without a flush" in err
    assert "in flush" in err


@pytest.mark.parametrize("name", ["long_flush", "short_flush"])
def test_other_flushes_end(name: str) -> None:
    assert run(name) == (0, "ended\n", "")


def test_five_seconds_are_kept() -> None:
    """What waits for a peer at the end leaves time for the rest."""
    assert max(control.LAST_REPLY_S, mount.UNMOUNT_SECONDS) < ending.END_S < 5


# -- daemons at work --------------------------------------------------------------------------------------------------
#
# All that is under way would go on for much longer than the limit of Served.stop(), which asserts exit code 0.


def wait_for_delays(served: Served, count: int) -> None:
    """Wait until *count* requests are held up by the one fault."""
    while json.loads(served.verb("inject", "--json"))["faults"][0]["seen"] < count:
        threading.Event().wait(0.05)


def cli(served: Served, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "zonefs_emu", *words, str(served.image)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
    )  # fmt: skip


def test_delays_of_verbs_and_guests_are_cut_short(tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64M --zone-size 4M", front_ends=("blk",)) as served:
        served.wait_until_ready()
        served.verb("write", "--zone", "0", data=bytes(4096))
        served.verb("inject", "delay", "--on", "read", "--delay", "3600s", "--every")
        with Frontend(served.blk_socket) as guest, cli(served, "read", "--zone", "0") as verb:
            guest.start()
            guest.queues[0].submit([BlkDriver.header(T_IN, 0)], [4096, 1])
            wait_for_delays(served, 2)
            served.stop()
            verb.wait(60)


@pytest.mark.fuse
@pytest.mark.parametrize("operation", ["read", "flush", "write"])
def test_delays_of_a_mount_are_cut_short(operation: str, tmp_path: Path) -> None:
    served = Served(tmp_path, create="--size 64M --zone-size 4M --nr-conv 2", front_ends=("blk", "mount"))
    served.verb("mkfs")
    served.verb("write", "--zone", "2", data=bytes(4096))
    commands = {
        "read": "dd if=seq/0 bs=4k count=1 iflag=direct",
        "write": "dd if=/dev/zero of=seq/0 bs=4k count=1 oflag=direct,append conv=notrunc",
        "flush": "dd if=/dev/zero of=cnv/0 bs=4k count=1 conv=notrunc,fsync",
    }
    with served:
        served.wait_until_ready()
        served.verb("inject", "delay", "--on", operation, "--delay", "3600s", "--every")
        with subprocess.Popen(
            commands[operation].split(), cwd=served.mount_point, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as user:
            wait_for_delays(served, 1)
            served.stop()
            user.wait(60)


def test_a_client_that_does_not_read_is_left(tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64M --zone-size 4M", front_ends=("blk",)) as served:
        served.wait_until_ready()
        peer = connect(served.image)
        assert peer is not None
        with peer:
            peer.sendall(framing.encode({"verb": "read", "sector": 0, "nr_sectors": 32768}) * 3)
            peer.recv(1)
            served.stop()


def read_on(replies: io.BufferedReader) -> None:
    # What the daemon had not taken of our requests resets the connection.
    with suppress(ConnectionResetError):
        replies.read()


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_long_report_ends_between_portions(reads_on: bool, tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64000M --zone-size 64K --block-size 512", front_ends=("blk",)) as served:
        served.wait_until_ready()
        peer = connect(served.image)
        assert peer is not None
        with peer, peer.makefile("rb") as replies:
            # So many that no report ends before the signal comes.
            peer.sendall(framing.encode({"verb": "report"}) * 1000)
            replies.read(1 << 20)
            reader = threading.Thread(target=read_on, args=(replies,))
            if reads_on:
                reader.start()
            served.stop()
            if reads_on:
                reader.join()


def test_a_dump_ends_between_portions(tmp_path: Path) -> None:
    served = Served(tmp_path, create="--size 1G --zone-size 64M --nr-conv 15", front_ends=("blk",))
    with served.image.open("r+b") as image:
        for _ in range(512):
            image.write(os.urandom(1 << 20))
    target = tmp_path / "copy"
    with served:
        served.wait_until_ready()
        peer = connect(served.image)
        assert peer is not None
        with peer:
            peer.sendall(framing.encode({"verb": "dump", "path": str(target)}))
            peer.recv(1)
            served.stop()
    # Given up, or just done.
    assert not target.exists() or served.cli("check", str(target))
