import json

import pytest

from zonefs_emu.cli.workload_files import read_fio, read_log, read_toml
from zonefs_emu.device.oplog import FORMAT
from zonefs_emu.errors import UsageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.timing.workload import ALL_ZONES, REQUESTS_MAX, Arrival, WorkloadJob
from zonefs_emu.model.transitions import Operation

MIB = 1 << 20
#: 16 zones of 1 MiB, with 768 KiB of capacity.
SHAPE = Geometry(size=16 * 2048, zone_size=2048, zone_capacity=1536, block_size_bytes=4096)


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("4k/60:64k/40", ((8, 60), (128, 40))),
        ("4k/60:64k:128k", ((8, 60), (128, 20), (256, 20))),
        ("4k:64k", ((8, 50), (128, 50))),
        ("4k/10:64k/20", ((8, 10), (128, 90))),
        ("4k/100:64k", ((8, 100),)),
    ],
)
def test_shares_of_sizes_are_per_cent_as_in_fio(split: str, sizes: tuple[tuple[int, float], ...]) -> None:
    (job,) = read_fio(f"[a]\nsize=1m\nbssplit={split}", SHAPE)
    assert job.sizes == sizes


@pytest.mark.parametrize("options", ["rwmixread=30", "rwmixwrite=70", "rwmixread=30\nrwmixwrite=70"])
def test_shares_of_reads_and_writes(options: str) -> None:
    (job,) = read_fio(f"[a]\nrw=randrw\nsize=1m\n{options}", SHAPE)
    assert job.mix == ((Operation.READ, 0.3), (Operation.WRITE, 0.7))


def test_what_runs_one_after_the_other_is_not_under_way_together() -> None:
    text = "[global]\nsize=1m\niodepth=65536\nstonewall\n[a]\n[b]\n"
    assert [job.group for job in read_fio(text, SHAPE)] == [0, 1]


