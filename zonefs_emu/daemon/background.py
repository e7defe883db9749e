"""A process that its parent waits for until it is ready.

``mount`` returns when the mount is up. The daemon is a grandchild of the command, in a session of its own, that tells
the command through a pipe that it is ready, or in one sentence why it never will be.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zonefs_emu.errors import UsageError, ZonedError, host_sentence

_MESSAGE_BYTES_MAX: Final = 65536


def run_in_background(body: Callable[[Callable[[], None]], None], *, log: Path) -> None:
    """Run ``body(ready)`` in a process of its own and return when it calls ``ready()``.

    What the process says later goes to the file *log*. In that process this function does not return: it exits. Call it
    while there is one thread only.

    Raises:
        UsageError: *body* ended before it was ready; the sentence and the exit code are its own.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        # Forked again, the daemon is no session leader and can never get a terminal; and init collects it.
        if os.fork() != 0:
            os._exit(0)
        _become_daemon(body, writer, log)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read(_MESSAGE_BYTES_MAX)
    if not answer:
        msg = f"the process in the background ended before it was ready; {log} may say why"
        raise UsageError(msg, exit_code=1)
    message = json.loads(answer)
    if message["error"] is not None:
        raise UsageError(message["error"], exit_code=message["exit_code"])


def _become_daemon(body: Callable[[Callable[[], None]], None], writer: int, log: Path) -> None:
    """Run *body* and exit."""

    def tell(error: str | None, exit_code: int) -> None:
        nonlocal writer
        if writer >= 0:
            # A parent that was interrupted is gone: this raises BrokenPipeError, and the daemon ends as well.
            os.write(writer, json.dumps({"error": error, "exit_code": exit_code}).encode()[:_MESSAGE_BYTES_MAX])
            os.close(writer)
            writer = -1

    _redirect(log)
    os.chdir("/")
    try:
        body(lambda: tell(None, 0))
    except (ZonedError, OSError) as error:
        code = error.exit_code if isinstance(error, UsageError) else 1
        sentence = host_sentence(error) if isinstance(error, OSError) else str(error)
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201  (the log, once the parent is gone)
        tell(sentence, code)
        sys.exit(code)
    sys.exit(0)


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    os.dup2(null, 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    for fd in {null, sink} - {0, 1, 2}:
        os.close(fd)
