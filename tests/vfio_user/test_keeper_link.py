"""Messages of a link, and how its ends find each other."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zonefs_emu.errors import PeerError
from zonefs_emu.vfio_user.keeper_link import (
    KeeperLink,
    LinkKind,
    LinkMessage,
    connect_to_keeper,
    listen_for_daemons,
)


@pytest.fixture
def ends() -> Iterator[tuple[KeeperLink, KeeperLink]]:
    one, other = (KeeperLink(sock, 0.01) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_messages_arrive_as_they_were_sent(ends: tuple[KeeperLink, KeeperLink]) -> None:
    one, other = ends
    fds = [os.eventfd(7), os.eventfd(8)]
    sent = [
        LinkMessage(LinkKind.MAP, 1, 2 << 40, 3 << 40, 4, fds[:1]),
        LinkMessage(LinkKind.INTERRUPTS, 3, fds=fds),
        LinkMessage(LinkKind.FAILED, text="in line 1"),
        LinkMessage(LinkKind.DONE),
    ]
    for message in sent:
        one.send(message)
    for message in sent:
        found = other.receive()
        number = len(message.text) or message.number
        assert found._replace(fds=()) == message._replace(fds=(), number=number)
        assert len(found.fds) == len(message.fds)
        for fd in found.fds:
            os.close(fd)
    for fd in fds:
        os.close(fd)


def test_an_end_that_is_silent_or_gone(ends: tuple[KeeperLink, KeeperLink]) -> None:
    one, other = ends
    with pytest.raises(PeerError, match="does not answer"):
        other.receive()
    one.close()
    with pytest.raises(PeerError, match="closed"):
        other.receive()
    with pytest.raises(PeerError):
        other.send(LinkMessage(LinkKind.DONE))


def test_a_long_text_is_cut_at_its_beginning(ends: tuple[KeeperLink, KeeperLink]) -> None:
    one, other = ends
    one.send(LinkMessage(LinkKind.FAILED, text="x" * 5000 + "ZeroDivisionError"))
    assert other.receive().text.endswith("xxxZeroDivisionError")


def test_a_keeper_is_found_at_a_path_of_any_length(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    path = directory / "keeper"
    assert connect_to_keeper(path, 1) is None, "no directory"
    directory.mkdir()
    assert connect_to_keeper(path, 1) is None, "no keeper"
    with listen_for_daemons(path) as listener:
        link = connect_to_keeper(path, 1)
        assert link is not None
        sock, _ = listener.accept()
        link.send(LinkMessage(LinkKind.DONE))
        keeper = KeeperLink(sock, 1)
        assert keeper.receive().kind is LinkKind.DONE
        keeper.close()
        link.close()
    assert connect_to_keeper(path, 1) is None, "a keeper that is gone"
    listen_for_daemons(path).close()


def test_a_keeper_that_is_old_is_still_found(tmp_path: Path) -> None:
    """A directory that is cleaned, as /tmp is: nothing with the sticky bit is removed there, however old."""
    (tmp_path / "cleaned").mkdir()
    with listen_for_daemons(tmp_path / "cleaned" / "keeper"):
        assert stat.S_IMODE((tmp_path / "cleaned" / "keeper").stat().st_mode) == stat.S_ISVTX | 0o600
