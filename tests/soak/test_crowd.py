"""A soak of seconds: that every load gets something done, and that a lie is found."""

import time
from pathlib import Path

import pytest

from tools.soak.crowd import Crowd
from tools.soak.ledger import LostError

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(960)]


def test_everybody_gets_something_done_through_kills_and_stops(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, seed=1)
    try:
        crowd.begin()
        deadline = time.monotonic() + 60
        while not all(load.nr_done for load in crowd.loads):
            crowd.check_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        crowd.kill()
        crowd.begin()
        crowd.end()
        written = next(ledger for ledger in crowd.ledgers if ledger.acknowledged)
        written.acknowledged += 1
        with pytest.raises(LostError, match=f"zone {written.zone_no}:"):
            crowd.compare()
    finally:
        if crowd.daemon.is_running:
            crowd.daemon.kill()
