import signal
import subprocess
import sys

import pytest

from zonefs_emu.daemon import control, ending
from zonefs_emu.fs import mount

# Takes the times of the module as seconds, and what to do as an argument.
SCRIPT = """
import os, signal, sys, threading, time
from zonefs_emu.daemon import ending

ending.END_S = ending.FLUSH_S = 0.1
waiter = ending.EndBySignal()
came = threading.Event()

def in_time():
    with waiter.watching(came.set):
        print("ready", flush=True)
        came.wait()
    print("ended", waiter.came)

def without_a_signal():
    with waiter.watching(came.set):
        pass
    print("ended", waiter.came, came.is_set(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))

def stuck():
    with waiter.watching(came.set):
        print("ready", flush=True)
        time.sleep(3600)

def flush():
    with ending.bounded_flush(bounded=True):
        time.sleep(3600)

def long_flush():
    with ending.bounded_flush(bounded=False):
        time.sleep(0.5)
    print("ended")

def short_flush():
    with ending.bounded_flush(bounded=True):
        pass
    time.sleep(0.5)
    print("ended")

globals()[sys.argv[1]]()
"""


def run(name: str, number: signal.Signals | None = None) -> tuple[int, str, str]:
    """Run a function of the script, with a signal once it is ready; returns its exit code and what it said."""
    command = [sys.executable, "-c", SCRIPT, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if number is not None:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for _ in range(3):
                process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_what_ends_in_time_ends_in_order(number: signal.Signals) -> None:
    assert run("in_time", number) == (0, "ended True\n", "")


def test_without_a_signal_nothing_is_left_behind() -> None:
    assert run("without_a_signal") == (0, "ended False False set()\n", "")


@pytest.mark.parametrize("number", ending.SIGNALS)
def test_what_is_stuck_is_left(number: signal.Signals) -> None:
    code, _, err = run("stuck", number)
    assert code == 1
    assert "what was under way has not ended within 0 seconds: leaving without a flush" in err
    assert "in stuck" in err


def test_a_flush_that_is_stuck_is_left() -> None:
    code, _, err = run("flush")
    assert code == 1
    assert "the last flush has not ended within 0 seconds: leaving without a flush" in err
    assert "in flush" in err


@pytest.mark.parametrize("name", ["long_flush", "short_flush"])
def test_other_flushes_end(name: str) -> None:
    assert run(name) == (0, "ended\n", "")


def test_five_seconds_are_kept() -> None:
    """What waits for a peer at the end leaves time for the rest."""
    assert max(control.LAST_REPLY_S, mount.UNMOUNT_SECONDS) < ending.END_S < 5
