"""Tests in the manner of zonefs-tools, on a mount: they find what they call, and their mounts are taken away."""

from pathlib import Path
from typing import Final

import pytest

from tools.conformance.devices import Shape
from tools.conformance.mounted import run_mounted
from tools.conformance.results import Outcome

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(1200)]

SHAPE: Final = Shape(nr_zones=16, zone_mib=1, nr_conv=2, block_bytes=4096, max_open_zones=5)
LIBRARY: Final = """
blkzone=$(type -p blkzone)
get_nr_zones() { $blkzone report "$1" | wc -l; }
get_nr_cnv_zones() { $blkzone report "$1" | grep -c CONVENTIONAL; }
get_nr_seq_zones() { $blkzone report "$1" | grep -c SEQ_WRITE; }
get_total_zone_capacity_sectors() { echo 1; }
get_zone_capacity_bytes() { echo $zone_bytes; }
exit_failed() { echo " --> $1"; exit 1; }
is() { [ "$1" = "$2" ] || exit_failed "$1 instead of $2"; }
sysfs_nr_wro_seq_files() { cat /sys/fs/zonefs/nothing; }
"""
SCRIPTS: Final = {
    "0001": """
        is $nr_zones/$nr_cnv_zones/$nr_seq_zones/$nr_cnv_files/$nr_seq_files 16/2/14/1/14
        mkzonefs -f -o perm=600 "$1"
        dd if=/dev/zero of="$1" bs=4096 seek=$((3 * zone_bytes / 4096)) count=1 oflag=direct
        blkzone open -o $((4 * zone_sectors)) -l $zone_sectors "$1"
        mount -t zonefs -o explicit-open "$1" "$zonefs_mntdir" || exit_failed "no mount"
        is $(stat -c %s "$zonefs_mntdir/seq/1") 4096
        is $(get_max_open_zones "$1") 5
        exec 3>>"$zonefs_mntdir/seq/2"
        is $(sysfs_nr_wro_seq_files "$1") 1
        exec 3>&-""",
    "0002": """
        grep -q " $zonefs_mntdir " /proc/mounts && exit_failed "the mount of the test before"
        dev=/dev/nullb$(create_nullb 1)
        mkzonefs "$dev" || exit_failed "no zonefs"
        set_nullb_first_seq_zone_readonly 0
        is "$(blkzone report -o $((10 * 32 * 2048)) -c 1 "$dev" | grep -c 'zcond:13(ro)')" 1""",
    "0003": """
        echo " --> skipped: no reason"
        exit 2""",
    "0004": """
        mkzonefs /dev/nullb$(create_nullb 0) && exit_failed "a disk without zones"
        mkzonefs /dev/console && exit_failed "no disk at all"
        is 1 2""",
}


def test_scripts_find_what_they_call(tmp_path: Path) -> None:
    scripts = tmp_path / "checkout/tests/scripts"
    scripts.mkdir(parents=True)
    (scripts / "test_lib").write_text(LIBRARY)
    for name, script in SCRIPTS.items():
        (scripts / f"{name}.sh").write_text(f". scripts/test_lib\n{script}\nexit 0\n")
    place = tmp_path / "place"
    place.mkdir()
    assert run_mounted(SHAPE, tmp_path / "checkout", place) == (
        Outcome(test="0001", verdict="passed"),
        Outcome(test="0002", verdict="passed"),
        Outcome(test="0003", verdict="skipped", said="no reason"),
        Outcome(test="0004", verdict="failed", said="1 instead of 2"),
    )
    assert str(place) not in Path("/proc/mounts").read_text()
