"""How much memory a peer can make this process take, for the fuzzers of protocols.

Python's own account of its memory is used. The resident size of a process was rejected: it counts what allocators keep
for later, and depends on what ran before.
"""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_budget(nr_bytes: int) -> Iterator[None]:
    """Fail if the objects of all threads together grow by more than *nr_bytes* in the context, if only for a moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= nr_bytes, f"{peak} bytes at the peak, in place of up to {nr_bytes}"
