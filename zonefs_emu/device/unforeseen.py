"""Reporting unforeseen exceptions, and observers that failed.

A *boundary* is the code that serves one request of a guest, a front-end or a client. It catches ``Exception`` and calls
:meth:`UnforeseenErrors.contain`, so that a bug costs the request that met it and nothing else. Code below a boundary
raises freely and never catches broadly, because that would hide the exception from the boundary.

An *observer* (counters, operation log, refusal log, listeners, power-cut lab) is called after the effect of a command
is in the image. It cannot fail the command, so its first error switches it off, and
:meth:`UnforeseenErrors.observer_failed` reports that.

May not know: front-ends, protocols. Both methods are thread safe and never raise.
"""

import logging
import os
import traceback
from pathlib import PurePath
from typing import Final

from zonefs_emu.device.counters import Counter, Counters
from zonefs_emu.device.refusals import Refusal, RefusalLog, now_ns
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.zone import Condition
from zonefs_emu.persist.image import Image

#: The environment variable that names a file to which every contained exception is appended. A test suite sets it, so
#: that an exception in a daemon that survives still fails the test.
REPORT_VARIABLE: Final = "ZONEFS_EMU_INTERNAL_ERRORS"
#: The end of an entry of that file, because a traceback has several lines.
REPORT_END: Final = "\0"

log = logging.getLogger("zonefs_emu.internal")


class UnforeseenErrors:
    """Reports exceptions that a boundary contained, and observers that are switched off, for one device."""

    def __init__(self, image: Image, refusals: RefusalLog, counters: Counters) -> None:
        """Note errors in *refusals* and count them in *counters*, as long as *image* is open."""
        self._image = image
        self._refusals = refusals
        self._counters = counters
        self._logged: set[tuple[type[BaseException], str]] = set()
        #: The observers that are switched off, with the reason of each.
        self.observers_off: dict[str, str] = {}

    def contain(self, front_end: str, where: str, error: Exception) -> Status:
        """Log *error* with its traceback, note it for ``why`` and count it; returns the status to answer with.

        *front_end*: the name of its port; *where*: the request, for people ("read request of queue 2"). The traceback
        is logged once for each cause, because a guest can repeat a request without end. A cause is the exception's type
        and the line that raised it.
        """
        place = _place(error)
        cause = (type(error), place)
        kind = type(error).__name__
        message = f"internal error in {front_end}, {where}: {kind}: {error} ({place})"
        if cause not in self._logged:
            self._logged.add(cause)
            log.error("%s; this request failed, everything else continues", message, exc_info=error)
        _report(f"ERROR {log.name}: {message}", error)
        try:
            self._note(front_end, f"{kind} at {place}, {where}")
        except Exception:  # the boundary of last resort: the refusal log itself may be what failed
            log.exception("an internal error could not be noted for why")
        return Status.IO_ERROR

    def _note(self, front_end: str, request: str) -> None:
        if self._image.is_closed:
            return
        self._counters.device[Counter.INTERNAL_ERRORS] += 1
        refusal = Refusal(
            seq=self._refusals.next_seq(), time_ns=now_ns(), front_end=front_end, operation=None,
            status=Status.IO_ERROR, rule=DeviceRule.INTERNAL, zone_no=-1, cond=Condition.NOT_WP, wp=0, sector=0,
            nr_sectors=0, nr_open=0, nr_active=0, request=request,
        )  # fmt: skip
        if not self._image.readonly:
            self._refusals.add(refusal)

    def observer_failed(self, observer: str, error: Exception) -> None:
        """Report, once for each *observer* ("the counters"), that *error* has switched it off."""
        if observer in self.observers_off:
            return
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        self.observers_off[observer] = reason
        message = f"{observer} failed ({reason}): switched off"
        is_bug = not isinstance(error, OSError)
        log.warning("%s; commands are carried out as before", message, exc_info=error if is_bug else None)
        if is_bug:
            _report(f"WARNING {log.name}: {message}", error)


def _place(error: BaseException) -> str:
    """Return the file and line that raised *error*, for people."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"


def _report(message: str, error: BaseException) -> None:
    """Append *message* and the traceback of *error* to the file that :data:`REPORT_VARIABLE` names, if there is one."""
    path = os.environ.get(REPORT_VARIABLE)
    if not path:
        return
    entry = f"{message}\n{''.join(traceback.format_exception(error))}{REPORT_END}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, entry.encode(errors="backslashreplace"))
        finally:
            os.close(fd)
    except OSError as failure:
        log.warning("%s=%s cannot be written: %s", REPORT_VARIABLE, path, failure.strerror)
