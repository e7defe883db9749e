"""Which truncations after a failed write are the kernel's own, and not an application's.

After a failed write that would have made a file longer, the kernel truncates the file to the size that it has in memory
(Linux fs/fuse/file.c, fuse_do_truncate). If that size is 0 and the zone has data, obeying would reset the zone and lose
the data. docs/fuse.md, "The automatic truncate", has the guards.
"""

from typing import Final

from zonefs_emu.fs.files import Handle, ZoneFile

#: The most threads that are noted for a file after a failed write. A truncation by any other counts as the kernel's.
_LOOKERS_MAX: Final = 64


def note_failure(handle: Handle) -> None:
    """Note that a write on *handle* has failed."""
    handle.failed = True
    handle.file.lookers = set()


def note_look(file: ZoneFile, thread: int) -> None:
    """Note that *thread* has asked for the attributes of *file*."""
    lookers = file.lookers
    if lookers is not None and len(lookers) < _LOOKERS_MAX:
        lookers.add(thread)


def is_automatic(handle: Handle, size: int, thread: int) -> bool:
    """Return whether a request of *thread* to truncate to *size* is the kernel's own; it is the last to be so.

    The kernel's size can be the one that was reported last, or the one before that, because the request may have been
    sent before an answer with the right size. With async_dio it can also be the size from before a request of which
    some pieces were written. The kernel truncates before the call of the application returns. So if a thread has asked
    for the attributes since the write failed, as fstat(2) does, its request is an application's.
    """
    file = handle.file
    failed, handle.failed = handle.failed, False
    if thread and file.lookers and thread in file.lookers:
        return False
    return failed and size != file.size and size in {file.notified_size, file.notified_before, handle.kernel_size}