def test_a_workload_in_toml() -> None:
    text = """
        [[job]]
        name = "log"
        mix = { append = 9, read = 1, finish = 0 }
        sizes = { "4K" = 3, 8192 = 1 }
        zones = "2-5"
        depth = 8
        random = true
        rate = "10M"
        rate_requests = 500
        count = 10
        bytes = "1M"
        time = "2s"
        start = "5ms"
        think = "10us"
        group = 1
        jobs = 2
        open_zones = 3
        skip_zones = 1

        [[job]]
        operation = "reset"
        zones = 3
        count = 1
    """
    first, second, reset = read_toml(text, SHAPE)
    assert first == second
    assert first == WorkloadJob(
        name="log", mix=((Operation.APPEND, 9), (Operation.READ, 1)), sizes=((8, 3), (16, 1)), zones=(2, 4), depth=8,
        random=True, rate_bytes=10 * MIB, rate_requests=500, count=10, nr_bytes=MIB, duration_ns=2 * 10**9,
        begin_ns=5_000_000, think_ns=10_000, group=1, open_zones=3, skip_zones=1,
    )  # fmt: skip
    assert (reset.name, reset.mix, reset.zones) == ("job1", ((Operation.RESET, 1),), (3, 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x", "not TOML: "),
        ("", r"a workload needs at least one table \[\[job\]\]"),
        ("job = 3", r"at least one table \[\[job\]\]"),
        ("[[job]]\ncolour = 3", "job 'job0': there is no key 'colour'; there are bytes, count"),
        ("[[job]]\ncount = 1\nmix = 3", "mix and sizes are tables"),
        ("[[job]]\ncount = 1\noperation = 'copy'", "there is no operation 'copy'; there are read, write"),
        ("[[job]]\ncount = 1\nmix = { read = -1 }", "the weight -1 is not a number"),
        ("[[job]]\ncount = 1\nmix = { read = 0 }", "all weights are 0"),
        ("[[job]]\ncount = 1\nsize = 1000", "a request of 1000 bytes is not a whole number of blocks of 4096"),
        ("[[job]]\ncount = 1\nsize = '1M'", "a request of 1048576 bytes is larger than a zone's capacity"),
        ("[[job]]\ncount = 1\nsize = 'many'", "'many' is not a size"),
        ("[[job]]\ncount = 1\nzones = '3-'", "zones must be a number or a range, such as 3 or 0-7, not '3-'"),
        ("[[job]]\ncount = 1\nzones = '3-16'", "there are no zones 3-16: there are zones 0 to 15"),
        ("[[job]]\ncount = 1\ndepth = 0", "depth is 0; it must be a whole number from 1"),
        ("[[job]]\ncount = true", "count is True; it must be a whole number"),
        ("[[job]]\ncount = 1\njobs = 2000", "more than 1024 jobs"),
        ("[[job]]\ntime = '3 days'", "'3 days' is not a time"),
        ("a = " + 5000 * "[", "not TOML: "),
        ("[[job]]\ncount = " + 5000 * "9", "not TOML: "),
        ("[[job]]\ncount = 1\noperation = ['write']", "there is no operation"),
        ("[[job]]\ncount = 1\nsize = [4096]", "is not a size"),
        ("[[job]]\ncount = 1\nsize = '" + 900_000 * "9" + "'", "too large"),
        ("[[job]]\ncount = 1\nrate = 1" + 400 * "0", "is not a size|too large"),
        ("[[job]]\ncount = 1\nmix = { read = 1e308, write = 1e308 }", "the weights are too large"),
        ("[[job]]\ncount = 1\ndepth = 65536\njobs = 2", "more than 65536 requests would be under way together"),
        ("[[job]]\nsize = 4096", "the job has no end: give count, bytes or time"),
    ],
)
def test_what_is_wrong_in_a_workload_is_said(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_toml(text, SHAPE)


def test_conventional_zones_are_read_and_written_only() -> None:
    shape = Geometry(size=16 * 2048, zone_size=2048, zone_capacity=2048, conventional=((2, 3),))
    text = "[[job]]\ncount = 1\nzones = '{}'\noperation = '{}'"
    for zones, operation in (("0-15", "write"), ("3", "read"), ("0-1", "append"), ("5", "reset")):
        assert read_toml(text.format(zones, operation), shape)
    for zones, operation in (("0-2", "append"), ("4", "reset"), ("0-15", "finish")):
        with pytest.raises(UsageError, match="some of its zones are conventional"):
            read_toml(text.format(zones, operation), shape)


def test_a_job_file_of_fio() -> None:
    text = """
        ; what fio does on its host is passed over
        [global]
        ioengine=io_uring
        direct=1
        zonemode=zbd
        filename=/dev/sdb
        group_reporting
        bs=8k

        [fill]
        readwrite=write
        size=2m
        offset=1m
        iodepth=4

        [readers]
        stonewall
        rw=randread
        bssplit=4k/60:64k/40
        runtime=3
        time_based
        size=4m
        numjobs=2
        offset_increment=4m

        [mix]
        wait_for_previous
        rw=rw
        rwmixread=70
        zone_append=1
        rate=10m
        rate_iops=100
        number_ios=50
        startdelay=500ms
        thinktime=20
        io_size=1g
        """
    fill, first, second, mix = read_fio("\n".join(line.strip() for line in text.splitlines()), SHAPE)
    assert fill == WorkloadJob(
        name="fill", mix=((Operation.WRITE, 1),), sizes=((16, 1),), zones=(1, 2), depth=4, count=REQUESTS_MAX,
        nr_bytes=2 * 768 << 10,
    )  # fmt: skip
    assert first == WorkloadJob(
        name="readers.0", mix=((Operation.READ, 1),), sizes=((8, 60), (128, 40)), zones=(0, 4), random=True,
        count=REQUESTS_MAX, duration_ns=3 * 10**9, group=1,
    )  # fmt: skip
    assert (second.name, second.zones) == ("readers.1", (4, 4))
    assert mix == WorkloadJob(
        name="mix", mix=((Operation.READ, 0.7), (Operation.APPEND, 1 - 0.7)), sizes=((16, 1),),
        zones=(0, 16), rate_bytes=10 * MIB, rate_requests=100, count=50, nr_bytes=1 << 30, begin_ns=500_000_000,
        think_ns=20_000, group=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rw=read", "not a job file of fio: File contains no section headers"),
        ("[global]\nrw=read", r"at least one section that is not \[global\]"),
        ("[a]\nverify=crc32c", "job 'a': fio's option 'verify' is not simulated; simulated are bs, bssplit"),
        ("[a]\nloops=3", "job 'a': fio's option 'loops' is not simulated"),
        ("[a]\nkb_base=1000", "job 'a': fio's option 'kb_base' is not simulated"),
        ("[a]\nrw=trim", "rw=trim is not simulated"),
        ("[a]\ndirect=0", "direct=0 is not simulated, because it would change the workload"),
        ("[a]\nexitall", "exitall=1 is not simulated"),
        ("[a]\niodepth_batch_submit=8", "iodepth_batch_submit=8 is not simulated"),
        ("[a]\niodepth_low=8", "iodepth_low=8 is not simulated"),
        ("[a]\nzonemode=strided", "zonemode=strided is not simulated"),
        ("[a]\nioengine=mmap", "ioengine=mmap is not simulated"),
        ("[a]\nfilename=/dev/sda:/dev/sdb", "several files in one job are not simulated"),
        ("[a]\nzonesize=2m", "zonesize=2m differs from that of the drive, which is 1048576"),
        ("[a]\nzonecapacity=1m", "zonecapacity=1m differs from that of the drive, which is 786432"),
        ("[a]\nzoneskip=4k", "zoneskip=4k is not a whole number of zones"),
        ("[a]\nmax_open_zones=many", "max_open_zones=many is not a whole number"),
        ("[a]\nsize=1m\nbs=4k,8k", "different sizes of reads and writes"),
        ("[a]\nsize=1m\nnumjobs=0", "numjobs=0 is not from 1 to 1024"),
        ("[a]\nsize=1m\nnumjobs=600\n[b]\nsize=1m\nnumjobs=600", "job 'b': more than 1024 jobs"),
        ("[a]\nsize=1m\niodepth=many", "iodepth=many is not a whole number"),
        ("[a]\nsize=1m\noffset=4k", "begins at byte 4096, which is not the start of a zone"),
        ("[a]\nsize=1g", "there are no zones 0-1023"),
        ("[a]\nruntime=long", "'long' is not a time"),
        ("[a]\nsize=1m\nruntime=" + 400 * "9", "is not a time"),
        ("[a]\nsize=1m\nrate_iops=" + 400 * "9", "is not a whole number up to"),
        ("[a]\nrw=rw\nsize=1m\nrwmixread=" + 400 * "9", "is not a whole number up to"),
        ("[a]\nsize=1m\nbs=,", "different sizes of reads and writes"),
        ("[a]\nnumber_ios=0", "the job has no end"),
        ("[a]\nrw=rw\nsize=1m\nrwmixread=101", "rwmixread=101 is not from 0 to 100"),
        ("[a]\nrw=rw\nsize=1m\nrwmixread=70\nrwmixwrite=40", "rwmixread=70 and rwmixwrite=40 do not add up to 100"),
        ("[a]\nsize=1m\nbssplit=4k/60:8k/50", "the shares of bssplit=4k/60:8k/50 add up to 110 per cent"),
        ("[a]\nsize=1m\nbssplit=4k/60:8k,4k", "different sizes of reads and writes are not simulated"),
        ("[a]\nsize=1m\nbssplit=4k/many", "bssplit=many is not a whole number"),
        ("[a]\nsize=1m\nnumjobs=2\niodepth=65536", "more than 65536 requests would be under way together"),
        ("[a]\nsize=1m\n[b]\nsize=1m\n[a]\nsize=2m", "two sections are called 'a'"),
        ("[a]\nsize=1m\n[global]\nbs=8k\n[b]\nsize=1m", r"\[global\] is not the first section"),
        ("[a]\nrw=read\nstonewall=0\nzone_append=0", "the job has no end"),
    ],
)
def test_what_is_not_simulated_of_fio_is_said(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_fio(text, SHAPE)


LIMITED = Geometry(size=16 * 2048, zone_size=2048, zone_capacity=1536, block_size_bytes=4096, max_open_zones=6)


@pytest.mark.parametrize(
    ("options", "together", "own"),
    [
        ("", 6, 0),
        ("max_open_zones=4", 4, 0),
        ("max_open_zones=4\njob_max_open_zones=2", 4, 2),
        ("ignore_zone_limits=1", 0, 0),
        ("ignore_zone_limits=0\nmax_open_zones=0", 6, 0),
        ("ignore_zone_limits\nmax_open_zones=8", 8, 0),
    ],
)
def test_open_zones_are_limited_as_in_fio(options: str, together: int, own: int) -> None:
    (job,) = read_fio(f"[a]\nrw=randwrite\nsize=1m\n{options}", LIMITED)
    assert (job.open_zones_together, job.open_zones) == (together, own)


@pytest.mark.parametrize("option", ["max_open_zones", "job_max_open_zones"])
def test_more_open_zones_than_the_drive_has_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option}=7 is more than the 6 open zones of the drive"):
        read_fio(f"[a]\nsize=1m\n{option}=7", LIMITED)


