"""A process that its parent waits for until it is ready.

``mount`` returns when the mount can be used. The daemon is a grandchild of the command, in a session of its own. It
reports through a pipe that it is ready, or in one sentence why it failed.
"""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from zonefs_emu.daemon import service_manager
from zonefs_emu.errors import UsageError, ZonedError, host_sentence

_MESSAGE_BYTES_MAX: Final = 65536
#: Signals that Python ignores on purpose, so that a write to a broken pipe, or beyond a limit, fails with an errno.
_IGNORED_BY_PYTHON: Final = frozenset((signal.SIGPIPE, signal.SIGXFSZ))
_CANNOT_CHANGE: Final = frozenset((signal.SIGKILL, signal.SIGSTOP))


def run_in_background(body: Callable[[Callable[[], None]], None], *, log: Path) -> None:
    """Run ``body(ready)`` in a process of its own and return when it calls ``ready()``.

    The output of the process is appended to the file *log* once it is ready. A process that fails before that leaves
    *log* alone, because another daemon may be the reason and may use the same file; its output goes to the stderr of
    the caller. In the new process this function does not return: it exits. Call it while there is only one thread.

    Raises:
        UsageError: *body* ended before it was ready; with the sentence and the exit code of *body*.
        OSError: the host can start no process, or *log* cannot be written.
    """
    reader, writer = os.pipe()
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        # The second fork makes a process that is no session leader, so it can never get a terminal; init collects it.
        if os.fork() != 0:
            os._exit(0)
        _become_daemon(body, writer, said, log)
    os.close(writer)
    # If SIGCHLD is ignored, as inherited from the parent, the kernel collects the child.
    with suppress(ChildProcessError):
        os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe, os.fdopen(said, "rb") as early:
        answer = pipe.read(_MESSAGE_BYTES_MAX)
        message = json.loads(answer) if answer else None
        if message is not None and message["error"] is None:
            return
        early.seek(0)
        text = early.read()
    if message is not None:
        sys.stderr.write(text.decode(errors="replace"))
        raise UsageError(message["error"], exit_code=message["exit_code"])
    os.close(_append(log, text))
    message = f"the background process ended before it was ready; {log} may have the reason"
    raise UsageError(message, exit_code=1)


def _become_daemon(body: Callable[[Callable[[], None]], None], writer: int, said: int, log: Path) -> None:
    """Run *body* and exit."""
    writer = _clean(writer, said)

    def tell(error: str | None, exit_code: int) -> None:
        nonlocal writer
        # A parent that was interrupted is gone: this raises BrokenPipeError, and the daemon ends as well.
        os.write(writer, json.dumps({"error": error, "exit_code": exit_code}).encode()[:_MESSAGE_BYTES_MAX])
        os.close(writer)
        writer = -1

    def ready() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        _continue_in(log)
        tell(None, 0)

    try:
        body(ready)
    except (ZonedError, OSError) as error:
        code = error.exit_code if isinstance(error, UsageError) else 1
        sentence = host_sentence(error) if isinstance(error, OSError) else str(error)
        if writer >= 0:
            # A parent that was interrupted is gone.
            with suppress(BrokenPipeError):
                tell(sentence, code)
        else:
            print(sentence, file=sys.stderr, flush=True)  # noqa: T201  (the log)
        sys.exit(code)
    sys.exit(0)


def _clean(writer: int, said: int) -> int:
    """Close or reset everything inherited from the parent process but the descriptor *writer*; return its new number.

    Source: daemon(7), "SysV Daemons". The standard streams are the null device and the file *said*. Everything that a
    daemon creates has a mode of its own, because the umask takes nothing away.
    """
    writer, said = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 4) for fd in (writer, said))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(writer, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON - _CANNOT_CHANGE:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # If a service manager started the parent process, this process is not the service that it waits for.
    os.environ.pop(service_manager.VARIABLE, None)
    os.umask(0)
    os.chdir("/")
    return 3


def _continue_in(log: Path) -> None:
    """Append the output so far to *log*, and send all later output there."""
    said = os.pread(1, os.fstat(1).st_size, 0)
    sink = _append(log, said)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)


def _append(log: Path, text: bytes) -> int:
    """Open *log* for appending, append *text*, and return the descriptor."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    # The daemon serves even where there is no room for its log.
    with suppress(OSError):
        os.write(sink, text)
    return sink
