"""What suites print, and what is made of it."""

from tools.conformance.blktests import parse_blktests
from tools.conformance.devices import MOUNT, OURS, PEERS, SHAPES
from tools.conformance.fio import parse_fio
from tools.conformance.iotest import parse_iotest
from tools.conformance.libzbc import parse_libzbc
from tools.conformance.results import Outcome
from tools.conformance.steps import parse_step
from tools.conformance.suites import SUITES
from tools.conformance.zonefs_tools import parse_zonefs_tools

FIO = """\
Running test 01 ... PASS
Running test 10 ... SKIP    /dev/sda is not a SCSI device
Running test 02 ... FAIL
fio: io_u error on file /dev/sda: Input/output error
fio exited with status 1
Running test 03 ... PASS
"""
BLKTESTS = """\
zbd/001 => sda (sysfs and ioctl)
zbd/001 => sda (sysfs and ioctl)                             [passed]
    runtime    ...  1.2s
zbd/002 => sda (report zone)                                 [not run]
    src/zbdioctl is not there
    and another reason
zbd/003 => sda (reset zones)
zbd/003 => sda (reset zones)                                 [failed]
    runtime    ...  3.0s
    --- tests/zbd/003.out
    +++ /run/blktests/sda/zbd/003.out.bad
     Running zbd/003
    +blkzone reset command failed
    +Test complete
zbd/004 => sda (write split across sequential zones)
bash: cannot fork
"""
LIBZBC = """\
== 00.010
TESTRESULT==Passed
== 00.020
TESTRESULT==N/A No conventional zones
== 01.030
TESTRESULT==Passed
TESTRESULT==Failed type=0x2
=> Expected Illegal-request / Write-boundary-violation
Got Illegal-request / Unaligned-write-command
== 02.040
"""
ZONEFS = """\
== 0010
PASS
== 0110
 --> skipped: no conventional zones
skip
== 0310
 --> Invalid file size 0 B, expected 4096 B
FAILED
== 0311
PASS
FAILED (rmmod)
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


def test_a_blktest_that_says_nothing_has_failed() -> None:
    passed, not_run, failed, *silent = parse_blktests(BLKTESTS)
    assert passed == Outcome(test="001", verdict="passed")
    assert not_run == Outcome(test="002", verdict="skipped", said="src/zbdioctl is not there")
    assert failed == Outcome(test="003", verdict="failed", said="blkzone reset command failed")
    assert [(each.test, each.verdict, each.said) for each in silent] == [
        (test, "failed", "bash: cannot fork") for test in ("004", "005", "006")
    ]


def test_a_test_of_libzbc_fails_if_one_of_its_results_does() -> None:
    expected = "Expected Illegal-request / Write-boundary-violation Got Illegal-request / Unaligned-write-command"
    assert parse_libzbc(LIBZBC) == (
        Outcome(test="00.010", verdict="passed"),
        Outcome(test="00.020", verdict="skipped", said="No conventional zones"),
        Outcome(test="01.030", verdict="failed", said=f"type=0x2 {expected}"),
        Outcome(test="02.040", verdict="failed", said="without a result"),
    )
    assert parse_libzbc("Test program directory programs does not exist\n") == ()


def test_a_test_of_zonefs_tools_fails_if_the_module_cannot_be_unloaded_after_it() -> None:
    assert parse_zonefs_tools(ZONEFS) == (
        Outcome(test="0010", verdict="passed"),
        Outcome(test="0110", verdict="skipped", said="no conventional zones"),
        Outcome(test="0310", verdict="failed", said="Invalid file size 0 B, expected 4096 B"),
        Outcome(test="0311", verdict="failed", said=""),
    )


def test_a_step_says_why_it_failed() -> None:
    assert parse_step("mkfs", "PASSED\n") == Outcome(test="mkfs", verdict="passed")
    failed = parse_step("mkfs", "mkfs.f2fs: no\n zones\n")
    assert failed == Outcome(test="mkfs", verdict="failed", said="mkfs.f2fs: no zones")
    assert parse_step("mkfs", "").said == "nothing"
    assert parse_step("mkfs", "SKIPPED\nno tool\n") == Outcome(test="mkfs", verdict="skipped", said="no tool")


def test_a_suite_is_run_on_disks_that_there_are() -> None:
    assert {shape for suite in SUITES.values() for shape in suite.shapes} <= set(SHAPES)
    assert all({name for name, _ in suite.places} <= {*OURS, *PEERS} for suite in SUITES.values())
    assert ("scsi_debug", "large") not in SUITES["qemu"].places, "250 GiB are more than memory"
    assert SUITES["libzbc"].places == (("SCSI", "limited"), ("scsi_debug", "limited"))
    assert [key for key, suite in SUITES.items() if (MOUNT, suite.shapes[0]) in suite.places] == ["zonefs"]
    assert SUITES["fio"].places[:2] == (("SCSI", "small"), ("SCSI", "capacity"))
    assert len({suite.name for suite in SUITES.values()}) == len(SUITES)
