"""The peer of the FUSE benchmarks: the least that pyfuse3 can do. One directory, one file, straight through.

usage: python -m bench.passthrough FILE MOUNTPOINT

Its handles are those of the mount of zonefs_emu: direct for writers, cached for readers, attributes not kept.
"""

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Final

import pyfuse3
import trio

NAME: Final = b"file"
INODE: Final = pyfuse3.InodeT(2)


class Passthrough(pyfuse3.Operations):
    """FILE as the only file of a file system."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = 0
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755)
        else:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o644)
            entry.st_size = os.fstat(self._fd).st_size
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(INODE)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            os.ftruncate(self._fd, attr.st_size)
        return await self.getattr(inode)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        writer = flags & os.O_ACCMODE != os.O_RDONLY
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._fd), direct_io=writer, keep_cache=False)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)


def main() -> None:
    """Mount and serve until unmounted."""
    file, mountpoint = sys.argv[1:]
    fd = os.open(Path(file), os.O_RDWR)
    pyfuse3.init(Passthrough(fd), mountpoint, {*pyfuse3.default_options, "fsname=passthrough"})
    trio.run(pyfuse3.main)
    pyfuse3.close()


if __name__ == "__main__":
    main()
