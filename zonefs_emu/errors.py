"""The exceptions of zonefs_emu, whose classes say who is at fault, and the Status of answers.

    ZonedError
    ├── CommandError(status)          the host broke a rule; nothing changed; the device turns it into a Status
    ├── ImageError                    the image file is not what it should be
    │   ├── BadMagicError             no zonefs_emu image there
    │   ├── UnsupportedVersionError   an image of a later version, or with features we do not know
    │   ├── CorruptImageError         flipped, cut or torn metadata: where, what was found, what was expected
    │   ├── ImageBusyError            another process holds it
    │   ├── NoSpaceError              the host has no room for the image's metadata; nothing is lost
    │   └── PoisonedError             a host write or sync failed; the image must be reopened
    ├── PeerError                     a protocol peer broke the protocol: drop the connection, keep the device
    └── UsageError(exit_code)         one line on stderr, no traceback

A bug is any other exception. Only boundaries catch it (docs/errors.md).

:class:`Status` is the one vocabulary of answers that a host can get. The edges (errno, virtio-blk status, SCSI
sense, kernel block status) each have a total table from it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final


class Status(IntEnum):
    """The outcome of one command, as a value. OK is falsy, so ``if status:`` reads "if refused"."""

    OK = 0
    OUT_OF_RANGE = 1  #: beyond the last sector of the device
    UNALIGNED = 2  #: start or length is not whole logical blocks
    UNALIGNED_WP = 3  #: does not start at wp, or does not end on the write granularity
    ZONE_BOUNDARY = 4  #: a write beyond the capacity, or across zones
    READ_BOUNDARY = 5  #: a read across zones where the dialect forbids it
    ZONE_FULL = 6  #: a write to a FULL zone
    ZONE_READONLY = 7
    ZONE_OFFLINE = 8
    NOT_ZONE_START = 9  #: zone management or append that does not address the first sector of a zone
    CONVENTIONAL = 10  #: zone management of, or append to, a conventional zone
    BAD_TRANSITION = 11  #: the dialect has no such transition
    APPEND_LIMIT = 12  #: an append longer than max_append
    OPEN_RESOURCE = 13  #: max_open_zones reached and no implicitly open zone to close
    ACTIVE_RESOURCE = 14  #: max_active_zones reached
    IO_ERROR = 15  #: the host failed to read, write or sync the image
    NO_SPACE = 16  #: the host has no space left for the image; nothing is lost, and with room the same succeeds
    POISONED = 17  #: refused because an earlier host failure left the image in doubt; reopen it
    UNSUPPORTED = 18  #: the device does not offer that operation, or the request is malformed
    ZRWA_WRITE = 19  #: a write outside of what a zone random write area takes
    ZRWA_RANGE = 20  #: an explicit flush that does not end in the area, or not on its granularity
    ZRWA_INVALID = 21  #: what the zone does not allow, as it has an area, or has none, or is not EMPTY
    ZRWA_UNAVAILABLE = 22  #: max_zrwa zones have an area


class ZonedError(Exception):
    """Base of all errors that are not bugs."""


class CommandError(ZonedError):
    """A command was refused; the machine is unchanged.

    *zone_no* is the zone of the command, -1 if it has none.
    """

    def __init__(self, status: Status, zone_no: int = -1) -> None:
        super().__init__(status, zone_no)
        self.status = status
        self.zone_no = zone_no


class ImageError(ZonedError):
    """The image file is not what it should be.

    *path* names the file where the sentence does not; it is set where the file is known.
    """

    path = ""

    def __str__(self) -> str:
        """Return the sentence: which file, and what is wrong with it."""
        sentence = super().__str__()
        return f"{self.path}: {sentence}" if self.path else sentence


class BadMagicError(ImageError):
    """The file is no zonefs_emu image."""


class UnsupportedVersionError(ImageError):
    """The image needs a later version of zonefs_emu."""


class CorruptImageError(ImageError):
    """Metadata is damaged.

    *offset* is the byte offset in the file; *found* and *expected* are for people.
    """

    def __init__(self, what: str, *, offset: int, found: str, expected: str) -> None:
        super().__init__(f"{what} at byte {offset}: found {found}, expected {expected}")
        self.offset = offset
        self.found = found
        self.expected = expected


class ImageBusyError(ImageError):
    """Another process holds the image; *holder* says who, as far as is known."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"{path} is in use by {holder}")
        self.holder = holder


class NoSpaceError(ImageError):
    """The host has no room for metadata. Nothing is lost, and with room the same succeeds; *status* is NO_SPACE."""

    status = Status.NO_SPACE


class PoisonedError(ImageError):
    """A host write or sync failed; nothing more is written until the image is reopened.

    *status* is the answer to the command that met it: IO_ERROR for the first, POISONED for all later ones.
    """

    def __init__(self, message: str, status: Status = Status.POISONED) -> None:
        super().__init__(message)
        self.status = status


#: The host failed, or is full: both carry the status of the answer.
HOST_ERRORS: Final = (PoisonedError, NoSpaceError)

#: Characters that end a line, move a terminal's cursor or cannot be encoded: controls (C0, DEL, C1), the line and
#: paragraph separators, and surrogates, which represent the bytes of a name that are no text (PEP 383).
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return *text*, a path for example, on one line and in characters that every stream can encode.

    A newline becomes ``\n``, a byte that is no text ``\xff``. For people; JSON escapes in its own way.
    """
    return _UNPRINTABLE.sub(_escape, str(text))


def _escape(found: "re.Match[str]") -> str:
    code = ord(found[0])
    # PEP 383 puts the byte 0xNN at U+DCNN.
    return f"\\x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else repr(found[0])[1:-1]


@contextmanager
def trying(operation: str) -> Iterator[None]:
    """Note on the OSError that leaves the context, if there is none yet, what was tried and with which file.

    *operation* follows "cannot": "open a.img for writing". The exception of a failed system call has only its errno and
    sometimes a file name.
    """
    try:
        yield
    except OSError as error:
        if not getattr(error, "__notes__", ()):
            error.add_note(operation)
        raise


def host_sentence(error: OSError) -> str:
    """Return what the host refused, and of which file if that is known, as one sentence."""
    reason = error.strerror or str(error)
    for operation in getattr(error, "__notes__", ())[:1]:
        return f"cannot {operation}: {reason}"
    return f"{error.filename}: {reason}" if error.filename else reason


class PeerError(ZonedError):
    """A protocol peer broke the protocol."""


class UsageError(ZonedError):
    """The user asked for something impossible: one sentence, no traceback."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
