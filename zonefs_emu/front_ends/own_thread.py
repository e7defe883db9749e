"""Running a blocking server on a thread of its own, as a front-end of a session with an event loop."""

from collections.abc import Callable
from typing import Final

import trio

#: Twice this is less than the time that a daemon has for its end.
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
