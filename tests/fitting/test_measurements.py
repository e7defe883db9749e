import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.fitting.measurements import Measurement, read_measurements

HEAD = "op,engine,lbaf,bs,zones,qd,role,iops,mean,p50,p95,p99,ctx"


def read(*rows: str) -> list[Measurement]:
    return read_measurements([HEAD, *rows])


def test_a_row_is_a_job() -> None:
    (found,) = read("append,spdk,lbaf0,16384,2,4,,100,2000,1900,2500,3000,")
    assert found == Measurement("append", 512, 16384, 2, 4, 100, 2000, 1900, 2500, 3000)
    assert found.group == "write and append, 512-byte blocks"


def test_a_column_may_be_missing() -> None:
    (found,) = read_measurements(["op,mean", "randread,72000"])
    assert (found.block_bytes, found.nr_bytes, found.nr_zones, found.depth, found.iops) == (4096, 4096, 1, 1, 0)
    assert found.group == "random read"


def test_the_groups() -> None:
    rows = ["randread,,,4096,14,1,,1,1,,,,", "read,,,4096,1,1,,1,1,,,,", "sm_close,,,4096,1,1,,,9,,,,x"]
    assert [found.group for found in read(*rows)] == [
        "random read, more jobs than processors",
        "sequential read",
        "open and close",
    ]


def test_zone_management_has_its_occupancy() -> None:
    found = read("sm_reset_finished,spdk,lbaf2,,1,1,,,16000000,,,,run2;pages=34464;n=9", "sm_finish,,,,,,,,1,,,,")
    assert [(one.operation, one.pages, one.finished) for one in found] == [("reset", 34464, True), ("finish", 0, False)]
    assert found[0].group == "finish and reset"


def test_the_jobs_of_a_mix_are_beside_each_other() -> None:
    read_row = "rate_append,spdk,lbaf2,4096,1,4,read,5,7,,,,limit=10 MiB/s;readqd=4"
    write_row = "rate_append,spdk,lbaf2,131072,1,1,write,80,9,,,,limit=10 MiB/s;readqd=4"
    one, other = read(read_row, write_row)
    assert (one.operation, other.operation, other.limit_bytes) == ("randread", "append", 10 << 20)
    assert one.beside == other._replace(beside=None)
    assert [found.group for found in (one, other)] == [
        "reads beside rate-limited writes",
        "rate-limited writes beside reads",
    ]
    mix = "read_write_1_99,spdk,lbaf2,4096,1,1,{},5,7,,,,4096/1"
    one, other = read(mix.format("read"), mix.format("write"))
    assert (one.group, other.operation) == ("reads of a mix of jobs", "write")
    (alone,) = read(read_row)
    assert alone.beside is None
    assert read(write_row) == []


def test_what_is_not_modelled_is_left_out() -> None:
    assert not read(
        "write,io_uring,lbaf2,4096,1,1,,1,1,,,,",
        "sm_reset,spdk,lbaf2,,1,1,,,2000,,,,run3;pages=0",
        "copy,spdk,lbaf2,4096,1,1,,1,1,,,,",
        "write,spdk,lbaf2,4096,1,1,,1,,,,,",
        "longrate_append,spdk,lbaf2,4096,1,1,read,1,1,,,,",
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("write,spdk,lbaf2,many,1,1,,1,1,,,,", "line 2: bs is 'many', which is not a number"),
        ("write,spdk,lbaf2,1.5,1,1,,1,1,,,,", "line 2: bs is '1.5'; it must be a whole number"),
        ("write,spdk,lbaf2,4096,1,1,,-1,1,,,,", "line 2: iops is '-1'; it must not be negative"),
    ],
)
def test_a_bad_value_is_said_with_its_line(row: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read(row)


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(UsageError, match="line 1: no column mean, op"):
        read_measurements(["a,b", "1,2"])
