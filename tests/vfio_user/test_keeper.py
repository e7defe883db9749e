"""A keeper in a thread of this process, with daemons that the tests are."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zonefs_emu.testing.vfio_client import MEMORY_BYTES, MEMORY_START, VfioClient
from zonefs_emu.vfio_user.doorbell_reader import DOORBELLS_AT_ONCE
from zonefs_emu.vfio_user.drive_memory import MEMORY_BYTES as DRIVE_BYTES
from zonefs_emu.vfio_user.keeper import RemoteDrive, main
from zonefs_emu.vfio_user.keeper_link import (
    KeeperLink,
    LinkKind,
    LinkMessage,
    connect_to_keeper,
    listen_for_daemons,
)
from zonefs_emu.vfio_user.pci_config import NR_VECTORS
from zonefs_emu.vfio_user.pci_function import PciFunction
from zonefs_emu.vfio_user.vfio_messages import VfioCommand


class Kept:
    """A client that is kept, and the place where daemons find its keeper."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ours, theirs = socket.socketpair()
        self.client = VfioClient(ours, handshake=False)
        self.memory_fd = os.memfd_create("drive")
        os.ftruncate(self.memory_fd, DRIVE_BYTES)
        listener = listen_for_daemons(path)
        arguments = [str(fd) for fd in (theirs.detach(), listener.detach(), os.dup(self.memory_fd))]
        self.thread = threading.Thread(target=main, args=([*arguments, "2", str(path)],))
        self.thread.start()

    def daemon(self) -> KeeperLink:
        link = connect_to_keeper(self.path, 30)
        assert link is not None
        return link

    def handshake(self) -> None:
        self.client.call(VfioCommand.VERSION, struct.pack("<HH", 0, 0) + b'{"capabilities":{}}\0')
        self.client.map()
        self.client.set_interrupts()

    def close(self) -> None:
        self.client.close()
        self.thread.join(30)
        assert not self.thread.is_alive(), "the keeper ends with its client"
        assert not self.path.exists()
        os.close(self.memory_fd)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "keeper")
    yield kept
    kept.close()


def take(link: KeeperLink, *, answer: bool = True) -> LinkMessage:
    """Receive a message, close what came with it, and answer it."""
    message = link.receive()
    for fd in message.fds:
        os.close(fd)
    if answer:
        link.send(LinkMessage(LinkKind.DONE))
    return message


def in_a_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_client_needs_no_daemon(kept: Kept) -> None:
    kept.handshake()
    client = kept.client
    client.set_register(0x14, 0x460061)
    client.set_register(0x1000, 5)
    assert client.register(0x14) == 0x460061
    client.reset()
    assert client.register(0x14) == 0
    client.unmap()
    client.map()
    client.set_interrupts(enabled=False)


def test_a_daemon_is_told_everything_that_came_before(kept: Kept) -> None:
    kept.handshake()
    kept.client.set_register(0x14, 1)
    assert kept.client.register(0x14) == 1
    for _ in range(2):  # the second after the first was killed
        link = kept.daemon()
        hello = link.receive()
        assert hello.kind is LinkKind.HELLO
        memory_fd, wakes, client_fd = hello.fds
        assert os.fstat(memory_fd).st_ino == os.fstat(kept.memory_fd).st_ino
        found = take(link)
        assert (found.kind, found.iova, found.size, found.offset) == (LinkKind.MAP, MEMORY_START, MEMORY_BYTES, 0)
        found = take(link)
        assert (found.kind, found.number, len(found.fds)) == (LinkKind.INTERRUPTS, (1 << NR_VECTORS) - 1, NR_VECTORS)
        assert take(link).kind is LinkKind.START
        kept.client.set_register(0x1000, 3)
        assert take(link, answer=False).kind is LinkKind.READ
        assert os.eventfd_read(wakes) >= 1
        # What comes now is for the daemon, until that gives it back.
        kept.client.set_register(0x1000, 4)
        assert os.read(client_fd, 36)[-4:] == bytes((4, 0, 0, 0))
        link.send(LinkMessage(LinkKind.READ))
        assert kept.client.register(0x14) == 1
        link.close()
        for fd in hello.fds:
            os.close(fd)


