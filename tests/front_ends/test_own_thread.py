"""A server on a thread of its own, and who looks after it."""

import threading

import pytest
import trio

from zonefs_emu.front_ends import own_thread
from zonefs_emu.front_ends.own_thread import run_until_stopped


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_server_is_looked_after_until_its_thread_has_ended(
    is_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after it was told to stop: what holds it up may come then."""
    monkeypatch.setattr(own_thread, "LOOK_S", 0.001)
    freed = threading.Event()
    stops: list[bool] = []
    looks = 0

    def look_after() -> None:
        nonlocal looks
        looks += 1
        if looks >= 5 and (stops or not is_cancelled):
            freed.set()

    def stop() -> None:
        stops.append(freed.is_set())

    async with trio.open_nursery() as nursery:
        if is_cancelled:
            nursery.cancel_scope.cancel()
        await run_until_stopped(freed.wait, stop, lambda: None, look_after)  # type: ignore[arg-type]  # returns a bool
    assert looks >= 5
    assert stops == [not is_cancelled]
