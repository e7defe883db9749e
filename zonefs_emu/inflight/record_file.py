"""A file for a record, for transports whose peer keeps no memory for it."""

import mmap
import os
from pathlib import Path


def map_record_file(path: Path, nr_bytes: int, *, go_on: bool) -> mmap.mmap:
    """Map *nr_bytes* of *path*, which is created if it does not exist.

    With *go_on*, the content of a file of exactly this length counts. In all other cases the memory is zero.

    Raises:
        OSError: the host refuses.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not go_on or os.fstat(fd).st_size != nr_bytes:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, nr_bytes)
        return mmap.mmap(fd, nr_bytes)
    finally:
        os.close(fd)
