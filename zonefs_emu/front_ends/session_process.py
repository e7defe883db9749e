"""A session in a process of its own, for Python programs.

The process is a new interpreter and no fork, because a fork copies locks that other threads of the program hold. The
front-ends are passed to it as a pickle, which only this module writes and reads.
"""

import logging
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from zonefs_emu.daemon.session import FrontEnd
from zonefs_emu.errors import UsageError, ZonedError, host_sentence
from zonefs_emu.front_ends.known import run

_PROGRAM: Final = "from zonefs_emu.front_ends.session_process import main; main()"
_READY: Final = b"ready\n"
#: How long a process may take to start.
_START_S: Final = 60.0


class SessionProcess:
    """A process that runs *front_ends* on *image*; its output is written to the file *log*.

    Returns when the front-ends can be used.

    Raises:
        UsageError: it has not become ready; with the reason.
    """

    def __init__(self, image: Path, front_ends: Sequence[FrontEnd], *, log: Path) -> None:
        self._log = log
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as stdin:
            stdin.write(pickle.dumps((image, front_ends)))
        with self._process.stdout as stdout:
            # Not select(), which takes no descriptor above 1023: a test's process may have many files open.
            poll = select.poll()
            poll.register(stdout, select.POLLIN)
            ready = bool(poll.poll(_START_S * 1000)) and stdout.readline() == _READY
        if not ready:
            self.kill()
            raise UsageError(self.last_words(), exit_code=1)

    def last_words(self) -> str:
        """Return the last line of the output of the process."""
        return (self._log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]

    def end(self, seconds: float) -> int:
        """End the process in order, and return its exit code; one that takes longer than *seconds* is killed."""
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Run the session, in the new process."""
    image, front_ends = pickle.load(sys.stdin.buffer)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def ready() -> None:
        os.write(1, _READY)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    try:
        run(image, front_ends, ready=ready, owner="a session in a process of its own")
    except (ZonedError, OSError) as error:
        sentence = host_sentence(error) if isinstance(error, OSError) else str(error)
        print(sentence, file=sys.stderr)  # noqa: T201
        sys.exit(1)
