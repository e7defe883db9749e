import logging

import pytest

from zonefs_emu.device.limited_log import LimitedLog


def test_a_guest_does_not_fill_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr("zonefs_emu.device.limited_log.time.monotonic", lambda: now[0])
    log = LimitedLog(logging.getLogger("zonefs_emu.tests"))
    caplog.set_level(logging.INFO)
    for number in range(1000):
        log.info("number %d", number)
    log.info("another kind")
    assert [record.getMessage() for record in caplog.records] == [
        *(f"number {number}" for number in range(10)),
        "another kind",
    ]
    caplog.clear()
    now[0] = 61
    log.info("number %d", 5000)
    log.info("number %d", 5001)
    assert [record.getMessage() for record in caplog.records] == ["number 5000 (and 990 more of these were not logged)"]


def test_one_more_is_logged_after_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    monkeypatch.setattr("zonefs_emu.device.limited_log.time.monotonic", lambda: now[0])
    log = LimitedLog(logging.getLogger("zonefs_emu.tests"))
    caplog.set_level(logging.INFO)
    for number in range(10):
        log.info("number %d", number)
    caplog.clear()
    for seconds in (60, 119):
        now[0] = seconds
        log.info("number %d", seconds)
    assert [record.getMessage() for record in caplog.records] == ["number 60"]
