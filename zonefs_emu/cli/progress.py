"""The progress of a long command: a bar on the terminal, with the rate and the remaining time.

All verbs use it. It is made from click's progress bar, which needs no further dependency.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


@contextmanager
def progress(length: int | None, amount: Callable[[int], str]) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, if that is a terminal; yields a function that takes how much of *length* is done.

    *length*: None if it is unknown. *amount* says a number for people: ``human_bytes`` for bytes.
    """
    begin_ns = time.monotonic_ns()

    def rate(done: int | None) -> str | None:
        elapsed_ns = time.monotonic_ns() - begin_ns
        if not done or not elapsed_ns:
            return None
        so_far = f"{amount(done)}, " if length is None else ""
        return f"{so_far}{amount(done * 10**9 // elapsed_ns)}/s"

    # If the length is unknown, click wants an iterable without a length.
    nothing = map(int, ()) if length is None else None
    bar: ProgressBar[int] = click.progressbar(
        nothing, length=length, file=sys.stderr, hidden=not sys.stderr.isatty(), item_show_func=rate
    )
    with bar:

        def at(done: int) -> None:
            bar.update(max(done - bar.pos, 0), current_item=done)

        yield at
