"""The tests of zonefs-tools on a mount of ours, on this machine: a mount needs no guest.

The tests expect a zoned block device, mkzonefs, the kernel's zonefs, and null_blk for zones that fail. Programs that
stand in for these are first in their PATH, and functions of the tests' own library that look into sysfs are replaced.
The device is the image itself, and a null_blk device is another image.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tools.conformance.devices import MOUNT, Shape, create_options
from tools.conformance.results import Outcome
from tools.conformance.zonefs_tools import parse_zonefs_tools
from tools.forking import IMPORTS, LOOP, client

_ROOT: Final = Path(__file__).parents[2]
#: Most of a test is waiting: for a mount to come up, for fio, for sleeps of its own.
_LANES: Final = 4
#: A test that takes longer hangs. On a mount that hangs even its end would be waited for in vain.
_TEST_SECONDS: Final = 600

#: What the commands of the tests load by themselves otherwise, each time.
_MORE_IMPORTS: Final = """
import zonefs_emu.front_ends.mkfs, zonefs_emu.front_ends.zonefs
from zonefs_emu.cli.verb_table import VERBS
for verb in VERBS:
    if verb.name in ("create", "mkfs", "mount", "umount", "report", "stats", "write", "open", "set-cond"):
        verb.load()
"""
_COMMON: Final = """# What a name below /dev stands for.
args=()
for word
do
    case $word in
    /dev/nullb*) args+=("$ZONED_IMAGES/${word#/dev/}") ;;
    *) args+=("$word") ;;
    esac
done
set -- "${args[@]}"
"""
#: By name; each has the common part before it.
_PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mkzonefs": 'Z mkfs "$@"',
        # It is called as: mount -t zonefs [OPTION …] DEVICE DIRECTORY.
        "mount": 'Z mount "${@:3}"',
        "umount": 'Z umount "$@"',
        "blkzone": """
command=$1; shift; sector=0; count=; image=
while [ $# -gt 0 ]
do
    case $1 in
    -o|--offset) sector=$(($2)); shift 2 ;;
    -c|--count) count=$2; shift 2 ;;
    -l) count=$(($2 / zone_sectors)); shift 2 ;;
    *) image=$1; shift ;;
    esac
done
case $command in
report) Z report --format blkzone -o ${sector}s ${count:+-c $count} "$image" ;;
*) Z $command --zone $((sector / zone_sectors)) --count ${count:-1} "$image" ;;
esac""",
        # Writes to the device itself: dd if=/dev/zero of=DEVICE bs=4096 seek=N count=1.
        "dd": """
seek=0; output=
for word
do
    case $word in
    of=*) output=${word#of=} ;;
    seek=*) seek=${word#seek=} ;;
    esac
done
case $output in
"$ZONED_IMAGES"/*)
    head -c 4096 /dev/zero >"$ZONED_IMAGES/../zeros"
    input=$ZONED_IMAGES/../zeros Z write --zone $((seek * 4096 / zone_bytes)) --offset $((seek * 4096 % zone_bytes)) \\
        "$output" ;;
*) exec /usr/bin/dd "$@" ;;
esac""",
        "sudo": 'exec "$@"',
        "modprobe": "",
        "rmmod": "",
        "modinfo": "",
        "udevadm": "",
    }
)
#: At the end of scripts/test_lib.
_REPLACED: Final = """
_stat() { Z stats "$2" | sed -n "s/^ *$1: *//p"; }
sysfs_max_active_seq_files() { _stat max_active_seq_files "$1"; }
sysfs_nr_active_seq_files() { _stat nr_active_seq_files "$1"; }
sysfs_max_wro_seq_files() { _stat max_wro_seq_files "$1"; }
sysfs_nr_wro_seq_files() { _stat nr_wro_seq_files "$1"; }
get_zone_sectors() { echo $zone_sectors; }
get_logical_block_size() { echo $ZONED_BLOCK_BYTES; }
get_max_open_zones() { echo $ZONED_MAX_OPEN; }
get_max_active_zones() { echo $ZONED_MAX_ACTIVE; }
# What a request of FUSE carries.
get_write_max_bytes() { echo 1048576; }
get_zone_append_max_bytes() { echo 524288; }
create_nullb() {
    local n=0
    while [ -e "$ZONED_IMAGES/nullb$n" ]; do n=$((n + 1)); done
    if [ "$1" == 1 ]
    then Z create "$ZONED_IMAGES/nullb$n" --size 2G --zone-size 32M --nr-conv 10 --max-open-zones 8 \\
        --max-active-zones 8 >/dev/null || exit_failed "no image"
    else truncate -s 2G "$ZONED_IMAGES/nullb$n"
    fi
    echo "$n" >"$logdir/.zonefs_test_nullbn"
    echo "$n"
}
destroy_nullb() { rm -f "$ZONED_IMAGES/nullb$1" "$logdir/.zonefs_test_nullbn"; }
require_null_blk() { :; }
require_nullb_readonly() { :; }
require_nullb_offline() { :; }
require_write_mounted_dev() { :; }
set_nullb_first_seq_zone_readonly() { Z set-cond "$ZONED_IMAGES/nullb$1" --zone 10 readonly; }
set_nullb_first_seq_zone_offline() { Z set-cond "$ZONED_IMAGES/nullb$1" --zone 10 offline; }
"""
#: What tests/zonefs-tests.sh does, without its look at block devices and kernel modules.
_DRIVER: Final = """
. scripts/test_lib
Z create $image $options >/dev/null
export logdir zonefs_mntdir zone_sectors zone_bytes
export short=false zonefs_has_sysfs=1 zonefs_module=0 iosize=262144
export nr_zones=$(get_nr_zones $image) nr_cnv_zones=$(get_nr_cnv_zones $image) nr_seq_zones=$(get_nr_seq_zones $image)
export total_usable_sectors=$(get_total_zone_capacity_sectors $image)
export nr_cnv_files=0 nr_seq_files=$nr_seq_zones seq_file_0_zone_start_sector=$((nr_cnv_zones * zone_sectors))
if [ $nr_cnv_zones = 0 ]
then nr_seq_files=$((nr_seq_zones - 1)) seq_file_0_zone_start_sector=$zone_sectors
else nr_cnv_files=$((nr_cnv_zones - 1))
fi
export seq_file_0_max_size=$(get_zone_capacity_bytes $image $seq_file_0_zone_start_sector)
export zone_cap_sectors=$((seq_file_0_max_size / 512)) zone_cap_bytes=$seq_file_0_max_size
for script in $scripts
do
    log=$logdir/$(basename $script .sh).log
    timeout -k 5 $seconds bash scripts/$script $image >$log 2>&1 </dev/null
    case $? in
    0) echo PASS ;;
    2) echo skip ;;
    *) echo FAILED ;;
    esac >>$log
    ! grep -q " $zonefs_mntdir " /proc/mounts || umount $zonefs_mntdir >/dev/null
    rm -f $ZONED_IMAGES/nullb*
    echo "== $(basename $script .sh)"
    grep -e '^PASS$' -e '^skip$' -e '^FAILED' -e '-->' $log
    grep -q -e '^PASS$' -e '^skip$' -e '-->' $log || echo "--> $(tail -n 2 $log | head -n 1)"
