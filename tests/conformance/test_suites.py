"""What suites print, and what is made of it."""

from tools.conformance.results import Outcome
from tools.conformance.suites import parse_fio, parse_iotest

FIO = """\
Running test 01 ... PASS
Running test 10 ... SKIP    /dev/sda is not a SCSI device
Running test 02 ... FAIL
fio: io_u error on file /dev/sda: Input/output error
fio exited with status 1
Running test 03 ... PASS
"""


def test_lines_after_a_failure_are_what_the_test_said() -> None:
    assert parse_fio(FIO) == (
        Outcome(test="01", verdict="passed"),
        Outcome(
            test="02",
            verdict="failed",
            said="fio: io_u error on file /dev/sda: Input/output error fio exited with status 1",
        ),
        Outcome(test="03", verdict="passed"),
        Outcome(test="10", verdict="skipped", said="/dev/sda is not a SCSI device"),
    )
    assert parse_fio("Segmentation fault\n") == ()


def test_output_that_differs_is_a_failure() -> None:
    assert parse_iotest("AGREES\n") == (Outcome(test="zoned", verdict="passed"),)
    different = parse_iotest("5c5\n< start: 0x0, zcond:1\n---\n> start: 0x0, zcond:2\n")
    assert different == (Outcome(test="zoned", verdict="failed", said="start: 0x0, zcond:2"),)
    assert parse_iotest("") == (Outcome(test="zoned", verdict="failed", said="nothing"),)
