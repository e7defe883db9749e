"""The command lines of `tools/guest/fetch` and `tools/guest/run`."""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tools.guest.kit import Kit, KitError, obtain_kit
from tools.guest.machine import Guest, GuestError, Job, zns_drive
from tools.guest.newer_kernel import NEWER_KERNEL, find_newer_kernel
from tools.guest.newer_qemu import NEWER_QEMU, find_newer_qemu
from tools.guest.qmp import QmpError

_RUN_EXAMPLE: Final = """\
example:
  tools/guest/run --load null_blk:zoned=1,gb=1,zone_size=64 -c 'blkzone report /dev/nullb0 | head -n 3'

Without -c there is a shell; leave it to end the guest. The guest sees all files of this machine under the same
paths; what it changes there is lost when it ends.
"""


def fetch() -> int:
    """Get the kit; the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/guest/fetch",
        description="Download what the test guest is made of (Linux, QEMU, tools) into the cache, if it is not there.",
    )
    parser.add_argument("--refresh", action="store_true", help="download again, for a newer kernel")
    options = parser.parse_args()
    return _reporting(lambda: _fetch(refresh=options.refresh))


def _fetch(*, refresh: bool) -> None:
    print(obtain_kit(_progress, refresh=refresh).root)
    for part in (NEWER_QEMU, NEWER_KERNEL):
        try:
            part.obtain(_progress, refresh=refresh)
        except KitError as error:
            # The kit is complete without it.
            _progress(str(error))


def run() -> int:
    """Boot a guest and run a script or a shell in it; the exit status."""
    parser = argparse.ArgumentParser(
        prog="tools/guest/run",
        description="Boot a Linux guest and run a script or a shell in it as root.",
        epilog=_RUN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", dest="script", metavar="SCRIPT", help="run this with sh -e instead of a shell")
    parser.add_argument(
        "--scsi", metavar="SOCKET", type=Path, action="append", default=[], help="attach a vhost-user-scsi disk"
    )
    parser.add_argument(
        "--blk", metavar="SOCKET", type=Path, action="append", default=[], help="attach a vhost-user-blk disk"
    )
    parser.add_argument("--zns", metavar="FILE", type=Path, help="add a ZNS drive emulated by QEMU on this raw file")
    parser.add_argument(
        "--load", metavar="MODULE[:PARAMETER,...]", action="append", default=[], help="load a kernel module"
    )
    parser.add_argument(
        "--kernel", choices=("kit", "newer"), default="kit", help="boot the kit's kernel (default), or a newer one"
    )
    parser.add_argument("--memory", metavar="MIB", type=int, default=1024, help="memory in MiB (default: %(default)s)")
    parser.add_argument(
        "--qemu", metavar="ARGUMENT", action="append", default=[], help="a further argument for QEMU, as --qemu=-x"
    )
    parser.add_argument("--console", action="store_true", help="print the kernel's console at the end")
    return _reporting(lambda: _run(parser.parse_args()))


def _newer(kit: Kit) -> Kit:
    for part in (NEWER_QEMU, NEWER_KERNEL):
        part.obtain(_progress)
    found = find_newer_kernel(find_newer_qemu(kit))
    assert found is not None, "both parts are there"
    return found


def _run(options: argparse.Namespace) -> int:
    kit = obtain_kit(_progress)
    if options.kernel == "newer":
        kit = _newer(kit)
    zns = [] if options.zns is None else zns_drive(options.zns.resolve())
    arguments = [*zns, *options.qemu]
    terminal = options.script is None
    with Guest(kit, qemu_arguments=arguments, memory_mib=options.memory, terminal=terminal) as guest:
        if options.zns is not None:
            guest.load("nvme")
        for module in options.load:
            name, _, parameters = module.partition(":")
            guest.load(name, *filter(None, parameters.split(",")))
        for socket in options.scsi:
            _progress(f"{socket}: {guest.attach('scsi', socket.resolve()).path}")
        for socket in options.blk:
            _progress(f"{socket}: {guest.attach('blk', socket.resolve()).path}")
        status = _follow(guest, guest.start(_shell() if terminal else options.script))
        if options.console:
            print(guest.console, file=sys.stderr)
    return status


def _shell() -> str:
    """A script that is a shell on our terminal."""
    size = shutil.get_terminal_size()
    return (
        "cd /\nexport TERM=linux\nexec setsid --ctty --wait sh -c "
        f"'stty cols {size.columns} rows {size.lines}; exec bash -i' </dev/hvc0 >/dev/hvc0 2>&1"
    )


def _follow(guest: Guest, job: Job) -> int:
    """Copy what *job* prints to our own output until it ends; its exit status."""
    outputs = ((job.directory / "stdout", sys.stdout.buffer), (job.directory / "stderr", sys.stderr.buffer))
    positions = [0, 0]
    while True:
        # Read before the output is copied, so that all output from before the end is copied.
        status = job.returncode
        for number, (path, output) in enumerate(outputs):
            with path.open("rb") as source:
                source.seek(positions[number])
                positions[number] += output.write(source.read())
            output.flush()
        if status is not None:
            return status
        guest.receive(timeout=0.2)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _reporting(action: Callable[[], int | None]) -> int:
    """Do *action* and say in one place what went wrong; the exit status."""
    try:
        return action() or 0
    except (KitError, GuestError, QmpError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
