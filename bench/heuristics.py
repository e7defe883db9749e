"""What each heuristic of the loop that serves virtqueues brings: the same server with and without it, over libblkio.

The servers run side by side and are measured in turn. A server without a heuristic runs the same code with one name
changed before it begins, so the product has no switch for the benchmark. A heuristic that stays below its goal, here
and in a guest, is to go.
"""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import Row, compare
from bench.vhost import Disk, compile_loop, our_disk
from tools.guest.kit import obtain_kit

GOAL: Final = 1.05
_RANDOM_READ: Final = "4 KiB random read, depth {}"

#: Where it should show (depth), what the server without it does, and how it comes to do that.
HEURISTICS: Final = (
    (1, "sleeping at once", "import zonefs_emu.virtqueue.queue_server as module\nmodule._LOOK_NS_MAX = 0"),
    (4, "sleeping at once", "import zonefs_emu.virtqueue.queue_server as module\nmodule._LOOK_NS_MAX = 0"),
    (32, "a notification a request", "import zonefs_emu.virtqueue.virtqueue as module\nmodule._NOTIFY_MAX = 1"),
)


def rows(scratch: Path, runs: int) -> list[Row]:
    """Measure random reads with and without each heuristic."""
    library, loop = obtain_kit(print).library("libblkio.so.1"), compile_loop(scratch)
    found = []
    with ExitStack() as stack:
        ours = stack.enter_context(our_disk(scratch, library, loop, name="all"))
        ours.fill()
        for number, (depth, without, change) in enumerate(HEURISTICS):
            with our_disk(scratch, library, loop, name=f"without-{number}", change=change) as peer:
                peer.fill()
                os.sync()  # the host is not to write back while others are measured

                def measure(disk: Disk, depth: int = depth) -> float:
                    return disk.read(15_000 if depth == 1 else 60_000, depth)

                row = compare(
                    "heuristics", _RANDOM_READ.format(depth), "/s", partial(measure, ours), peer=without,
                    peers=partial(measure, peer), runs=runs, goal=GOAL,
                )  # fmt: skip
                found.append(row)
    return found
