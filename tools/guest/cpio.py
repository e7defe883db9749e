"""Write a cpio archive in the "newc" format, the one the kernel unpacks as its first file system.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import io
import stat
from typing import Final

_ALIGNMENT: Final = 4
_TRAILER: Final = "TRAILER!!!"


class CpioWriter:
    """Collect entries in memory; parents must be added before what they contain."""

    def __init__(self) -> None:
        """Start an empty archive."""
        self._out = io.BytesIO()
        self._inode = 0

    def directory(self, name: str, *, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        """Add the directory *name*, without a leading slash, for *owner*: the numbers of a user and of a group."""
        self._entry(name, stat.S_IFDIR | mode, b"", owner=owner)

    def file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add a regular file."""
        self._entry(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link that points to *target*."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, *, major: int, minor: int) -> None:
        """Add a character device node, which needs no privilege here: it is only a record."""
        self._entry(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def finish(self) -> bytes:
        """Close the archive and return its bytes."""
        self._entry(_TRAILER, 0, b"")
        return self._out.getvalue()

    def _entry(
        self,
        name: str,
        mode: int,
        content: bytes,
        *,
        device: tuple[int, int] = (0, 0),
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self._inode += 1
        encoded_name = name.encode() + b"\0"
        fields = (
            self._inode,
            mode,
            *owner,
            1,  # number of links
            0,  # time of change
            len(content),
            0,  # device that the file lies on, major and minor: of no interest
            0,
            *device,
            len(encoded_name),
            0,  # checksum: only in the "crc" variant
        )
        self._out.write(b"070701" + b"".join(b"%08x" % field for field in fields))
        self._padded(encoded_name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(bytes(-self._out.tell() % _ALIGNMENT))
