from zonefs_emu.cli.simulated_report import as_json, as_text
from zonefs_emu.model.timing.workload import JobOutcome
from zonefs_emu.model.transitions import Operation


def outcome() -> JobOutcome:
    found = JobOutcome("log")
    for number in range(1000):
        found.add(Operation.APPEND, number * 1_000_000, number * 1_000_000 + 10_000 + number, 4096)
    found.add(Operation.RESET, 0, 10**9, 0)
    return found


def test_the_figures_have_the_names_and_units_of_fio() -> None:
    (job,) = as_json([outcome()])
    assert isinstance(job, dict)
    assert list(job) == ["jobname", "append", "reset"]
    append = job["append"]
    assert isinstance(append, dict)
    assert (append["total_ios"], append["iops"], append["bw_bytes"], append["runtime"]) == (1000, 1000, 4096000, 1000)
    clat = append["clat_ns"]
    assert isinstance(clat, dict)
    assert (clat["min"], clat["max"], clat["mean"], clat["stddev"], clat["N"]) == (
        10_000,
        10_999,
        10_499.5,
        288.7,
        1000,
    )
    percentile = clat["percentile"]
    assert isinstance(percentile, dict)
    assert (percentile["50.000000"], percentile["99.000000"], percentile["99.990000"]) == (10_500, 10_990, 10_999)


def test_the_text_is_like_that_of_fio() -> None:
    lines = "".join(as_text(as_json([outcome()]))).splitlines()
    assert lines[:3] == [
        "log:",
        "  append: IOPS=1000, BW=3.9MiB/s (4.1MB/s)(3.9MiB/1000msec)",
        "    clat (usec): min=10.0, max=11.0, avg=10.5, stdev=0.3",
    ]
    assert lines[4] == "     | 1th=[10.0], 5th=[10.1], 10th=[10.1], 20th=[10.2], 30th=[10.3]"
    assert any(line.startswith("  reset: IOPS=1,") for line in lines)
