import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zonefs_emu.daemon import client, framing, rendezvous
from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.holders import peer_of
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import ImageBusyError, PeerError, UsageError
from zonefs_emu.front_ends.known import open_target


def test_an_image_that_nobody_holds_is_opened(image: Path) -> None:
    with open_target(image) as target:
        assert not target.live
        assert call(target, {"verb": "info"})[0]["label"] == "test"
        with pytest.raises(ImageBusyError):
            ZonedDevice.open(image)
    ZonedDevice.open(image).close()


def test_a_refusal_is_a_usage_error_with_its_exit_code(image: Path) -> None:
    with open_target(image) as target:
        with pytest.raises(UsageError, match="CONVENTIONAL") as caught:
            call(target, {"verb": "manage", "operation": "open", "zone_no": 0})
        assert caught.value.exit_code == 1
        with pytest.raises(UsageError, match="there is no verb") as caught:
            call(target, {"verb": "sing"})
        assert caught.value.exit_code == 2


def test_a_short_command_of_somebody_else_is_waited_for(image: Path) -> None:
    device = ZonedDevice.open(image)
    timer = threading.Timer(0.3, device.close)
    timer.start()
    with open_target(image) as target:
        assert call(target, {"verb": "info"})
    timer.join()


def test_who_holds_it_longer_is_named(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BUSY_S", 0.1)
    device = ZonedDevice.open(image, owner="another program")
    with pytest.raises(ImageBusyError, match="is in use by another program"):
        open_target(image)
    device.close()


HELLO = framing.encode({})


def serve(image: Path, *answers: bytes) -> threading.Thread:
    """Listen in the place of a daemon, give one client *answers*, one a request, and leave."""
    listener, _ = rendezvous.listen(image, backlog=1)

    def answer_all() -> None:
        with listener:
            peer, _ = listener.accept()
            # Other processes of this user that list all daemons, as tests that run beside this one do, are no client.
            while peer_of(peer).pid != os.getpid():
                peer.close()
                peer, _ = listener.accept()
            with peer:
                for answer in answers:
                    peer.recv(65536)
                    peer.sendall(answer)

    thread = threading.Thread(target=answer_all)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"", "ended before it answered"),
        (b"ZFE1", "ended before it answered"),
        (framing.encode({}, b"x" * 10)[:-1], "ended before it answered"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak zonefs_emu's protocol"),
        (framing.encode({})[:-2] + b"[]", "not a JSON object"),
        (b"ZFE1\xff\xff\xff\xff\0\0\0\0", "too long"),
    ],
)
def test_a_daemon_that_answers_nonsense_is_one_sentence(answer: bytes, sentence: str, image: Path) -> None:
    server = serve(image, HELLO, answer)
    with open_target(image) as target:
        assert target.live
        with pytest.raises(PeerError, match=sentence):
            call(target, {"verb": "info"})
    server.join()


def test_a_daemon_that_refuses_keeps_no_other_from_being_found(image: Path) -> None:
    server = serve(image, HELLO, framing.encode({"error": "there is no verb info"}))
    assert str(image) not in [info["path"] for info in client.live_infos()]
    server.join()


@pytest.mark.parametrize("answer", [{}, {"front_ends": "mnt"}, {"error": "there is no verb info"}])
def test_a_daemon_that_answers_something_else_serves_no_place(answer: dict[str, Json], image: Path) -> None:
    """``umount`` asks all daemons of the machine, of any version, which one serves the mount."""
    server = serve(image, framing.encode(answer))
    assert client.find_serving("/mnt", image) is None
    server.join()


def test_another_language_is_noticed_at_once(image: Path) -> None:
    server = serve(image, b"220 smtp ready\r\n")
    with pytest.raises(PeerError, match="does not speak zonefs_emu's protocol"):
        open_target(image)
    server.join()


def test_a_daemon_that_is_just_ending_is_waited_for(image: Path) -> None:
    server = serve(image, b"")
    with open_target(image) as target:
        assert not target.live
    server.join()


def test_a_daemon_that_hangs_is_given_up(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_HELLO_S", 0.1)
    listener, _ = rendezvous.listen(image, backlog=1)
    with listener, pytest.raises(PeerError, match="does not answer"):
        open_target(image)


def test_replies_that_nobody_took_are_a_bug(image: Path) -> None:
    server = serve(image, HELLO, framing.encode({"more": True}))
    with open_target(image) as target:
        next(target.stream({"verb": "report"}))
        with pytest.raises(AssertionError):
            call(target, {"verb": "info"})
    server.join()


def test_two_processes_at_once_both_get_through(image: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from zonefs_emu.daemon.client import call; from zonefs_emu.front_ends.known import open_target\n"
        "for _ in range(20):\n"
        "    with open_target(Path(sys.argv[1])) as target:\n"
        "        call(target, {'verb': 'append', 'zone_no': int(sys.argv[2])}, bytes(4096))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(image), str(zone_no)]) for zone_no in (1, 2)]
    assert [process.wait(timeout=50) for process in processes] == [0, 0]
    device = ZonedDevice.open(image)
    assert device.machine.zone(1).wp == 2048 + 160
    assert device.machine.zone(2).wp == 4096 + 160
    device.close()
