"""Real boots: the guest runs commands, and has the drivers and peers that the tests of the front-ends count on."""

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.guests import GuestKeeper
from tools.guest.kit import Kit, find_kit
from tools.guest.machine import Guest, GuestError, GuestTimeoutError
from tools.guest.qmp import QmpError

pytestmark = pytest.mark.qemu

# The super block that mkzonefs of zonefs-tools would write, on a disk whose first zone is conventional.
FORMAT_ZONEFS = """
import struct, sys, uuid, zlib
block = bytearray(4096)
struct.pack_into("<I4x64s16s", block, 0, 0x5A4F4653, b"guest", uuid.uuid4().bytes)
struct.pack_into("<I", block, 104, 0o640)
struct.pack_into("<I", block, 4, zlib.crc32(block) ^ 0xFFFFFFFF)
with open(sys.argv[1], "wb", buffering=0) as disk:
    disk.write(block)
"""


@pytest.fixture
def kit() -> Kit:
    found = find_kit()
    assert found is not None
    return found


@pytest.fixture
def null_blk(guest: Guest) -> Iterator[str]:
    guest.load("null_blk", "zoned=1", "memory_backed=1", "gb=1", "zone_size=64", "zone_nr_conv=1", "zone_max_open=4")
    yield "/dev/nullb0"
    guest.run("rmmod null_blk")


def test_run(guest: Guest) -> None:
    completed = guest.run("echo out; echo err >&2; pwd; exit 3", check=False)
    assert (completed.returncode, completed.stderr) == (3, "err\n")
    assert completed.stdout == f"out\n{completed.directory}\n"


def test_a_failing_command_shows_its_output(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"exit status 1 of 'echo so; false; echo not' .*\n--- stdout\nso\n"):
        guest.run("echo so; false; echo not")


def test_words_are_not_read_by_the_shell(guest: Guest) -> None:
    assert guest.run(["echo", "a  b", "$HOME", "'"]).stdout == "a  b $HOME '\n"


def test_files_pass_both_ways_under_one_path(guest: Guest, tmp_path: Path) -> None:
    (guest.share / "in").write_bytes(b"\0host\xff")
    guest.run(f"cat {guest.share}/in {guest.share}/in >{guest.share}/out")
    assert (guest.share / "out").read_bytes() == b"\0host\xff\0host\xff"
    (tmp_path / "file").write_text("seen")
    assert (
        guest.run(f"cat {tmp_path}/file; echo changed >{tmp_path}/file; cat {tmp_path}/file").stdout == "seenchanged\n"
    )
    assert (tmp_path / "file").read_text() == "seen"  # the change stayed in the guest


def test_python_in_the_guest_is_ours(guest: Guest) -> None:
    source = "import sys, zonefs_emu.errors as errors; print(errors.__file__, *sys.argv[1:])"
    errors_file = Path(__file__).parents[2] / "zonefs_emu" / "errors.py"
    assert guest.run_python(source, "a", "b").stdout == f"{errors_file} a b\n"


def test_jobs_overlap(guest: Guest) -> None:
    waiting = guest.start("echo waiting; until [ -e ../flag ]; do sleep 0.05; done; rm ../flag; echo over")
    assert guest.run("echo meanwhile").stdout == "meanwhile\n"
    guest.wait_until(f"grep -q waiting {waiting.directory}/stdout")
    assert waiting.poll() is None
    assert waiting.stdout == "waiting\n"
    guest.run("touch ../flag")
    assert waiting.wait().stdout == "waiting\nover\n"


def test_a_job_that_takes_too_long_is_killed_with_its_children(guest: Guest) -> None:
    with pytest.raises(GuestTimeoutError, match="waited 20 s in vain for the end of 'echo started") as caught:
        guest.run("echo started; sleep 987 & sleep 987", timeout=5)
    assert "started" in caught.value.__notes__[0]
    # Killed, but not yet waited for by process 1, they may be listed as zombies: state Z.
    guest.wait_until("! pgrep -x -r R,S,D sleep")


def test_what_is_left_behind_costs_the_next_test_a_boot(guest: Guest, guest_keeper: GuestKeeper) -> None:
    guest.run("mount -t tmpfs none /mnt")
    assert not guest.is_pristine()
    guest.run("umount /mnt")
    assert guest.is_pristine()
    job = guest.start("sleep 100")
    guest_keeper.give_back()
    with pytest.raises(GuestError):
        job.wait()
    assert guest_keeper.get().run("cat /proc/mounts | wc -l").returncode == 0
    assert guest_keeper.get() is not guest


def test_power_off_and_death(kit: Kit) -> None:
    with Guest(kit) as guest:
        job = guest.start("sleep 100")
        assert guest.power_off() == 0
        with pytest.raises(GuestError, match="the guest has gone"):
            job.wait()
        assert "reboot: Power down" in guest.console


def test_a_guest_that_does_not_boot_says_why(kit: Kit) -> None:
    with pytest.raises(GuestError, match=r"did not boot: (.*\n)*.*no-such-device"):
        Guest(kit, qemu_arguments=["-device", "no-such-device"])


