import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.served import CHECKOUT, Served
from zonefs_emu.daemon import control, ending, framing
from zonefs_emu.daemon.rendezvous import connect
from zonefs_emu.device.faults import FAULTY
from zonefs_emu.front_ends import own_thread
from zonefs_emu.fs import mount
from zonefs_emu.nvme.command import IoOpcode, SendAction
from zonefs_emu.nvme_tcp import server
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.nvme_initiator import NvmeHost
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.vfio_user.vfio_messages import VfioCommand
from zonefs_emu.vhost_user.messages import DeviceStateTransfer, Request
from zonefs_emu.virtio.blk_codec import (
    T_FLUSH,
    T_IN,
    T_OUT,
    T_ZONE_APPEND,
    T_ZONE_CLOSE,
    T_ZONE_FINISH,
    T_ZONE_OPEN,
    T_ZONE_RESET,
)

# Takes the times of the module as seconds, and what to do as an argument.
SCRIPT = """
import os, signal, sys, threading, time
from zonefs_emu.daemon import ending

ending.END_S = ending.FLUSH_S = 0.1
ending.NOTE_S = 0.05
waiter = ending.EndBySignal()
came = threading.Event()

def in_time():
    with waiter, waiter.watching(came.set):
        print("ready", flush=True)
        came.wait()
        sys.stdin.read()  # all signals have come: one after the context would end this process
    print("ended", waiter.came)

def without_a_signal():
    with waiter, waiter.watching(came.set):
        pass
    print("ended", waiter.came, came.is_set(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))

def stuck():
    with waiter.watching(came.set):
        print("ready", flush=True)
        time.sleep(3600)

def after_it():
    with waiter:
        with waiter.watching(came.set):
            pass
        print("ready", flush=True)
        time.sleep(3600)

def last_flush():
    from pathlib import Path
    from zonefs_emu.daemon import session
    from zonefs_emu.device.device import ZonedDevice
    from zonefs_emu.front_ends.known import EXTENSIONS

    ending.FLUSH_S = 60.0
    close = ZonedDevice.close

    def close_slowly(device):
        print("closing", flush=True)
        sys.stdin.readline()
        close(device)

    def ready():
        print("ready", flush=True)

    ZonedDevice.close = close_slowly
    session.run(Path(sys.argv[2]), [], EXTENSIONS, ready=ready, owner="a test")
    print("ended", flush=True)

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
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
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
    assert "what was under way has not ended within 0 seconds: the process ends without a flush" in err
    assert "in stuck" in err


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_second_signal_does_not_interrupt_the_last_flush(number: signal.Signals, image: Path) -> None:
    command, pipe = [sys.executable, "-c", SCRIPT, "last_flush", str(image)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "closing\n"
        process.send_signal(number)
        assert process.communicate("go on\n", timeout=60)[0] == "ended\n"
        assert process.returncode == 0


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_a_signal_during_a_flush_that_is_stuck_is_not_lost(number: signal.Signals) -> None:
    code, _, err = run("after_it", number)
    assert code == 1
    assert err.startswith("the last flush has not ended within 0 seconds: the process ends without a flush")


def test_a_flush_that_is_stuck_is_left() -> None:
    code, _, err = run("flush")
    assert code == 1
    noted, left = err.splitlines()[:2]
    assert noted == "the host's disk has not taken the last flush after 0.05 s: waiting for it, for up to 0 seconds"
    assert left.startswith("the last flush has not ended within 0 seconds: the process ends without a flush")
    assert "in flush" in err


@pytest.mark.parametrize("name", ["long_flush", "short_flush"])
def test_other_flushes_end(name: str) -> None:
    assert run(name) == (0, "ended\n", "")


def test_five_seconds_are_kept() -> None:
    """What waits for a peer at the end leaves time for the rest."""
    two_looks = 2 * own_thread.LOOK_S  # at a thread that a guest may have stopped
    assert max(control.LAST_REPLY_S, mount.UNMOUNT_SECONDS, server.JOIN_S, two_looks) < ending.END_S
    assert ending.END_S + ending.NOTE_S <= 5, "then the log says what the host is waited for"


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


#: Everything that a fault can delay, as requests of virtio-blk, NVMe and the control socket; each of a zone of its own.
BLK_REQUESTS = (
    T_IN, T_OUT, T_ZONE_APPEND, T_ZONE_OPEN, T_ZONE_CLOSE, T_ZONE_FINISH, T_ZONE_RESET, T_FLUSH,
)  # fmt: skip
SENDS = (SendAction.OPEN, SendAction.CLOSE, SendAction.FINISH, SendAction.RESET)
VERBS: list[tuple[dict[str, framing.Json], bytes]] = [
    ({"verb": "read", "sector": 0, "nr_sectors": 8}, b""),
    ({"verb": "write", "zone_no": 1}, bytes(4096)),
    ({"verb": "append", "zone_no": 2}, bytes(4096)),
    ({"verb": "manage", "operation": "open", "zone_no": 3}, b""),
    ({"verb": "manage", "operation": "close", "zone_no": 4}, b""),
    ({"verb": "manage", "operation": "finish", "zone_no": 5}, b""),
    ({"verb": "manage", "operation": "reset", "zone_no": 6}, b""),
    ({"verb": "flush"}, b""),
]
ZONE_SECTORS = 8192


def ask_blk(served: Served, held: ExitStack) -> None:
    """A queue for each request, because a queue carries them out in order."""
    guest = held.enter_context(Frontend(served.blk_socket, nr_queues=len(BLK_REQUESTS)))
    guest.start()
    for queue, kind in zip(guest.queues, BLK_REQUESTS, strict=True):
        data = [bytes(4096)] if kind in (T_OUT, T_ZONE_APPEND) else []
        room = {T_IN: [4096], T_ZONE_APPEND: [8]}.get(kind, [])
        queue.submit([BlkDriver.header(kind, queue.index * ZONE_SECTORS), *data], [*room, 1])


def ask_nvme(served: Served, held: ExitStack) -> None:
    queue = held.enter_context(NvmeHost(*served.nvme())).queue(1)
    zone_blocks = ZONE_SECTORS // 8
    queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 0), room=4096)
    queue.send(IoOpcode.WRITE, nsid=1, cdws=(zone_blocks, 0, 0), data=bytes(4096))
    queue.send(IoOpcode.ZONE_APPEND, nsid=1, cdws=(2 * zone_blocks, 0, 0), data=bytes(4096))
    for zone_no, action in enumerate(SENDS, 3):
        queue.send(IoOpcode.ZONE_SEND, nsid=1, cdws=(zone_no * zone_blocks, 0, 0, action))
    queue.send(IoOpcode.FLUSH, nsid=1)


def ask_verbs(served: Served, held: ExitStack) -> None:
    for request, payload in VERBS:
        peer = connect(served.image)
        assert peer is not None
        held.enter_context(peer).sendall(framing.encode(request, payload))


@pytest.mark.parametrize("ask", [ask_blk, ask_nvme, ask_verbs])
def test_a_delay_of_any_operation_is_cut_short(ask: Callable[[Served, ExitStack], None], tmp_path: Path) -> None:
    """The daemon waits in each of them when the signal comes. Where one lasted, it would leave with exit code 1."""
    served = Served(
        tmp_path, create="--size 64M --zone-size 4M --block-size 4096", front_ends=("blk", "nvme"),
        options=("--queues", str(len(BLK_REQUESTS))),
    )  # fmt: skip
    with served, ExitStack() as held:
        served.wait_until_ready()
        words = [word for operation in FAULTY for word in ("--on", operation.name.lower())]
        served.verb("inject", "delay", *words, "--delay", "3600s", "--every")
        ask(served, held)
        wait_for_delays(served, len(FAULTY))
        served.stop()


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


def test_a_guest_that_fills_its_eventfd_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64M --zone-size 4M", front_ends=("blk",)) as served:
        served.wait_until_ready()
        with Frontend(served.blk_socket) as guest:
            guest.start()
            queue = guest.queues[0]
            assert BlkDriver(queue).read(0, 4096)[0] == 0
            with suppress(BlockingIOError):
                os.eventfd_read(queue.call_fd)
            os.set_blocking(queue.call_fd, True)
            os.eventfd_write(queue.call_fd, (1 << 64) - 2)
            queue.ring.want_call()
            number = queue.submit([BlkDriver.header(T_IN, 0)], [4096, 1])
            while number not in queue.order:
                queue.reap()
            served.stop()


def test_a_client_that_does_not_read_is_left(tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64M --zone-size 4M", front_ends=("blk",)) as served:
        served.wait_until_ready()
        peer = connect(served.image)
        assert peer is not None
        with peer:
            peer.sendall(framing.encode({"verb": "read", "sector": 0, "nr_sectors": 32768}) * 3)
            peer.recv(1)
            served.stop()


def stop_reading_nvme(served: Served, held: ExitStack) -> None:
    """A host that asks for more than its connection holds, and reads none of it."""
    queue = held.enter_context(NvmeHost(*served.nvme())).queue(1)
    for _ in range(100):
        queue.send(IoOpcode.READ, nsid=1, cdws=(0, 0, 31), room=128 << 10)
    queue.sock.recv(1, socket.MSG_PEEK)


def stop_reading_vfio(served: Served, held: ExitStack) -> None:
    """A client that asks until neither side takes anything any more."""
    client = held.enter_context(VfioClient(served.vfio_socket))
    client.sock.setblocking(False)
    nr_refused = 0
    while nr_refused < 20:
        try:
            client.send(VfioCommand.DEVICE_GET_INFO, bytes(16))
        except BlockingIOError:
            nr_refused += 1
            threading.Event().wait(0.01)


def stop_migrating(socket_path: Path, held: ExitStack, *, loads: bool) -> None:
    """A migration whose other side neither takes the state nor, if the drive *loads* it, sends it."""
    guest = held.enter_context(Frontend(socket_path))
    guest.negotiate()
    reader, writer = os.pipe()
    ours, theirs = (writer, reader) if loads else (reader, writer)
    guest.send(Request.SET_DEVICE_STATE_FD, DeviceStateTransfer(int(loads), 0), fds=(theirs,))
    os.close(theirs)
    held.callback(os.close, ours)
    guest.receive(Request.SET_DEVICE_STATE_FD)


def test_peers_that_stop_in_the_middle_are_left(tmp_path: Path) -> None:
    """All at once: an NVMe/TCP host and a vfio-user client that do not read, and migrations out and in that rest."""
    loading = tmp_path / "loading"
    served = Served(
        tmp_path, create="--size 4G --zone-size 64K --block-size 4096", front_ends=("blk", "nvme", "vfio"),
        options=("--vhost-user-blk", str(loading)),
    )  # fmt: skip
    with served, ExitStack() as held:
        served.wait_until_ready()
        stop_reading_nvme(served, held)
        stop_reading_vfio(served, held)
        stop_migrating(served.blk_socket, held, loads=False)
        stop_migrating(loading, held, loads=True)
        served.stop()


def test_a_keeper_that_is_stopped_is_killed(tmp_path: Path) -> None:
    with Served(tmp_path, create="--size 64M --zone-size 4M", front_ends=("vfio",)) as served:
        served.wait_until_ready()
        with VfioClient(served.vfio_socket) as client:
            NvmeGuest(client)  # the daemon serves it
            assert served._daemon is not None
            threads = Path(f"/proc/{served._daemon.pid}/task").iterdir()
            (keeper,) = (int(pid) for each in threads for pid in (each / "children").read_text().split())
            os.kill(keeper, signal.SIGSTOP)
            served.stop()
            assert client.is_ended()


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