def test_doorbells_that_a_killed_daemon_has_stored_are_not_stored_later(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next daemon comes before the keeper, on a busy host, has noticed the end of the first."""
    kept.handshake()
    link = kept.daemon()
    take(link, answer=False)
    assert [take(link).kind for _ in range(3)] == [LinkKind.MAP, LinkKind.INTERRUPTS, LinkKind.START]
    kept.client.set_register(0x1000, 1)
    assert take(link, answer=False).kind is LinkKind.READ
    listen, may_go_on = RemoteDrive.listen, threading.Event()

    def listen_late(drive: RemoteDrive) -> None:
        assert may_go_on.wait(30)
        listen(drive)

    monkeypatch.setattr(RemoteDrive, "listen", listen_late)
    for value in range(2, DOORBELLS_AT_ONCE + 2):
        kept.client.set_register(0x1000, value)
    link.close()  # killed after it has stored all these, and before it has taken one
    following = kept.daemon()
    may_go_on.set()
    memory_fd, wakes, client_fd = following.receive().fds
    with socket.socket(fileno=client_fd) as client, pytest.raises(BlockingIOError):
        client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    assert os.pread(memory_fd, 4, 0x1000) == (DOORBELLS_AT_ONCE + 1).to_bytes(4, "little")
    for fd in (memory_fd, wakes):
        os.close(fd)
    following.close()


def test_a_client_is_answered_when_the_daemon_has_seen_its_request(kept: Kept) -> None:
    kept.handshake()
    link = kept.daemon()
    take(link, answer=False)
    assert [take(link).kind for _ in range(3)] == [LinkKind.MAP, LinkKind.INTERRUPTS, LinkKind.START]
    thread = in_a_thread(kept.client.unmap)
    assert take(link, answer=False).kind is LinkKind.UNMAP
    assert thread.is_alive()
    link.send(LinkMessage(LinkKind.DONE))
    thread.join(30)
    assert take(link, answer=False).kind is LinkKind.READ
    link.send(LinkMessage(LinkKind.READ))
    thread = in_a_thread(kept.client.reset)
    assert take(link, answer=False).kind is LinkKind.RESET
    link.close()  # killed: the keeper resets the registers itself
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_daemon_that_ends_has_the_client_given_up(kept: Kept, *, is_asked: bool) -> None:
    kept.handshake()
    link = kept.daemon()
    take(link, answer=False)
    assert [take(link).kind for _ in range(3)] == [LinkKind.MAP, LinkKind.INTERRUPTS, LinkKind.START]
    if is_asked:
        kept.client.send(VfioCommand.DEVICE_RESET)
        take(link, answer=False)
    link.send(LinkMessage(LinkKind.END))
    link.close()
    assert kept.client.is_ended()


def test_a_client_that_breaks_the_protocol_is_given_up_with_its_keeper(kept: Kept) -> None:
    kept.client.sock.sendall(b"\xff" * 16)
    assert kept.client.is_ended()
    kept.thread.join(30)


def test_a_bug_of_the_keeper_is_told_to_the_daemon(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.handshake()
    link = kept.daemon()
    take(link, answer=False)
    assert [take(link).kind for _ in range(3)] == [LinkKind.MAP, LinkKind.INTERRUPTS, LinkKind.START]
    monkeypatch.setattr(PciFunction, "handle", lambda *_: 1 / 0)
    kept.client.send(VfioCommand.DEVICE_RESET)
    message = link.receive()
    assert message.kind is LinkKind.FAILED
    assert message.text.endswith("ZeroDivisionError: division by zero\n")
    link.close()
    assert kept.client.is_ended()
