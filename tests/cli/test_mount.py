import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import fails, ok, run_cli
from tests.daemon.conftest import MIB
from tests.requires import requires
from zonefs_emu.fs.mount_table import mount_at

BLOCK = 4096


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "zonefs_emu", *map(str, args)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    # Whatever a failed test left behind.
    while run_cli("umount", directory).exit_code == 0:
        pass


@pytest.fixture
def formatted(fresh: Path) -> Path:
    ok("mkfs", fresh)
    return fresh


@pytest.fixture
def mounted(formatted: Path, directory: Path) -> Path:
    done = subprocess.run(command("mount", formatted, directory), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return formatted


def write_block(path: Path, flags: int = 0) -> int:
    import mmap

    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_APPEND | flags)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            buffer.write(b"x" * BLOCK)
            return os.write(fd, buffer)
    finally:
        os.close(fd)


@pytest.mark.fuse
def test_returns_when_the_mount_is_up_and_goes_on_in_the_background(mounted: Path, directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["cnv", "seq"]
    assert write_block(directory / "seq" / "0") == BLOCK
    assert (directory / "seq" / "0").stat().st_size == BLOCK
    info = json.loads(ok("info", mounted, "--json"))
    (front_end,) = info["front_ends"]
    assert (front_end["name"], front_end["where"]) == ("zonefs", str(directory))
    assert os.getsid(info["pid"]) not in (os.getsid(0), info["pid"])


@pytest.mark.fuse
def test_info_and_stats_show_the_counters_of_sysfs(mounted: Path, directory: Path) -> None:
    fd = os.open(directory / "seq" / "1", os.O_WRONLY)
    write_block(directory / "seq" / "0")
    for verb in ("info", "stats"):
        (front_end,) = json.loads(ok(verb, mounted, "--json"))["front_ends"]
        counters = front_end["statistics"]
        assert (counters["max_wro_seq_files"], counters["max_active_seq_files"]) == (3, 4)
        assert (counters["nr_wro_seq_files"], counters["nr_active_seq_files"]) == (1, 1)
        assert "  nr_active_seq_files:     1\n" in ok(verb, mounted)
    os.close(fd)


@pytest.mark.fuse
def test_a_timed_mount_counts_its_answers_and_what_they_waited_for(formatted: Path, directory: Path) -> None:
    options = ("--timing", "zn540", "--time-scale", 20)
    done = subprocess.run(command("mount", formatted, directory, *options), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = json.loads(ok("stats", formatted, "--json"))["timing"]
    file = directory / "seq" / "0"
    for number in range(1, 6):
        assert write_block(file) == BLOCK
        assert file.stat().st_size == number * BLOCK
    os.truncate(file, 0)
    assert write_block(file) == BLOCK
    assert file.read_bytes() == b"x" * BLOCK
    timing = json.loads(ok("stats", formatted, "--json"))["timing"]
    assert (timing["preset"], timing["scale"]) == ("zn540", 20)
    counts = {
        name: times["count"] - before["operations"].get(name, {"count": 0})["count"]
        for name, times in timing["operations"].items()
    }
    assert counts["write"] == 6
    assert counts["reset"] == 1
    assert counts["read"] >= 1
    assert timing["answers"] - before["answers"] == sum(counts.values())
    assert timing["busy_ns"] > 0
    assert timing["operations"]["write"]["mean_ns"] > 10_000, "of the drive's time"
    slowest = ok("why", formatted, "--slow", 1)
    assert slowest.startswith("reset, zone 2, at ")


@pytest.mark.fuse
def test_every_verb_works_on_a_mounted_image(mounted: Path, directory: Path, tmp_path: Path) -> None:
    write_block(directory / "seq" / "0")
    assert json.loads(ok("report", mounted, "--json"))["zones"][2]["wp"] == 2 * MIB + 8
    ok("append", mounted, "--zone", 3, stdin=b"y" * BLOCK)
    assert run_cli("read", mounted, "--zone", 3).stdout_bytes == b"y" * BLOCK
    ok("finish", mounted, "--zone", 3)
    ok("reset", mounted, "--zone", 3)
    ok("dump", mounted, tmp_path / "dump")
    assert ok("report", tmp_path / "dump") == ok("report", mounted)
    findings = json.loads(ok("check", mounted, "--json"))["findings"]
    assert {finding["severity"] for finding in findings} <= {"info"}
    assert "is in use (zonefs at " in fails("mkfs", mounted, "-f")
    assert "cli: open at sector 0 was refused" in fails("open", mounted, "--zone", 0) + ok("why", mounted)


@pytest.mark.fuse
def test_the_second_mount_is_told_who_holds_the_image(mounted: Path, directory: Path, tmp_path: Path) -> None:
    pid = json.loads(ok("info", mounted, "--json"))["pid"]
    other = tmp_path / "other"
    other.mkdir()
    done = subprocess.run(command("mount", mounted, other), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"zonefs-emu: {mounted} is in use by zonefs-emu mount (pid {pid})\n"
    assert list(other.iterdir()) == []
    assert write_block(directory / "seq" / "0") == BLOCK


@pytest.mark.fuse
def test_what_a_killed_mount_leaves_is_taken_away_by_the_next(mounted: Path, directory: Path) -> None:
    write_block(directory / "seq" / "0")
    pid = json.loads(ok("info", mounted, "--json"))["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert json.loads(ok("report", mounted, "--json"))["zones"][2]["written"] == BLOCK // 512
    # A process still has its working directory there, which is no obstacle.
    stuck = os.open(directory, os.O_PATH)
    done = subprocess.run(command("mount", mounted, directory), capture_output=True, text=True, check=False)
    os.close(stuck)
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / "seq" / "0").stat().st_size == BLOCK
    assert Path("/proc/self/mountinfo").read_bytes().count(os.fsencode(directory)) == 1


@pytest.mark.fuse
def test_with_auto_unmount_a_killed_process_leaves_nothing(formatted: Path, directory: Path) -> None:
    options = "auto_unmount,nofail,_netdev,noauto,user,relatime,x-systemd.automount,X-a=b,comment=c,exec,noatime"
    subprocess.run(command("mount", formatted, directory, "-o", options), check=True)
    line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line)
    assert {"nosuid", "nodev", "noatime"} <= set(line.split()[3].split(","))
    assert "noexec" not in line
    # fusermount3 looks at the mount once, when the process has closed its socket, and leaves a mount whose device the
    # kernel has not closed yet (libfuse, should_auto_unmount). On a busy machine it may be that fast: here it waits.
    watcher = pid_of("fusermount3", directory)
    os.kill(watcher, signal.SIGSTOP)
    pid = json.loads(ok("info", formatted, "--json"))["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    with contextlib.suppress(FileNotFoundError):
        while len(os.listdir(f"/proc/{pid}/task")) > 1:  # noqa: PTH208  (its files are open until its last thread ends)
            time.sleep(0.02)
    os.kill(watcher, signal.SIGCONT)
    for _ in range(1500):
        if not mount_at(directory):
            break
        time.sleep(0.02)
    assert list(directory.iterdir()) == []
    # And one that is unmounted in order is.
    subprocess.run(command("mount", formatted, directory, "-o", options), check=True)
    ok("umount", directory)
    assert not directory.is_mount()


def pid_of(program: str, argument: Path) -> int:
    """Return the process that runs *program* with *argument* as one of its words."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(program.encode()) and os.fsencode(argument) in words:
                return int(path.parent.name)
    message = f"no {program} for {argument}"
    raise AssertionError(message)


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_mount_cleanly(number: signal.Signals, mounted: Path, directory: Path) -> None:
    write_block(directory / "seq" / "0")
    pid = json.loads(ok("info", mounted, "--json"))["pid"]
    os.kill(pid, number)
    with contextlib.suppress(FileNotFoundError):
        wait_gone(pid)
    assert list(directory.iterdir()) == []
    info = json.loads(ok("info", mounted, "--json"))
    assert (info["pid"], info["recovery"]) == (None, "")
    assert json.loads(ok("report", mounted, "--json"))["zones"][2]["written"] == 8


@pytest.mark.fuse
def test_foreground(formatted: Path, directory: Path) -> None:
    with subprocess.Popen(
        command("mount", formatted, directory, "--foreground", "-o", "ro"), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{formatted} is mounted at {directory}\n"
        with pytest.raises(OSError, match="Read-only file system"):
            write_block(directory / "seq" / "0")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")


@pytest.mark.fuse
def test_create_makes_and_formats_what_is_missing(tmp_path: Path, directory: Path) -> None:
    image = tmp_path / "new.img"
    subprocess.run(command("mount", image, directory, "--create", "64M"), check=True)
    write_block(directory / "seq" / "0")
    ok("umount", directory)
    # The second time it is there, and kept.
    subprocess.run(command("mount", image, directory, "--create", "64M"), check=True)
    assert (directory / "seq" / "0").stat().st_size == BLOCK
    ok("umount", directory)


#: In a mount namespace of its own: a place and a /dev/fuse for everybody; then a command as an ordinary user. That one
#: may read all files, because the interpreter and the checkout can lie in root's home, and nothing else.
AS_NOBODY = """set -e
mount -t tmpfs -o mode=755 none /mnt
mkdir -m 777 /mnt/own
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
cd /mnt/own
caps=-all,+dac_read_search
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=$caps --ambient-caps=$caps "$@"
"""
ROOTLESS = """
import os, subprocess, sys
from pathlib import Path
from tests.cli.conftest import ok
from tests.cli.test_mount import BLOCK, command, write_block

assert os.geteuid() == 65534
mnt, image = Path("mnt"), Path("a.img")
mnt.mkdir()
ok("create", image, "--preset", "small")
ok("mkfs", image)
refused = subprocess.run(command("mount", image, mnt, "-o", "allow_other"), capture_output=True, text=True)
print(refused.returncode, refused.stderr, end="")
subprocess.run(command("mount", image, mnt), check=True)
assert write_block(mnt / "seq" / "0") == BLOCK
status = (mnt / "seq" / "0").stat()
assert (status.st_uid, status.st_gid, status.st_size) == (65534, 65534, BLOCK)
ok("reset", image, "--zone", 4)
assert " /mnt/own/mnt " in Path("/proc/self/mountinfo").read_text()
ok("umount", mnt)
assert " /mnt/own/mnt " not in Path("/proc/self/mountinfo").read_text()
assert '"pid": null' in ok("info", image, "--json")
"""


@pytest.mark.fuse
@pytest.mark.slow
def test_an_ordinary_user_can_mount() -> None:
    requires("fuse", "root", "unshare", "setpriv")
    checkout = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", AS_NOBODY, "bash", sys.executable, "-c", ROOTLESS],
        # Coverage's files are not that user's to write.
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, _, reason = done.stdout.partition(" ")
    assert code == "1"
    # libfuse's own words, in which a person finds what to do.
    assert "cannot mount on /mnt/own/mnt: " in reason
    assert "user_allow_other" in reason


ALLOW_ROOT = """
echo user_allow_other >/mnt/fuse.conf
mount --bind /mnt/fuse.conf /etc/fuse.conf
python=$1
as_user() {
    local uid=$1; shift
    setpriv --reuid=$uid --regid=$uid --clear-groups --inh-caps=$caps --ambient-caps=$caps "$@"
}
as_user 65534 "$python" -m zonefs_emu mount --create 64M a.img mnt -o allow_root
ls mnt
as_user 12345 ls mnt 2>&1 || true
as_user 12345 "$python" -m zonefs_emu umount mnt 2>&1 || true
"$python" -m zonefs_emu umount mnt
ls mnt
as_user 65534 "$python" -m zonefs_emu mount a.img mnt
"$python" -m zonefs_emu mount --create 64M b.img mnt 2>&1 || true
as_user 65534 "$python" -m zonefs_emu umount mnt
"""


@pytest.mark.fuse
@pytest.mark.slow
def test_allow_root_lets_root_in_and_no_one_else() -> None:
    requires("fuse", "root", "unshare", "setpriv")
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", AS_NOBODY.partition("exec ")[0] + "mkdir -m 777 mnt" + ALLOW_ROOT,
         "bash", sys.executable],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_root, by_another, refused, not_mounted_on = done.stdout.splitlines()
    assert by_root == "seq"
    assert "Permission denied" in by_another
    assert "mnt was mounted by user " in refused
    assert "only this user and root can unmount it" in refused
    # Without allow_root the directory of the mount is refused to root.
    assert not_mounted_on == refused


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["-o", "errors=continue"], 2, "errors=continue is not known"),
        (["-o", "foo=bar"], 2, "unknown mount option foo=bar"),
        (["-o", "allow_root,allow_other"], 2, "exclude each other"),
        (["--create", "64MB"], 2, "write MiB for 1024"),
    ],
)
def test_wrong_options(options: list[str], code: int, sentence: str, fresh: Path, tmp_path: Path) -> None:
    assert sentence in fails("mount", fresh, tmp_path, *options, code=code)


def test_wrong_places(fresh: Path, tmp_path: Path) -> None:
    assert "nothing can be mounted on" in fails("mount", fresh, tmp_path / "absent")
    assert "below: Not a directory" in fails("mount", fresh, fresh / "below")
    assert "is not a directory" in fails("mount", fresh, fresh)
    assert "absent.img: No such file or directory" in fails("mount", tmp_path / "absent.img", tmp_path)


def test_the_childs_sentence_reaches_the_user(fresh: Path, directory: Path, tmp_path: Path) -> None:
    """In a process: mount forks."""
    (tmp_path / "text").write_text("no image at all")
    for image, sentence in (
        (fresh, f"{fresh}: no zonefs super block"),
        (tmp_path / "text", f"{tmp_path / 'text'}: no zonefs_emu header"),
    ):
        for options in ([], ["--foreground"]):
            done = subprocess.run(
                command("mount", image, directory, *options), capture_output=True, text=True, check=False
            )
            assert done.returncode == 1
            assert sentence in done.stderr
            assert done.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []


@pytest.mark.fuse
def test_what_a_mount_recorded_can_be_replayed(formatted: Path, directory: Path, tmp_path: Path) -> None:
    log, before = tmp_path / "bug.log", tmp_path / "before.img"
    ok("restore", dumped(formatted, tmp_path), before)
    subprocess.run(command("mount", formatted, directory, "--record", log), check=True)
    write_block(directory / "seq" / "0")
    write_block(directory / "seq" / "1")
    os.truncate(directory / "seq" / "1", 0)
    ok("append", formatted, "--zone", 4, stdin=bytes(BLOCK))
    ok("umount", directory)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {("zonefs", "write"), ("zonefs", "reset"), ("cli", "append")} <= {
        (line.get("port"), line.get("op")) for line in lines
    }
    assert f"{len(lines) - 1} operations, all answered as in the log\n" == ok("replay", log, before)
    assert ok("report", before) == ok("report", formatted)
    # A log is never overwritten.
    done = subprocess.run(
        command("mount", formatted, directory, "--record", log), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"zonefs-emu: {log}: File exists\n")


def dumped(image: Path, tmp_path: Path) -> Path:
    ok("dump", image, tmp_path / "dump")
    return tmp_path / "dump"


@pytest.mark.fuse
def test_a_mount_logs_each_cause_of_a_refusal_once(formatted: Path, directory: Path) -> None:
    with subprocess.Popen(
        command("mount", formatted, directory, "--foreground"), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "is mounted at" in process.stderr.readline()
        for _ in range(3):
            with pytest.raises(OSError, match="Operation not permitted"):
                os.truncate(directory / "seq" / "0", 17)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    (line,) = err.splitlines()
    assert " INFO zonefs_emu.refused: zonefs: reset at sector 4096 was refused (BAD_TRANSITION): EPERM, " in line
    assert line.endswith("answered as EPERM (zonefs)")
