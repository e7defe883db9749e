"""Running what blocks on a thread of its own, beside the event loop of a session: a server, or a step of its start."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

_T = TypeVar("_T")

#: Seconds between two calls of *look_after*, which frees a thread that a peer has stopped. Two calls fit into the time
#: that a daemon has for its end.
LOOK_S: Final = 1.5


async def run_until_stopped(
    serve: Callable[[], None],
    stop: Callable[[], None],
    started: Callable[[], None],
    look_after: Callable[[], None] | None = None,
) -> None:
    """Run *serve* on a thread until it ends, or until this task is cancelled, which calls *stop*.

    *started* is called when the thread is about to run, and *look_after* every LOOK_S seconds while it runs. In either
    case this waits for the end of the thread, before which the device must not be closed.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, serve, look_after, nursery.cancel_scope)
        started()
        try:
            await trio.sleep_forever()
        finally:
            stop()


async def _serve(serve: Callable[[], None], look_after: Callable[[], None] | None, scope: trio.CancelScope) -> None:
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            if look_after is not None:
                nursery.start_soon(_look_after, look_after)
            await trio.to_thread.run_sync(serve, limiter=trio.CapacityLimiter(1))
            nursery.cancel_scope.cancel()
    scope.cancel()


async def _look_after(look_after: Callable[[], None]) -> None:
    while True:
        await trio.sleep(LOOK_S)
        look_after()


async def run_or_cut(function: Callable[[], _T], cut: Callable[[], None]) -> _T:
    """Return what *function* returns on a thread, or raise what it raises.

    If this task is cancelled, *cut* is called, which makes *function* end soon. The end of *function* is waited for in
    any case, because it uses the device, which is closed afterwards.
    """
    found: list[_T] = []
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:
        is_done = trio.Event()
        nursery.start_soon(_cut_if_cancelled, is_done, cut)
        with trio.CancelScope(shield=True):
            try:
                found.append(await trio.to_thread.run_sync(function, limiter=trio.CapacityLimiter(1)))
            except Exception as error:  # kept, as one that leaves the nursery would come in a group
                failures.append(error)
        is_done.set()
    if failures:
        raise failures[0]
    return found[0]


async def _cut_if_cancelled(is_done: trio.Event, cut: Callable[[], None]) -> None:
    try:
        await is_done.wait()
    finally:
        if not is_done.is_set():
            cut()
