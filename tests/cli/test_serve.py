"""A real process that serves, and front-ends that use it."""

import contextlib
import json
import mmap
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok
from tests.nvme_tcp.conftest import needs_tls
from zonefs_emu.nvme_tcp.host_keys import DhchapKey, key_text
from zonefs_emu.nvme_tcp.tls_keys import TlsKey, tls_key_text
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.nvme_initiator import AuthenticationError, HostKeys, NvmeHost
from zonefs_emu.testing.vfio_client import NvmeGuest, VfioClient
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtio import blk_codec

ZONE = 2048


@contextlib.contextmanager
def serving(*args: object, pass_fds: tuple[int, ...] = ()) -> Iterator["subprocess.Popen[str]"]:
    """Run ``serve`` until its sockets are there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zonefs_emu", "serve", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "is served; stop with Ctrl-C" not in line:
            process.kill()
            raise AssertionError(line + process.stderr.read())
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal_comes(fresh: Path, tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "blk"
    with (
        serving(fresh, "--vhost-user-blk", path, "--vhost-user-scsi", tmp_path / "scsi") as process,
        Frontend(path) as frontend,
    ):
        frontend.start()
        assert BlkDriver(frontend.queues[0]).write(2 * ZONE, b"g" * 4096) == 0
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not path.exists()
    assert json.loads(ok("report", fresh, "--json"))["zones"][2]["wp"] == 2 * ZONE + 8


def test_prints_the_command_line_to_paste(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "a,b c"
    with serving(fresh, "--vhost-user-scsi", path, "--vhost-user-blk", tmp_path / "d") as process:
        assert process.stdout is not None
        words = shlex.split(process.stdout.readline())
    assert words[0] == "qemu-system-x86_64"
    assert f"socket,id=scsi0,path={tmp_path}/a,,b c,reconnect-ms=1000" in words
    assert "vhost-user-scsi-pci,chardev=scsi0" in words
    assert any("share=on" in word for word in words)
    assert any("virtio-id=2" in word and "config_size=96" in word for word in words)


def test_offers_an_nvme_drive_and_prints_how_to_connect(tmp_path: Path) -> None:
    image = tmp_path / "zns.img"
    ok("create", image, "--size", "64M", "--zone-size", "4M", "--block-size", "4096")
    options = ("--nvme-tcp", "127.0.0.1:0", "--nqn", "nqn.2024-01.org.example:a", "--serial", "S123")
    with serving(image, *options, "--allow-host", "nqn.me") as process:
        assert process.stdout is not None
        discover, connect = (shlex.split(process.stdout.readline()) for _ in range(2))
        assert discover[:6] == ["nvme", "discover", "-t", "tcp", "-a", "127.0.0.1"]
        assert connect[-2:] == ["-n", "nqn.2024-01.org.example:a"]
        port = int(connect[connect.index("-s") + 1])
        with NvmeHost("127.0.0.1", port, connect[-1], host_nqn="nqn.me") as host:
            assert host.identify(1).data[4:24] == b"S123".ljust(20)
            assert host.queue(1).append(1, 1024, b"n" * 8192, 4096).result == 1024
            assert json.loads(ok("report", image, "--json"))["zones"][1]["wp"] == 8192 + 16
            (front_end,) = json.loads(ok("info", image, "--json"))["front_ends"]
            assert (front_end["name"], front_end["where"]) == ("nvme-tcp", f"127.0.0.1:{port}")
            assert front_end["statistics"]["hosts"] == 1
        with pytest.raises(ConnectionError, match="184h"):
            NvmeHost("127.0.0.1", port, connect[-1], host_nqn="nqn.stranger")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_host_with_a_key_proves_its_name(tmp_path: Path) -> None:
    image = tmp_path / "zns.img"
    ok("create", image, "--size", "64M", "--zone-size", "4M", "--block-size", "4096")
    key = DhchapKey(secret=bytes(range(48)), hash_id=2)
    (tmp_path / "key").write_text(key_text(key))
    (tmp_path / "key").chmod(0o644)
    options = ("--nvme-tcp", "127.0.0.1:0", "--host-key", f"nqn.me=@{tmp_path}/key")
    with serving(image, *options, "--controller-key", f"@{tmp_path}/key") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        exposed, warning = (process.stderr.readline() for _ in range(2))
        assert exposed == f"warning: every user of this machine can read the key in {tmp_path}/key: see chmod\n"
        assert warning == "warning: nqn.me and the drive have the same key: each can pose as the other\n"
        _, connect = (shlex.split(process.stdout.readline()) for _ in range(2))
        assert connect[-6:-1] == ["--hostnqn", "nqn.me", "--dhchap-secret", "KEY", "-n"]
        place = "127.0.0.1", int(connect[connect.index("-s") + 1]), connect[-1]
        with NvmeHost(*place, host_nqn="nqn.me", keys=HostKeys(key, key)) as host:
            assert host.queue(1).append(1, 1024, b"n" * 8192, 4096).result == 1024
        with pytest.raises(AuthenticationError, match="there is no key"):
            NvmeHost(*place, host_nqn="nqn.me")
    sentence = fails("serve", image, "--nvme-tcp", "0.0.0.0", "--allow-host", "nqn.me", code=2)
    assert "can be reached from other machines, and nqn.me has no key: give --host-key" in sentence
    assert "No such file" in fails("serve", image, "--nvme-tcp", "--host-key", "nqn.me=@nowhere", code=2)


@needs_tls
def test_a_host_connects_over_tls(tmp_path: Path) -> None:
    image = tmp_path / "zns.img"
    ok("create", image, "--size", "64M", "--zone-size", "4M", "--block-size", "4096")
    key = TlsKey(secret=bytes(range(32)), hash_id=1)
    (tmp_path / "key").write_text(tls_key_text(key))
    (tmp_path / "key").chmod(0o600)
    with serving(image, "--nvme-tcp", "127.0.0.1:0", "--tls-key", f"nqn.me=@{tmp_path}/key") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        store, discover, connect = (shlex.split(process.stdout.readline()) for _ in range(3))
        assert store[:2] == ["nvme", "check-tls-key"]
        assert discover[-3:] == ["--hostnqn", "nqn.me", "--tls"]
        assert connect[-7:-1] == ["--hostnqn", "nqn.me", "--tls", "--tls-key", "TLS-KEY", "-n"]
        place = "127.0.0.1", int(connect[connect.index("-s") + 1]), connect[-1]
        with NvmeHost(*place, host_nqn="nqn.me", tls_key=key) as host:
            assert host.queue(1).append(1, 1024, b"n" * 8192, 4096).result == 1024
        with pytest.raises(ConnectionError):
            NvmeHost(*place, host_nqn="nqn.me")
        sentence = "the host does not speak TLS, which --tls-key requires: see nvme connect --tls"
        assert sentence in process.stderr.readline()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python from 3.13 on has TLS with pre-shared keys")
def test_an_older_python_has_no_tls(tmp_path: Path) -> None:
    image = tmp_path / "zns.img"
    ok("create", image, "--size", "64M", "--zone-size", "4M", "--block-size", "4096")
    assert "--tls-key needs Python 3.13 or later" in fails("serve", image, "--nvme-tcp", "--tls-key", "@key", code=2)


def test_several_images_are_namespaces_of_one_drive(tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("one.img", "two.img")]
    for image, size in zip(images, ("64M", "32M"), strict=True):
        ok("create", image, "--size", size, "--zone-size", "4M", "--block-size", "4096")
    with serving(*images, "--nvme-tcp", "127.0.0.1:0") as process:
        assert process.stdout is not None
        _, connect = (shlex.split(process.stdout.readline()) for _ in range(2))
        with NvmeHost("127.0.0.1", int(connect[connect.index("-s") + 1]), connect[-1]) as host:
            sizes = [int.from_bytes(host.identify(0, nsid=nsid).data[:8], "little") for nsid in (1, 2)]
            assert sizes == [(64 << 20) // 4096, (32 << 20) // 4096]
            queue = host.queue(1)
            assert queue.write(1, 0, b"1" * 4096, 4096).status == 0
            assert queue.append(2, 1024, b"2" * 8192, 4096).result == 1024
            # Each image has its own control socket: other ways in see what the host does, and the reverse.
            reports = [json.loads(ok("report", image, "--json"))["zones"] for image in images]
            assert [report[1]["wp"] for report in reports] == [8192, 8192 + 16]
            ok("reset", images[1], "--zone", "1")
            assert queue.append(2, 1024, b"3" * 4096, 4096).result == 1024
            assert "nvme" in ok("info", images[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert json.loads(ok("info", images[1], "--json"))["pid"] is None


def test_images_that_cannot_be_served_together(fresh: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    ok("create", other, "--size", "64M", "--zone-size", "4M")
    sentence = fails("serve", fresh, other, "--vhost-user-blk", tmp_path / "sock", code=2)
    assert "several images can only be served as namespaces of an NVMe drive" in sentence
    assert "is given twice" in fails("serve", other, other, "--nvme-tcp", code=2)
    assert "give one image" in fails("serve", "--nvme-tcp", code=2)
    assert "give one image" in fails("serve", other, "--blk-file", other, "--nvme-tcp", code=2)


def test_offers_an_nvme_drive_to_a_guest_and_prints_the_command_line(tmp_path: Path) -> None:
    image, path = tmp_path / "zns.img", tmp_path / "a,b c"
    ok("create", image, "--size", "64M", "--zone-size", "4M", "--block-size", "4096")
    with serving(image, "--vfio-user", path, "--serial", "S123") as process:
        assert process.stdout is not None
        words = shlex.split(process.stdout.readline())
        device = json.loads(words[words.index("-device") + 1])
        assert device == {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
        assert any("share=on" in word for word in words)
        with VfioClient(path) as client:
            guest = NvmeGuest(client)
            assert guest.identify(1).data[4:24] == b"S123".ljust(20)
            assert guest.queue(1).append(1, 1024, b"n" * 8192, 4096).result == 1024
            assert json.loads(ok("report", image, "--json"))["zones"][1]["wp"] == 8192 + 16
            (front_end,) = json.loads(ok("info", image, "--json"))["front_ends"]
            assert (front_end["name"], front_end["where"]) == ("vfio-user", str(path))
            assert front_end["statistics"]["connected"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not path.exists()


def test_a_drive_that_cannot_be_offered(fresh: Path) -> None:
    assert "conventional zones, which NVMe does not have" in fails("serve", fresh, "--nvme-tcp", "127.0.0.1:0", code=2)
    assert "can be reached from other machines" in fails("serve", fresh, "--nvme-tcp", "0.0.0.0:0", code=2)
    assert "is not an address" in fails("serve", fresh, "--nvme-tcp", "here:there", code=2)


def test_each_of_several_guests_has_a_socket_and_a_command_line(fresh: Path, tmp_path: Path) -> None:
    first, second, scsi = (tmp_path / name for name in ("first", "second", "scsi"))
    options = ("--vhost-user-blk", first, "--vhost-user-blk", second, "--vhost-user-scsi", scsi)
    with serving(fresh, *options) as process, Frontend(first) as one, Frontend(second) as other:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert [shlex.split(line).count("-device") for line in lines] == [2, 1]
        assert f"path={first}" in lines[0]
        assert f"path={second}" in lines[1]
        for frontend in (one, other):
            frontend.start()
        assert BlkDriver(one.queues[0]).write(2 * ZONE, b"1" * 4096) == 0
        assert BlkDriver(other.queues[0]).write(2 * ZONE, b"2" * 4096) == blk_codec.S_ZONE_UNALIGNED_WP
        assert BlkDriver(other.queues[0]).write(2 * ZONE + 8, b"2" * 4096) == 0
        assert BlkDriver(one.queues[0]).read(2 * ZONE, 8192) == (0, b"1" * 4096 + b"2" * 4096)
        front_ends = json.loads(ok("info", fresh, "--json"))["front_ends"]
        assert sorted(front_end["where"] for front_end in front_ends) == sorted(map(str, (first, second, scsi)))


def test_the_command_line_sees_what_the_guest_does_and_the_reverse(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "blk"
    with serving(fresh, "--vhost-user-blk", path), Frontend(path) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        driver.write(2 * ZONE, b"g" * 4096)
        ok("append", fresh, "--zone", 2, stdin=b"h" * 4096)
        assert driver.read(2 * ZONE, 12288) == (0, b"g" * 4096 + b"h" * 4096 + bytes(4096))
        assert driver.write(2 * ZONE, b"x" * 4096) == blk_codec.S_ZONE_UNALIGNED_WP
        assert "vhost-user-blk: write of 8 sectors at sector 4096 was refused (UNALIGNED_WP)" in ok("why", fresh)
        info = json.loads(ok("info", fresh, "--json"))
        (front_end,) = info["front_ends"]
        assert (front_end["name"], front_end["where"]) == ("vhost-user-blk", str(path))
        assert front_end["statistics"]["connected"] == 1
        assert front_end["statistics"]["requests"] >= 3


def test_killed_and_started_again(fresh: Path, tmp_path: Path) -> None:
    path = tmp_path / "blk"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(serving(fresh, "--vhost-user-blk", path))
        frontend = stack.enter_context(Frontend(path))
        frontend.start()
        queue = frontend.queues[0]
        numbers = [
            queue.submit([BlkDriver.header(blk_codec.T_ZONE_APPEND, 2 * ZONE), bytes(4096)], [8, 1]) for _ in range(20)
        ]
        process.kill()
        process.wait()
        stack.enter_context(serving(fresh, "--vhost-user-blk", path))
        frontend.reconnect()
        assert {queue.wait(number)[1][1] for number in numbers} == {b"\0"}
        assert BlkDriver(queue).report(2 * ZONE, 1)[1][0].wp == 2 * ZONE + 160


@pytest.mark.parametrize("listening", [False, True])
def test_a_socket_from_a_manager(fresh: Path, tmp_path: Path, listening: bool) -> None:
    if listening:
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(str(tmp_path / "socket"))
        theirs.listen()
        ours = None
    else:
        ours, theirs = socket.socketpair()
    args = ("--blk-file", fresh, "--device", "blk", "--fd", theirs.fileno())
    with serving(*args, pass_fds=(theirs.fileno(),)) as process:
        theirs.close()
        with Frontend(tmp_path / "socket", connected=ours) as frontend:
            frontend.start()
            assert BlkDriver(frontend.queues[0]).read(0, 4096)[0] == 0
        if not listening:
            assert process.wait(30) == 0, "its one front-end is gone"


def test_what_managers_ask() -> None:
    assert json.loads(ok("serve", "--device", "blk", "--print-capabilities")) == {
        "type": "block",
        "features": ["blk-file"],
    }
    assert json.loads(ok("serve", "--print-capabilities"))["type"] == "scsi"


@pytest.mark.parametrize(("kind", "name"), [("blk", "block"), ("scsi", "scsi")])
def test_managers_find_the_program_in_the_descriptor(kind: str, name: str) -> None:
    descriptor = json.loads(ok("serve", "--device", kind, "--print-descriptor"))
    assert descriptor["type"] == name
    program = Path(descriptor["binary"])
    assert program.is_absolute()
    assert program.name == f"zonefs-emu-vhost-user-{kind}"
    if not program.exists():
        pytest.skip(f"{program.name} is not installed: tools/setup does that")
    done = subprocess.run([program, "--print-capabilities"], capture_output=True, check=True)
    assert json.loads(done.stdout)["type"] == name


def test_the_names_that_managers_know(fresh: Path, tmp_path: Path) -> None:
    program = "from zonefs_emu.cli.main import vhost_user_{0}; vhost_user_{0}()"
    for kind, name in (("blk", "block"), ("scsi", "scsi")):
        done = subprocess.run(
            [sys.executable, "-c", program.format(kind), "--print-capabilities"], capture_output=True, check=True
        )
        assert json.loads(done.stdout)["type"] == name


def test_wrong_command_lines(fresh: Path, tmp_path: Path) -> None:
    sock = tmp_path / "socket"
    assert "nothing to serve" in fails("serve", fresh, code=2)
    assert "give one image" in fails("serve", "--vhost-user-scsi", sock, code=2)
    assert "give one image" in fails("serve", fresh, "--blk-file", fresh, "--vhost-user-scsi", sock, code=2)
    assert "exclude each other" in fails("serve", fresh, "--fd", 3, "--socket-path", sock, code=2)
    stray = "--vhost-user-scsi", sock, "--allow-host", "nqn.me"
    assert "is for --nvme-tcp, which is not given" in fails("serve", fresh, *stray, code=2)
    for others in (
        ("--vhost-user-scsi",),
        ("--vhost-user-blk",),
        ("--vfio-user",),
        ("--device", "blk", "--socket-path"),
    ):
        command = "serve", fresh, "--vhost-user-scsi", sock, *others, tmp_path / "." / ".." / tmp_path.name / "socket"
        assert "socket is given twice" in fails(*command, code=2)
    for option in ("--nqn", "--serial"):
        stray = "--vhost-user-scsi", sock, option, "nqn.me"
        assert "is for an NVMe drive, which is not given" in fails("serve", fresh, *stray, code=2)
    assert "--msi is for --vfio-user" in fails("serve", fresh, "--vhost-user-scsi", sock, "--msi", code=2)
    assert "nothing can be mounted on" in fails("serve", fresh, "--vhost-user-scsi", sock, "--mount", sock)
    assert "no such file" in fails("serve", tmp_path / "none", "--vhost-user-scsi", sock).lower()
    (tmp_path / "file").write_text("")
    assert "exists and is not a socket" in fails("serve", fresh, "--vhost-user-scsi", tmp_path / "file")


def test_a_second_server_is_told_who_serves(fresh: Path, tmp_path: Path) -> None:
    with serving(fresh, "--vhost-user-scsi", tmp_path / "a"):
        assert "is in use by zonefs-emu serve (pid" in fails("serve", fresh, "--vhost-user-scsi", tmp_path / "b")


@pytest.mark.fuse
def test_a_mount_and_a_guest_on_one_image(fresh: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    # A mount whose process was killed stays until it is unmounted.
    request.addfinalizer(lambda: subprocess.run(["fusermount3", "-uzq", directory], check=False))
    ok("mkfs", fresh)
    path = tmp_path / "blk"
    with serving(fresh, "--vhost-user-blk", path, "--mount", directory) as process, Frontend(path) as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        # The super block has the first conventional zone, so the files 0, 1, ... are the zones 2, 3, ...
        with mmap.mmap(-1, 4096) as buffer:
            buffer.write(b"m" * 4096)
            fd = os.open(directory / "seq" / "1", os.O_WRONLY | os.O_DIRECT | os.O_APPEND)
            assert os.write(fd, buffer) == 4096
            os.close(fd)
        assert driver.report(3 * ZONE, 1)[1][0].wp == 3 * ZONE + 8
        assert driver.read(3 * ZONE, 4096) == (0, b"m" * 4096)
        assert driver.append(3 * ZONE, b"g" * 4096) == (0, 3 * ZONE + 8)
        process.terminate()
        assert process.wait(60) == 0
    assert list(directory.iterdir()) == []


def test_what_was_served_can_be_replayed(fresh: Path, tmp_path: Path) -> None:
    log, before = tmp_path / "bug.log", tmp_path / "before.img"
    ok("dump", fresh, tmp_path / "dump")
    ok("restore", tmp_path / "dump", before)
    with serving(fresh, "--vhost-user-blk", tmp_path / "blk", "--record", log), Frontend(tmp_path / "blk") as frontend:
        frontend.start()
        driver = BlkDriver(frontend.queues[0])
        assert driver.write(2 * ZONE, b"g" * 4096) == 0
        assert driver.write(2 * ZONE, b"x" * 4096) == blk_codec.S_ZONE_UNALIGNED_WP
    # The daemon was killed, and its log is there to the last line.
    text = log.read_text()
    assert '"status": "UNALIGNED_WP"}\n' in text
    ok("replay", log, before)
    assert ok("report", before) == ok("report", fresh)