done
"""


def run_mounted(shape: Shape, checkout: Path, directory: Path) -> tuple[Outcome, ...]:
    """Run the tests of the compiled *checkout* on mounts of images of *shape*, all of it below *directory*.

    The tests share nothing but names below directories of their own, so several of them run side by side.
    """
    lanes = range(_LANES)
    with ThreadPoolExecutor(_LANES) as executor:
        found = executor.map(lambda lane: _run_lane(shape, checkout, directory / str(lane), lane), lanes)
        outcomes = [outcome for each in found for outcome in each]
    return tuple(sorted(outcomes, key=lambda outcome: outcome.test))


def _run_lane(shape: Shape, checkout: Path, directory: Path, lane: int) -> tuple[Outcome, ...]:
    """Run the tests of one *lane*, which are every fourth one, below *directory*, which is made."""
    directory.mkdir()
    shutil.copytree(checkout / "tests", directory / "tests", symlinks=True)
    prepare(directory)
    image = directory / "images/disk"
    environment = _environment(directory, shape)
    scripts = sorted(path.name for path in (checkout / "tests/scripts").glob("[0-9]*.sh"))[lane::_LANES]
    driver = (
        f"image={shlex.quote(str(image))} logdir={shlex.quote(str(directory / 'logs'))} seconds={_TEST_SECONDS}\n"
        f"options={shlex.quote(create_options(MOUNT, shape))}\n"
        f"scripts={shlex.quote(' '.join(scripts))}\n"
        f"zonefs_mntdir={shlex.quote(str(directory / 'mnt'))}\n{_DRIVER}"
    )
    requests = directory / "commands/requests"
    os.mkfifo(requests)
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTS + _MORE_IMPORTS + LOOP, requests], cwd=directory, env=environment
    ) as server:
        try:
            done = subprocess.run(
                ["bash", "-c", driver], cwd=directory / "tests", env=environment, check=False, stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        finally:
            server.kill()
    return parse_zonefs_tools(done.stdout)


def prepare(directory: Path) -> None:
    """Write the programs that stand in, and add the replaced functions to the library of the tests below it."""
    z = client(directory / "commands")
    for name in ("bin", "commands", "images", "logs", "mnt", "runtime"):
        (directory / name).mkdir(mode=0o700)
    for name, script in _PROGRAMS.items():
        (directory / "bin" / name).write_text(f"#!/bin/bash\n{z}{_COMMON}{script}\n")
        (directory / "bin" / name).chmod(0o755)
    with (directory / "tests/scripts/test_lib").open("a") as library:
        library.write(z + _REPLACED)


def _environment(directory: Path, shape: Shape) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{directory / 'bin'}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "PYTHONPATH": str(_ROOT),
        "XDG_RUNTIME_DIR": str(directory / "runtime"),
        "ZONED_IMAGES": str(directory / "images"),
        "ZONED_BLOCK_BYTES": str(shape.block_bytes),
        "ZONED_MAX_OPEN": str(shape.max_open_zones),
        "ZONED_MAX_ACTIVE": str(shape.max_active_zones),
        "zone_sectors": str(shape.zone_mib << 11),
        "zone_bytes": str(shape.zone_mib << 20),
    }
