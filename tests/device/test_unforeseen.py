"""What a contained exception leaves behind: one traceback, a refusal for ``why``, a number in ``stats``."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.device.unforeseen import REPORT_END, REPORT_VARIABLE
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition

ExpectWarning = Callable[[str], None]


def raised(kind: type[Exception] = TypeError, text: str = "planted") -> Exception:
    try:
        raise kind(text)
    except Exception as error:  # what a boundary has in hand: an exception with a traceback
        return error


def test_it_is_noted_counted_and_answered(device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    expect_warning("internal error in guest, read of queue 2: TypeError: planted")
    status = device.unforeseen.contain("guest", "read of queue 2", raised())
    assert status is Status.IO_ERROR
    (refusal,) = device.refusals.last(10)
    assert (refusal.rule, refusal.status, refusal.front_end) == (DeviceRule.INTERNAL, Status.IO_ERROR, "guest")
    assert refusal.request.startswith("TypeError at test_unforeseen.py:")
    # It is of no zone: what it met is the program's own.
    assert (refusal.operation, refusal.zone_no, refusal.cond, refusal.wp) == (None, -1, Condition.NOT_WP, 0)
    assert (refusal.sector, refusal.nr_sectors, refusal.nr_open, refusal.nr_active) == (0, 0, 0, 0)
    assert "read of queue 2" in EXPLAINER.explain(refusal, device.geometry)
    assert device.statistics()["internal_errors"] == 1


def test_the_traceback_of_a_cause_is_logged_once(
    device: ZonedDevice, expect_warning: ExpectWarning, caplog: pytest.LogCaptureFixture
) -> None:
    expect_warning("internal error")
    for _ in range(3):
        device.unforeseen.contain("guest", "read", raised())
    device.unforeseen.contain("guest", "read", raised(KeyError))
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info and record.exc_info[0] for record in errors] == [TypeError, KeyError]
    assert device.statistics()["internal_errors"] == 4
    assert len(device.refusals.last(10)) == 4


def test_an_exception_that_was_never_raised_has_no_place(device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    expect_warning("internal error .*an unknown place")
    device.unforeseen.contain("guest", "read", ValueError("made, not raised"))


def test_what_fails_below_it_is_logged(
    device: ZonedDevice, expect_warning: ExpectWarning, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_refusal: object) -> None:
        raise MemoryError

    monkeypatch.setattr(device.refusals, "add", broken)
    expect_warning("internal error in guest")
    expect_warning("could not be noted for why")
    assert device.unforeseen.contain("guest", "read", raised()) is Status.IO_ERROR


def test_after_close_it_is_only_logged(device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    device.close()
    expect_warning("internal error in guest")
    assert device.unforeseen.contain("guest", "read", raised()) is Status.IO_ERROR


def test_a_read_only_image_is_not_written(tmp_path: Path, device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    path = tmp_path / "a.img"  # where the fixture has it
    device.close()
    before = path.read_bytes()
    readonly = ZonedDevice.open(path, readonly=True)
    expect_warning("internal error in guest")
    readonly.unforeseen.contain("guest", "read", raised())
    assert readonly.statistics()["internal_errors"] == 1
    readonly.close()
    assert path.read_bytes() == before


def test_the_place_in_the_image_is_a_clean_refusal(device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    """A request that was contained pushes no refusal of a zone's rule out: it goes to the small ring."""
    port = device.port("guest", VIRTIO)
    for _ in range(5):
        port.manage(Operation.OPEN, 1)
    expect_warning("internal error")
    for number in range(500):
        device.unforeseen.contain("guest", f"request {number}", raised())
    kept = [refusal.rule for refusal in device.refusals.last(1000)]
    assert kept.count(DeviceRule.NOT_ZONE_START) == 5


def test_an_observer_is_reported_once(device: ZonedDevice, expect_warning: ExpectWarning) -> None:
    expect_warning("the counters failed .Input/output error.: switched off")
    for _ in range(2):
        device.unforeseen.observer_failed("the counters", OSError(5, os.strerror(5)))
    assert device.unforeseen.observers_off == {"the counters": "Input/output error"}


def test_a_bug_in_an_observer_is_reported_with_its_traceback(
    device: ZonedDevice, expect_warning: ExpectWarning, caplog: pytest.LogCaptureFixture
) -> None:
    expect_warning("a listener failed .TypeError: planted.")
    device.unforeseen.observer_failed("a listener", raised())
    assert caplog.records[-1].exc_info


def test_test_suites_get_a_file_of_them(
    device: ZonedDevice, expect_warning: ExpectWarning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "errors"
    monkeypatch.setenv(REPORT_VARIABLE, str(report))
    expect_warning("internal error in guest")
    expect_warning("a listener failed")
    device.unforeseen.contain("guest", "read", raised(text="first"))
    device.unforeseen.contain("guest", "read", raised(text="again, which the log leaves out"))
    device.unforeseen.observer_failed("a listener", raised())
    assert report.stat().st_mode & 0o777 == 0o600, "a traceback may tell what a guest asked for"
    first, second, third, rest = report.read_text().split(REPORT_END)
    assert "Traceback" in first
    assert "again, which the log leaves out" in second
    assert "a listener failed" in third
    assert rest == ""


def test_a_file_that_cannot_be_written_is_said(
    device: ZonedDevice, expect_warning: ExpectWarning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REPORT_VARIABLE, str(tmp_path / "no-such-directory" / "errors"))
    expect_warning("internal error in guest")
    expect_warning("cannot be written: No such file or directory")
    device.unforeseen.contain("guest", "read", raised())
