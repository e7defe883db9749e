import os
import socket
import tempfile
from pathlib import Path

import pytest

from zonefs_emu.daemon import rendezvous
from zonefs_emu.errors import UsageError


def test_the_socket_is_found_from_the_image_by_any_name(image: Path, runtime_directory: Path) -> None:
    listener, path = rendezvous.listen(image, backlog=8)
    other_name = image.with_name("link")
    other_name.symlink_to(image)
    hard_link = image.with_name("hard")
    hard_link.hardlink_to(image)
    assert path.parent == runtime_directory / "zonefs-emu"
    with listener:
        for name in (image, other_name, hard_link):
            peer = rendezvous.connect(name)
            assert peer is not None
            peer.close()


def test_the_directory_is_ours_alone(image: Path) -> None:
    listener, path = rendezvous.listen(image, backlog=1)
    listener.close()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_uid == os.geteuid()


def test_nobody_there(image: Path, tmp_path: Path) -> None:
    assert rendezvous.connect(image) is None
    with pytest.raises(FileNotFoundError):
        rendezvous.connect(tmp_path / "absent")


def test_a_socket_left_behind_is_replaced(image: Path) -> None:
    first, _ = rendezvous.listen(image, backlog=1)
    first.close()
    assert rendezvous.connect(image) is None
    second, _ = rendezvous.listen(image, backlog=1)
    with second:
        peer = rendezvous.connect(image)
        assert peer is not None
        peer.close()


def test_a_long_path_is_no_obstacle(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    listener, path = rendezvous.listen(image, backlog=1)
    with listener:
        assert path.is_socket()
        peer = rendezvous.connect(image)
        assert peer is not None
        peer.close()


def test_without_a_runtime_directory_the_temporary_one_serves(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listener, path = rendezvous.listen(image, backlog=1)
    with listener:
        assert path.parent == tmp_path / f"zonefs-emu-{os.geteuid()}"
        # A client that has a runtime directory looks there as well.
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        peer = rendezvous.connect(image)
        assert peer is not None
        peer.close()


# One bit of group and others at a time: each of them lets other users enter, list or change the directory.
@pytest.mark.parametrize("mode", [0o755, 0o710, 0o720, 0o740, 0o770, 0o701, 0o702, 0o704])
def test_a_directory_that_others_can_enter_is_not_used(
    mode: int, image: Path, runtime_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_to_all = runtime_directory / "zonefs-emu"
    open_to_all.mkdir()
    open_to_all.chmod(mode)
    listener, path = rendezvous.listen(image, backlog=1)
    listener.close()
    assert path.parent != open_to_all
    # No request is sent to a socket that another user has put there.
    with socket.socket(socket.AF_UNIX) as trap:
        monkeypatch.chdir(open_to_all)  # the whole path may be longer than an address can be
        trap.bind(rendezvous.socket_name(image))
        trap.listen()
        path.unlink()
        assert rendezvous.connect(image) is None


def test_no_place_at_all_is_one_sentence(
    image: Path, runtime_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (runtime_directory / "zonefs-emu").symlink_to(tmp_path)
    (tmp_path / f"zonefs-emu-{os.geteuid()}").touch()
    with pytest.raises(UsageError, match=r"no place for the control socket .*: set XDG_RUNTIME_DIR"):
        rendezvous.listen(image, backlog=1)
