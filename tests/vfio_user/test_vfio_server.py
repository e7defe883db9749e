"""A served socket: one client after the other, and clients that break the protocol."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.memory_budget import memory_budget
from tests.nvme.conftest import BLOCK
from tests.vfio_user.conftest import Served
from zonefs_emu.polling import AdaptivePolling
from zonefs_emu.testing.vfio_client import VfioClient
from zonefs_emu.vfio_user.vfio_messages import SIZE_MAX, VfioCommand, encode_command


def test_one_client_after_the_other(served: Served) -> None:
    for number in range(3):
        with served.guest() as guest:
            assert guest.queue(1).append(1, 0, bytes((number,)) * BLOCK, BLOCK).result == number
            assert served.server.statistics()["connected"] == 1
    with served.guest() as guest:
        assert guest.queue(1).read(1, 0, 3, BLOCK).data == b"".join(bytes((n,)) * BLOCK for n in range(3))
        assert served.server.statistics()["commands"] >= 16


def test_the_length_of_a_sleep_says_how_long_to_look(served: Served) -> None:
    with served.guest() as guest:
        queue = guest.queue(1)
        client = served.server._client
        assert client is not None
        client.drive.polling = polling = AdaptivePolling(max_ns=9_000, soon_ns=60_000_000_000, nr_processors=2)
        polling.look_ns = 0
        assert queue.read(1, 0, 1, BLOCK).status == 0
        assert polling.look_ns >= 4_000


@pytest.mark.parametrize(
    "data",
    [
        encode_command(1, VfioCommand.DEVICE_RESET), encode_command(1, VfioCommand.VERSION),
        encode_command(1, VfioCommand.VERSION, b"\1\0\0\0"), b"\0" * 16, b"\0\0\1\0" + b"\xff" * 12,
    ],
)  # fmt: skip
def test_what_is_no_message_ends_the_connection_only(served: Served, data: bytes) -> None:
    with VfioClient(served.path, handshake=False) as client:
        client.sock.sendall(data)
        assert client.is_ended()
    with served.guest() as guest:
        assert guest.identify(1).status == 0


def test_a_client_that_sends_without_end_is_stopped_with_the_server(served: Served) -> None:
    with served.guest() as guest:
        client = guest.client
        ended = threading.Event()

        def ring() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    client.set_register(0x1000, 0)
            ended.set()

        thread = threading.Thread(target=ring)
        thread.start()
        served.server.stop()
        thread.join(30)
        assert ended.is_set()


def test_a_guest_that_cuts_its_memory_is_given_up(served: Served) -> None:
    with served.guest() as guest:
        queue = guest.queue(1)
        os.ftruncate(guest.client._fd, 0)
        guest.client.set_register(0x1008, 1)
        assert guest.client.is_ended()
        assert queue.number == 1
    with served.guest() as guest:
        assert guest.identify(1).status == 0


def test_an_unforeseen_exception_costs_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in nvme, a connection: ZeroDivisionError")
    with served.guest() as guest, monkeypatch.context() as patch:
        patch.setattr("zonefs_emu.vfio_user.pci_drive.PciDrive.serve", lambda *_: 1 / 0)
        guest.client.set_register(0x1000, 0)
        assert guest.client.is_ended()
    with served.guest() as guest:
        assert guest.identify(1).status == 0


def test_an_unforeseen_exception_costs_a_new_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("internal error in nvme, a connection that begins: ZeroDivisionError")
    with monkeypatch.context() as patch:
        patch.setattr("tests.vfio_user.conftest.PciDrive", lambda *_: 1 / 0)
        with VfioClient(served.path, handshake=False) as client:
            assert client.is_ended()
    with served.guest() as guest:
        assert guest.identify(1).status == 0


def test_an_idle_guest_costs_nothing(served: Served) -> None:
    with served.guest() as guest:
        guest.queue(1)
        calls = []
        served.server._client.drive.serve = lambda _: calls.append(1)  # type: ignore[union-attr,method-assign]
        time.sleep(0.2)
        assert len(calls) <= 2


MESSAGES = st.tuples(
    st.sampled_from([*VfioCommand, 6, 14, 99]),
    st.sampled_from([0, 0, 0x10]),
    st.binary(max_size=48) | st.lists(st.integers(0, 40), min_size=4, max_size=12).map(
        lambda numbers: b"".join(number.to_bytes(4, "little") for number in numbers)
    ),
    st.booleans(),
)  # fmt: skip


@given(messages=st.lists(MESSAGES, max_size=8), tail=st.binary(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_messages_are_answered_or_end_their_connection(
    served: Served, messages: list[tuple[int, int, bytes, bool]], tail: bytes
) -> None:
    with memory_budget(1 << 20), VfioClient(served.path) as client:
        try:
            for command, flags, payload, with_fd in messages:
                client.send(command, payload, fds=[client._fd] if with_fd else [], flags=flags)
            client.sock.sendall(tail)
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(SIZE_MAX):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    with served.guest() as guest:
        assert guest.identify(1).status == 0
