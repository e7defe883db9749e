"""A guest that writes to a served disk moves: live to another QEMU, then into a file and out of it again."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.served import Served
from tools.guest.initramfs import build_small_initramfs
from tools.guest.kit import Kit, find_kit
from tools.guest.qmp import QmpClient, QmpError

pytestmark = pytest.mark.qemu

SECONDS: Final = 120
NR_RECORDS: Final = 240
FIRST_BLOCK: Final = 4 * 1024  # zone 4, in blocks of 4 KiB
APPLETS: Final = ("cat", "dd", "echo", "head", "insmod", "mount", "poweroff", "printf", "sh", "usleep")

# Numbered blocks one after the other; then reads them all. Whatever guest memory did not arrive shows: only the
# back-end marks the pages that a read fills as changed.
INIT: Final = f"""#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec >/dev/console 2>&1
for module in /modules/*.ko; do insmod $module || echo "cannot load $module"; done
until [ -b /dev/sda ]; do usleep 50000; done
echo "the disk is $(cat /sys/block/sda/queue/zoned)"
at() {{ echo $(({FIRST_BLOCK} + $1)); }}
text() {{ printf 'record %010d\\n' $1; }}
check() {{
    found=$(dd if=/dev/sda bs=4096 skip=$(at $1) count=1 iflag=direct 2>/dev/null | head -n 1)
    [ "$found" = "$(text $1)" ] || echo "WRONG: block $1 has $found"
}}
number=0
while [ $number -lt {NR_RECORDS} ]; do
    text $number | dd of=/dev/sda bs=4096 seek=$(at $number) conv=sync oflag=direct 2>/err \\
        || {{ echo "WRONG: block $number was not written: $(cat /err)"; poweroff -f; }}
    check $number
    number=$((number + 1))
    echo "written $number."
    usleep 20000  # so that there is always more to do than moving takes
done
number=0
while [ $number -lt {NR_RECORDS} ]; do check $number; number=$((number + 1)); done
echo "all verified"
poweroff -f
"""


class SmallGuest:
    """A guest in which nothing but `INIT` runs, and which may move; it begins here, or *incoming* says where from."""

    def __init__(self, kit: Kit, directory: Path, name: str, disk: Path, *, incoming: str = "") -> None:
        initramfs = directory / "initramfs"
        if not initramfs.exists():
            modules = ("virtio_scsi", "sd_mod")
            initramfs.write_bytes(build_small_initramfs(kit, INIT, modules=modules, applets=APPLETS))
        self._console = directory / f"{name}.console"
        self._talk = directory / f"{name}.qemu"
        ours, theirs = socket.socketpair()
        command = [
            *(*kit.qemu_command, "-nodefaults", "-no-reboot", "-display", "none", "-accel", "tcg", "-cpu", "max"),
            *("-object", "memory-backend-memfd,id=memory,size=192M,share=on"),
            *("-machine", "pc,memory-backend=memory", "-m", "192"),
            *("-kernel", str(kit.kernel), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1"),
            *("-serial", f"file:{self._console}"),
            *("-chardev", f"socket,id=control,fd={theirs.fileno()}", "-mon", "chardev=control,mode=control"),
            *("-chardev", f"socket,id=disk,path={disk},reconnect-ms=200"),
            *("-device", "vhost-user-scsi-pci,chardev=disk"),
            *(("-incoming", incoming) if incoming else ()),
        ]
        with self._talk.open("wb") as talk:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=talk, stderr=talk, env=kit.environment,
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        theirs.close()
        self._control = ours

    def __enter__(self) -> Self:
        self._qmp = QmpClient(self._control, timeout=SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(
                f"--- {self._console.name}\n{self.console[-2000:]}\n--- QEMU\n{self._talk.read_text()[-2000:]}"
            )
        self._control.close()
        self._process.kill()
        self._process.wait()

    @property
    def console(self) -> str:
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + SECONDS
        while text not in self.console:
            assert "WRONG" not in self.console
            assert self._process.poll() is None, f"it ended before it said {text!r}"
            assert time.monotonic() < deadline, f"waited {SECONDS} s for {text!r}"
            time.sleep(0.05)

    def move(self, where: str) -> None:
        """Move to *where*, which is all that is left of it then."""
        self._qmp.execute("migrate", {"uri": where})
        deadline = time.monotonic() + SECONDS
        state: object = None
        while state != "completed":
            found = self._qmp.execute("query-migrate")
            assert isinstance(found, dict)
            state = found.get("status")
            assert state not in ("failed", "cancelled"), found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def quit(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._process.wait, SECONDS)
            try:
                self._qmp.execute("quit")
            except QmpError:  # it may have gone before it has answered
                assert self._process.wait(SECONDS) == 0


@contextmanager
def booted(kit: Kit, directory: Path, disk: Path) -> Iterator[SmallGuest]:
    with SmallGuest(kit, directory, "first", disk) as guest:
        guest.wait_for("the disk is host-managed")
        guest.wait_for("written 20.")
        yield guest


def test_a_guest_that_writes_moves(tmp_path: Path) -> None:
    kit = find_kit()
    assert kit is not None
    saved, moving, other_socket = tmp_path / "saved", tmp_path / "moving", tmp_path / "other.scsi"
    create = "--size 32M --zone-size 4M --nr-conv 1"
    # One process has the image, so both QEMUs get their socket from it.
    with Served(tmp_path, create=create, options=("--vhost-user-scsi", str(other_socket))) as served:
        served.wait_until_ready()
        with (
            booted(kit, tmp_path, served.scsi_socket) as first,
            SmallGuest(kit, tmp_path, "second", other_socket, incoming=f"unix:{moving}") as second,
        ):
            first.move(f"unix:{moving}")
            first.quit()
            second.wait_for("written ")
            second.move(f"exec:cat >{saved}")
            second.quit()
        # No guest uses the disk, so it may change hosts, too.
        served.stop()
        served.start()
        served.wait_until_ready()
        with SmallGuest(kit, tmp_path, "third", served.scsi_socket, incoming=f"exec:cat {saved}") as third:
            third.wait_for("all verified")
        assert served.written(4) == 8 * NR_RECORDS
        assert served.refusals() == []
    assert "WRONG" not in first.console + second.console + third.console
