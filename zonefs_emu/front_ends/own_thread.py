"""Running a blocking server on a thread of its own, as a front-end of a session with an event loop."""

from collections.abc import Callable

import trio


async def run_until_stopped(serve: Callable[[], None], stop: Callable[[], None], started: Callable[[], None]) -> None:
    """Run *serve* on a thread until it ends, or until this task is cancelled, which calls *stop*.

    *started* is called when the thread is about to run. In either case this waits for the end of the thread, before
    which the device must not be closed.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, serve, nursery.cancel_scope)
        started()
        try:
            await trio.sleep_forever()
        finally:
            stop()


async def _serve(serve: Callable[[], None], scope: trio.CancelScope) -> None:
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(serve, limiter=trio.CapacityLimiter(1))
    scope.cancel()