@pytest.mark.parametrize("nr_races", [1, 3])
def test_a_guest_whose_qemu_aborts_by_its_own_race_is_booted_again(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nr_races: int
) -> None:
    starts = tmp_path / "starts"
    script = f"""echo x >>{starts}
    [ $(wc -l <{starts}) -gt {nr_races} ] && exec "$@"
    echo "qemu: system/physmem.c:2678: iotlb_to_section: Assertion 'section_index < sections_nb' failed." >&2"""
    command = ("sh", "-c", script, "sh", *kit.qemu_command)
    monkeypatch.setattr(Kit, "qemu_command", command)
    if nr_races < 3:
        with Guest(kit) as guest:
            assert guest.run("uname").stdout == "Linux\n"
    else:
        with pytest.raises(GuestError, match="did not boot"):
            Guest(kit)
    assert len(starts.read_text().split()) == min(nr_races + 1, 3)


def test_null_blk_with_kernel_zonefs(guest: Guest, null_blk: str) -> None:
    report = guest.run(f"blkzone report {null_blk}").stdout.splitlines()
    assert len(report) == 16
    assert "zcond: 0(nw) [type: 1(CONVENTIONAL)]" in report[0]
    assert "zcond: 1(em) [type: 2(SEQ_WRITE_REQUIRED)]" in report[1]
    guest.run_python(FORMAT_ZONEFS, null_blk)
    guest.load("zonefs")
    mounted = guest.run(
        f"""
        mkdir -p /mnt/zonefs
        mount -t zonefs {null_blk} /mnt/zonefs
        ls /mnt/zonefs/seq | wc -l
        dd if=/dev/zero of=/mnt/zonefs/seq/3 bs=64k count=2 oflag=direct status=none
        stat -c %s /mnt/zonefs/seq/3
        umount /mnt/zonefs
        blkzone report -o $((4 * 64 * 2048)) -c 1 {null_blk}
        """
    ).stdout.splitlines()
    assert mounted[:2] == ["15", "131072"]
    assert "wptr 0x000100" in mounted[2]  # 256 sectors


def test_kernel_interfaces_of_ublk_and_vduse(guest: Guest) -> None:
    for module in ("ublk_drv", "vduse", "virtio_vdpa"):
        guest.load(module)
    guest.run("test -c /dev/ublk-control; test -c /dev/vduse/control")
    assert "vduse" in guest.run("vdpa mgmtdev show").stdout
    guest.run("modprobe -r virtio_vdpa; modprobe vhost_vdpa; modprobe -r vhost_vdpa")


@pytest.mark.parametrize("module", ["btrfs", "f2fs", "scsi_debug", "sd_mod", "virtio_blk", "virtio_scsi", "xfs"])
def test_module_loads(guest: Guest, module: str) -> None:
    # Without a disk of its own: add_host=0 makes scsi_debug wait for orders.
    guest.load(module, *(["add_host=0"] if module == "scsi_debug" else []))
    assert guest.run(f"test -d /sys/module/{module}").returncode == 0


class DeafBackend:
    """Listens on a vhost-user socket after a while, notes the first message of each front-end, and hangs up."""

    def __init__(self, path: Path) -> None:
        self.first_messages: list[bytes] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        time.sleep(0.3)
        self._listener.listen()
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.first_messages.append(connection.recv(12))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize("kind", ["scsi", "blk"])
def test_vhost_user_device_reaches_a_backend(guest: Guest, tmp_path: Path, kind: Literal["scsi", "blk"]) -> None:
    backend = DeafBackend(tmp_path / "socket")
    try:
        with pytest.raises(QmpError, match="device_add: "):
            guest.attach(kind, tmp_path / "socket")
    finally:
        backend.close()
    # VHOST_USER_GET_FEATURES, version 1, no payload.
    assert set(backend.first_messages) == {struct.pack("<III", 1, 1, 0)}


def test_attached_disk_survives_its_backend(guest: Guest, kit: Kit, tmp_path: Path) -> None:
    image, path = tmp_path / "disk", tmp_path / "socket"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    block = f"driver=file,node-name=disk,filename={image}"
    export = f"type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={path},writable=on"
    command = [kit.program("qemu-storage-daemon"), "--blockdev", block, "--export", export]
    backend = subprocess.Popen(command, env=kit.environment)
    try:
        disk = guest.attach("blk", path, num_queues=1)
        guest.run(f"echo before | dd of={disk.path} bs=512 conv=sync oflag=direct")
        backend.kill()
        backend.wait()
        path.unlink()
        read = guest.start(f"dd if={disk.path} bs=512 count=1 iflag=direct status=none | tr -d '\\0'")
        time.sleep(1)
        assert read.poll() is None
        backend = subprocess.Popen(command, env=kit.environment)
        assert read.wait().stdout == "before\n"
        disk.detach()
        assert disk.name not in guest.disks()
    finally:
        backend.kill()
        backend.wait()
    assert image.read_bytes()[:7] == b"before\n"


def test_attaching_nothing_says_so(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(GuestTimeoutError, match=r"no process has listened on .*/none for 0\.8 s"):
        guest.attach("scsi", tmp_path / "none", timeout=0.2)
