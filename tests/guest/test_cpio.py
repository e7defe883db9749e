import pytest

from tools.guest.cpio import CpioWriter

ZERO = "00000000"


def header(*, inode: int, mode: str, size: int, name_size: int, device: tuple[str, str] = (ZERO, ZERO)) -> bytes:
    """The 110 characters before a name, written out."""
    fields = ["070701", f"{inode:08x}", mode]
    fields += [ZERO, ZERO, "00000001", ZERO]  # user, group, links, time of change
    fields += [
        f"{size:08x}",
        ZERO,
        ZERO,
        *device,
        f"{name_size:08x}",
        ZERO,
    ]  # size, device, device node, name, checksum
    text = "".join(fields)
    assert len(text) == 110
    return text.encode()


def test_archive_to_the_byte() -> None:
    archive = CpioWriter()
    archive.directory("dev")
    archive.character_device("dev/console", major=5, minor=1)
    archive.file("init", b"#!/bin/sh\n", executable=True)
    archive.symlink("sh", "busybox")
    assert archive.finish() == b"".join(
        (
            header(inode=1, mode="000041ed", size=0, name_size=4) + b"dev\0" + b"\0\0",
            header(inode=2, mode="00002180", size=0, name_size=12, device=("00000005", "00000001")),
            b"dev/console\0" + b"\0\0",
            header(inode=3, mode="000081ed", size=10, name_size=5) + b"init\0" + b"\0",
            b"#!/bin/sh\n" + b"\0\0",
            header(inode=4, mode="0000a1ff", size=7, name_size=3) + b"sh\0" + b"\0\0\0",
            b"busybox" + b"\0",
            header(inode=5, mode=ZERO, size=0, name_size=11) + b"TRAILER!!!\0" + b"\0\0\0",
        )
    )


@pytest.mark.parametrize("size", range(9))
def test_every_entry_starts_at_a_multiple_of_four(size: int) -> None:
    archive = CpioWriter()
    archive.file("x" * size, b"y" * size)
    archive.file("next", b"")
    assert archive.finish().index(b"0707010000000" + b"2") % 4 == 0


def test_a_directory_for_others() -> None:
    archive = CpioWriter()
    archive.directory("home", mode=0o750, owner=(1000, 100))
    entry = archive.finish()
    assert entry[14:22] == b"000041e8"
    assert (entry[22:30], entry[30:38]) == (b"000003e8", b"00000064")
