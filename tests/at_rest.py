"""Whether threads of a process use the processor at all: the kernel counts nanoseconds for each."""

import time
from collections.abc import Iterable
from pathlib import Path

_SETTLING_LOOKS = 100


def threads_of(pid: int | str = "self") -> set[Path]:
    """Return the threads that the process has now, as directories of /proc."""
    return set(Path(f"/proc/{pid}/task").iterdir())


def assert_at_rest(threads: Iterable[Path]) -> None:
    """Let *threads* finish what they are at; then none of them runs any more, not even for an instant."""
    found = used_ns(threads)
    for _ in range(_SETTLING_LOOKS):
        time.sleep(0.05)
        earlier, found = found, used_ns(threads)
        if found == earlier:
            break
    time.sleep(0.4)
    assert used_ns(threads) == found


def used_ns(threads: Iterable[Path]) -> dict[str, int]:
    """Return for how many nanoseconds each thread has run on a processor."""
    # Source: Linux, Documentation/scheduler/sched-stats.rst: time on the processor, time waiting for it, runs.
    return {
        f"{(thread / 'comm').read_text().strip()} {thread.name}": int((thread / "schedstat").read_text().split()[0])
        for thread in threads
    }