@pytest.mark.parametrize(
    ("options", "skip_zones", "nr_bytes"),
    [("zoneskip=1m", 1, 4 * 768 << 10), ("zoneskip=3z", 3, 2 * 768 << 10), ("rw=randread\nzoneskip=1m", 0, 6 << 20)],
)
def test_zones_that_fio_skips(options: str, skip_zones: int, nr_bytes: int) -> None:
    (job,) = read_fio(f"[a]\nsize=8m\nzonesize=1m\nzonecapacity=768k\n{options}", SHAPE)
    assert (job.skip_zones, job.nr_bytes) == (skip_zones, nr_bytes)


def test_an_engine_that_waits_for_each_request_has_one_under_way() -> None:
    for engine, depth in (("psync", 1), ("libzbc", 1), ("io_uring", 8)):
        (job,) = read_fio(f"[a]\nsize=1m\niodepth=8\nioengine={engine}", SHAPE)
        assert job.depth == depth


def test_lines_of_fio_may_be_indented_and_have_comments() -> None:
    indented = "[a]\n  stonewall\n    rw=write ; in order\n  size=1m # of a zone\n"
    assert read_fio(indented, SHAPE) == read_fio("[a]\nrw=write\nsize=1m", SHAPE)


HEAD = {
    "format": FORMAT,
    "geometry": {"size": 16 * 2048, "zone_size": 2048, "zone_capacity": 1536, "conventional": []},
}


