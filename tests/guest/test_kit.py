import lzma
import platform
from pathlib import Path

import pytest

from tools.guest import kit
from tools.guest.kit import Kit, KitError, cache_directory, obtain_kit

DEB822 = """\
# the security archive comes first here
Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
# a comment in the middle
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def test_backports_are_where_a_deb822_source_has_the_release() -> None:
    assert kit._from_deb822(DEB822) == (
        "Types: deb\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: bookworm-backports\n"
        "Components: main contrib\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_backports_are_where_a_one_line_source_has_the_release() -> None:
    text = (
        "deb http://mirror.example/security bookworm-security main\n"
        "deb-src http://mirror.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/keys/a.gpg] mirror+file:/etc/apt/mirrors.list bookworm main\n"
    )
    assert kit._from_lines(text) == (
        "Types: deb\n"
        "URIs: mirror+file:/etc/apt/mirrors.list\n"
        "Suites: bookworm-backports\n"
        "Components: main\n"
        "Signed-By: /keys/a.gpg\n"
    )


@pytest.mark.parametrize("text", ["", "deb http://mirror.example/debian trixie main\n", "# deb x bookworm main\n"])
def test_a_source_of_something_else_tells_nothing(text: str) -> None:
    assert kit._from_lines(text) is None
    assert kit._from_deb822(text) is None


def test_another_system_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kit._kit_root.cache_clear()
    try:
        release = {"VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04 LTS"}
        monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
        with pytest.raises(KitError, match=r"^the test guest needs .* Debian 12 .*; Ubuntu 24\.04 LTS on .*$"):
            obtain_kit(lambda line: None)
        assert cache_directory() == tmp_path / "zonefs-emu" / "guest"
    finally:
        kit._kit_root.cache_clear()


def test_a_failing_command_is_told_by_its_last_words() -> None:
    with pytest.raises(KitError, match=r"^sh failed: second$"):
        kit._run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"])
    with pytest.raises(KitError, match=r"^cannot run no-such-program: No such file"):
        kit._run(["no-such-program"])


def test_modules_are_decompressed_or_dropped(tmp_path: Path) -> None:
    for name in ("drivers/scsi/sd_mod", "drivers/scsi/adapter/hba", "fs/btrfs/btrfs", "sound/beep"):
        path = tmp_path / f"{name}.ko.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(name.encode()))
    kit._prune_modules(tmp_path)
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.ko*")}
    assert found == {"drivers/scsi/sd_mod.ko": "drivers/scsi/sd_mod", "fs/btrfs/btrfs.ko": "fs/btrfs/btrfs"}


def test_qemu_is_told_where_its_firmware_is(tmp_path: Path) -> None:
    command = Kit(root=tmp_path, kernel_release="6.12").qemu_command
    assert command[1:] == ("-L", str(tmp_path / "usr/share/qemu"), "-L", str(tmp_path / "usr/share/seabios"))