def line(**entry: object) -> str:
    return json.dumps({"ns": 5, "port": "fuse", "dialect": "virtio", "status": "OK"} | entry)


def test_a_log_is_what_was_carried_out() -> None:
    lines = [
        json.dumps(HEAD),
        line(op="append", sector=4096, nr_sectors=8, landed=4104),
        line(op="write", sector=4104, nr_sectors=8, status="UNALIGNED_WP"),
        line(op="reset", sector=2048, nr_zones=3),
        line(op="finish", all=True),
        line(op="flush"),
        line(op="read", sector=4100, nr_sectors=4),
    ]
    geometry, arrivals = read_log(lines)
    assert (geometry.nr_zones, geometry.zone_capacity) == (16, 1536)
    assert list(arrivals) == [
        Arrival(5, "fuse", Operation.APPEND, 2, 0, 8),
        Arrival(5, "fuse", Operation.RESET, 1, 0, 0, 3),
        Arrival(5, "fuse", Operation.FINISH, 0, 0, 0, ALL_ZONES),
        Arrival(5, "fuse", Operation.READ, 2, 4, 4),
    ]


@pytest.mark.parametrize(
    ("damaged", "sentence"),
    [
        ("{", "line 2 of the log is not a JSON object"),
        (line(op="read", sector=1 << 40, nr_sectors=1), "line 2 of the log is not an operation"),
        (line(op="read", sector=0, nr_sectors=-1), "line 2 of the log is not an operation"),
        (line(op="read"), "line 2 of the log is not an operation"),
        (line(op="read", sector=0, nr_sectors=1 << 40), "line 2 of the log is not an operation"),
        (line(op="read", sector=float("inf"), nr_sectors=1), "line 2 of the log is not an operation"),
        (line(op="read", sector=0, nr_sectors=1, ns=1 << 63), "line 2 of the log is not an operation"),
        (line(op="reset", all=True, ns=-1), "line 2 of the log is not an operation"),
        (line(op="reset", sector=0, nr_zones=-1), "line 2 of the log is not an operation"),
        (4000 * "[", "line 2 of the log is not a JSON object"),
    ],
)
def test_a_damaged_log_is_said_with_its_line(damaged: str, sentence: str) -> None:
    _, arrivals = read_log([json.dumps(HEAD), damaged])
    with pytest.raises(UsageError, match=sentence):
        list(arrivals)


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(UsageError, match="not an operation log"):
        read_log([])
