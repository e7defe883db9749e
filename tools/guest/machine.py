"""Boot a guest and run commands in it.

The guest sees the host's whole file system read-only under a volatile upper layer, so every path of the host is valid
in the guest: the interpreter, the checkout, installed tools. One directory, the *share*, is writable from both sides
under one path.

A `Guest` belongs to one thread. Commands may overlap (`start`), and devices come and go while it runs (`plug`,
`attach`), so many scenarios share one boot.

Every *timeout* is in seconds of a machine that has nothing else to do. Each wait lasts up to `_PATIENCE` times as long.
"""

import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from tools.guest.initramfs import build_initramfs
from tools.guest.kit import Kit
from tools.guest.qmp import QmpClient, QmpError

_CHECKOUT: Final = Path(__file__).parents[2]
_COMMAND_LINE: Final = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # with -no-reboot: a panic ends QEMU
    "mitigations=off",
    # The check counts timer ticks in a loop. On a busy host it counts too few, and then Linux panics.
    "no_timer_check",
    "random.trust_cpu=on",
    "nvme_core.multipath=0",  # the multipath head hides the zone limits
)
# QEMU's device, and the modules of the guest that drive it.
_VHOST_USER_DRIVERS: Final = {
    "scsi": ("vhost-user-scsi-pci", ("virtio_scsi", "sd_mod")),
    "blk": ("vhost-user-blk-pci", ("virtio_blk",)),
}
_TERMINAL: Final = ("-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal")
_CONSOLE_TAIL_LINES: Final = 40
#: What QEMU says when it aborts because one emulated processor uses a page's entry while another one moves a device's
#: registers (QEMU's issue 1921). That happens once in some hundred boots, while firmware and kernel set up the devices,
#: and has nothing to do with what is tested, so the guest is booted again. One processor would prevent it, and with it
#: what only two processors can show.
_QEMU_RACE: Final = "iotlb_to_section: Assertion"
_BOOTS_MAX: Final = 3
_TERMINATION_SECONDS: Final = 5
#: Timeouts are chosen where two processors have nothing else to do. A machine with other work may be four times as
#: slow. A larger factor would only delay the report of a guest that hangs.
_PATIENCE: Final = 4
_RECEIVE_BYTES: Final = 65536

Script = str | Sequence[str]


class GuestError(Exception):
    """The guest did not boot, died, or a command in it failed."""


class GuestTimeoutError(GuestError):
    """Something in the guest took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str
    directory: Path
    """The directory in which it ran and which still has its files: the same path on the host and in the guest."""


class Job:
    """A command that runs in the guest; made by `Guest.start`."""

    def __init__(self, guest: "Guest", directory: Path, script: str) -> None:
        self.directory = directory
        self.returncode: int | None = None
        self._guest = guest
        self._script = script

    @property
    def stdout(self) -> str:
        """Its output so far."""
        return (self.directory / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """Its output on standard error so far."""
        return (self.directory / "stderr").read_text(errors="replace")

    def poll(self) -> int | None:
        """The exit status, or None while it runs; does not wait."""
        self._guest.receive(timeout=0)
        return self.returncode

    def wait(self, timeout: float = 60, *, check: bool = True) -> Completed:
        """Wait for the end.

        Raises:
            GuestTimeoutError: it still runs after *timeout*; it is then killed.
            GuestError: *check*, and its exit status is not 0; or the guest died.
        """
        try:
            self._guest.wait(lambda: self.returncode is not None, timeout, what=f"the end of {self._script!r}")
        except GuestTimeoutError as error:
            error.add_note(self._output())
            self.kill()
            raise
        if self.returncode is None:
            raise AssertionError
        if check and self.returncode != 0:
            message = f"exit status {self.returncode} of {self._script!r} in the guest\n{self._output()}"
            raise GuestError(message)
        return Completed(returncode=self.returncode, stdout=self.stdout, stderr=self.stderr, directory=self.directory)

    def kill(self) -> None:
        """Kill it and its children with SIGKILL; `wait` still has to be called for the exit status."""
        self._guest.send(f"kill {self.directory.name}")

    def _output(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Guest:
    """A running guest; a context manager that ends it."""

    def __init__(
        self,
        kit: Kit,
        *,
        qemu_arguments: Sequence[str] = (),
        memory_mib: int = 1024,
        processors: int = 2,
        timeout: float = 120,
        terminal: bool = False,
    ) -> None:
        """Boot from *kit* and wait until commands can be run.

        Args:
            kit: what to boot.
            qemu_arguments: put at the end of QEMU's command line, for devices that cannot be plugged in later.
            memory_mib: the guest's memory in MiB, shared with vhost-user back-ends.
            processors: the number of its processors.
            timeout: how long booting may take.
            terminal: connect the guest's /dev/hvc0 with our standard input and output.

        Raises:
            GuestError: QEMU does not start, or the guest does not come up; with the end of its console.
        """
        arguments = (*(_TERMINAL if terminal else ()), *qemu_arguments)
        machine = _machine_arguments(memory_mib, processors)
        for nr_boots_left in reversed(range(_BOOTS_MAX)):
            try:
                self._boot(kit, (*machine, *arguments), timeout, terminal=terminal)
                break
            except GuestError as error:
                if _QEMU_RACE not in str(error) or not nr_boots_left:
                    raise

    def _boot(self, kit: Kit, arguments: Sequence[str], timeout: float, *, terminal: bool) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="zonefs-emu-guest-"))
        self.share = self._directory / "share"
        self.share.mkdir()
        self._console = self._directory / "console"
        self._jobs: dict[str, Job] = {}
        self._nr_plugged = 0
        self._received = b""
        self._ready = False
        self._agent, agent_far_end = socket.socketpair()
        self._control, control_far_end = socket.socketpair()
        initramfs = self._directory / "initramfs"
        initramfs.write_bytes(build_initramfs(kit))
        command = [
            *kit.qemu_command,
            *("-kernel", str(kit.kernel), "-initrd", str(initramfs)),
            *("-append", " ".join((*_COMMAND_LINE, f"guest_share={self.share}", f"guest_layers={len(kit.layers)}"))),
            *("-serial", f"file:{self._console}"),
            *_file_system("host", Path("/"), readonly=True),
            *(word for n, path in enumerate(kit.layers) for word in _file_system(f"kit{n}", path, readonly=True)),
            *_file_system("share", self.share, readonly=False),
            *("-chardev", f"socket,id=agent,fd={agent_far_end.fileno()}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=zonefs-emu.agent"),
            *("-chardev", f"socket,id=control,fd={control_far_end.fileno()}", "-mon", "chardev=control,mode=control"),
            *arguments,
        ]
        with (self._directory / "qemu").open("wb") as talk:
            self._qemu = subprocess.Popen(
                command,
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=None if terminal else talk,
                stderr=talk,
                env=kit.environment,
                pass_fds=(agent_far_end.fileno(), control_far_end.fileno()),
            )
        agent_far_end.close()
        control_far_end.close()
        try:
            self._qmp = QmpClient(self._control, timeout=timeout * _PATIENCE)
            self.wait(lambda: self._ready, timeout, what="the guest to boot")
            self._state_at_boot = self._state()
        except (QmpError, GuestError) as error:
            talk_text, console = self.qemu_output, self._console_tail()
            self.close()
            message = f"the guest did not boot: {error}\n--- QEMU\n{talk_text}\n--- console\n{console}"
            raise GuestError(message) from error

    def __enter__(self) -> Self:
        """The guest."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    @property
    def console(self) -> str:
        """The kernel's output on its console so far."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    @property
    def qemu_output(self) -> str:
        """The output of QEMU itself so far."""
        return (self._directory / "qemu").read_text(errors="replace")

    def is_pristine(self) -> bool:
        """Whether the guest runs, and what was run in it has left no job, no disk and no mount behind.

        Loaded modules are not looked at: those that make no disk do not disturb.
        """
        try:
            while self._has_data(0):
                self.receive(timeout=0)
            return (
                all(job.returncode is not None for job in self._jobs.values()) and self._state() == self._state_at_boot
            )
        except GuestError:
            return False

    def start(self, script: Script) -> Job:
        """Start a command and return at once.

        Args:
            script: a text for `sh -e`, or a list of words that are one command. It runs as root, in a directory of its
                own below the share.
        """
        text = script if isinstance(script, str) else shlex.join(script)
        name = str(len(self._jobs))
        directory = self.share / name
        directory.mkdir()
        (directory / "script").write_text(f"set -e\n{text}\n")
        for stream in ("stdout", "stderr"):
            (directory / stream).touch()
        job = self._jobs[name] = Job(self, directory, text)
        self.send(f"run {name}")
        return job

    def run(self, script: Script, *, timeout: float = 60, check: bool = True) -> Completed:
        """Run a command to its end: `start` and `Job.wait` in one, with the errors of both."""
        return self.start(script).wait(timeout, check=check)

    def start_python(self, source: str, *arguments: str) -> Job:
        """Start Python *source* in the guest, with this interpreter and the checkout's modules."""
        return self.start(
            f"export PYTHONPATH={shlex.quote(str(_CHECKOUT))} PYTHONDONTWRITEBYTECODE=1\n"
            f"exec {shlex.join([sys.executable, '-c', source, *arguments])}"
        )

    def run_python(self, source: str, *arguments: str, timeout: float = 60, check: bool = True) -> Completed:
        """Run Python *source* to its end: `start_python` and `Job.wait` in one, with the errors of both."""
        return self.start_python(source, *arguments).wait(timeout, check=check)

    def wait_until(self, condition: str, *, timeout: float = 30) -> None:
        """Wait until the shell command *condition* succeeds in the guest.

        Raises:
            GuestTimeoutError: it has not within *timeout*. GuestError: the guest died.
        """
        self.run(f"until {condition}\ndo sleep 0.1\ndone", timeout=timeout)

    def load(self, module: str, *parameters: str) -> None:
        """Load a kernel module and what it depends on; nothing loads by itself for a new device.

        Raises:
            GuestError: there is no such module, or it does not load.
        """
        self.run(["modprobe", module, *parameters])

    def disks(self) -> set[str]:
        """Names of the guest's block devices, without /dev/."""
        return set(self.run(["ls", "/sys/block"]).stdout.split())

    def plug(self, driver: str, **properties: object) -> str:
        """Plug a PCI device in while the guest runs; its id, for `unplug`.

        Raises:
            QmpError: QEMU refuses it.
        """
        self._nr_plugged += 1
        device = f"plugged{self._nr_plugged}"
        # QEMU spells some names with dashes and some with underscores: num-queues of blk is num_queues of scsi.
        listed = self.qmp("device-list-properties", {"typename": driver})
        known = {item["name"] for item in listed if isinstance(item, dict)} if isinstance(listed, list) else set()
        named = {name if name in known else name.replace("_", "-"): value for name, value in properties.items()}
        self.qmp("device_add", {"driver": driver, "id": device, **named})
        return device

    def unplug(self, device: str, *, timeout: float = 30) -> None:
        """Take a plugged device out and wait until the guest has let it go.

        Raises:
            QmpError: it has not within *timeout*.
        """
        self.qmp("device_del", {"id": device})
        self._qmp.wait_event("DEVICE_DELETED", {"device": device}, timeout=timeout * _PATIENCE)

    def attach(
        self,
        kind: Literal["scsi", "blk"],
        socket_path: Path,
        *,
        reconnect_ms: int = 200,
        timeout: float = 30,
        **properties: object,
    ) -> "AttachedDisk":
        """Attach the vhost-user back-end that listens on *socket_path* and wait for its disk to appear.

        Args:
            kind: the device the guest gets.
            socket_path: the back-end's socket; waited for, and the back-end may go and come back later.
            reconnect_ms: how often QEMU tries to connect again after the back-end has gone.
            timeout: how long all of this may take.
            properties: further properties of QEMU's device, such as num_queues=1; underscores become dashes where QEMU
                has dashes.

        Raises:
            QmpError: QEMU refuses what the back-end says.
            GuestTimeoutError: no process listens on the socket, or no disk appears.
        """
        timeout *= _PATIENCE
        deadline = time.monotonic() + timeout
        # QEMU itself would stand still until it is connected.
        while not _is_listening(socket_path):
            if time.monotonic() > deadline:
                message = f"no process has listened on {socket_path} for {timeout:g} s"
                raise GuestTimeoutError(message)
            time.sleep(0.02)
        driver, modules = _VHOST_USER_DRIVERS[kind]
        for module in modules:
            self.load(module)
        before = self.disks()
        chardev = f"chardev{self._nr_plugged + 1}"
        address = {"type": "unix", "data": {"path": str(socket_path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False, "reconnect-ms": reconnect_ms}}
        self.qmp("chardev-add", {"id": chardev, "backend": backend})
        try:
            device = self.plug(driver, chardev=chardev, **properties)
        except QmpError:
            self.qmp("chardev-remove", {"id": chardev})
            raise
        attached = AttachedDisk(guest=self, device=device, chardev=chardev, name="")
        while not (new := self.disks() - before):
            if time.monotonic() > deadline:
                attached.detach()
                message = f"no disk from {socket_path} within {timeout:g} s\n--- console\n{self._console_tail()}"
                raise GuestTimeoutError(message)
            time.sleep(0.1)
        return AttachedDisk(guest=self, device=device, chardev=chardev, name=min(new))

    def qmp(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30) -> object:
        """Run a command of QEMU's control protocol; what it returns.

        Raises:
            QmpError: QEMU refuses it, has gone, or does not answer within *timeout*.
        """
        return self._qmp.execute(command, arguments, timeout=timeout * _PATIENCE)

    def reboot(self, timeout: float = 120) -> None:
        """Reset the machine, as a button does, and wait until the guest has booted again.

        Raises:
            GuestTimeoutError: it has not after *timeout*. GuestError: it has ended instead.
        """
        self._ready = False
        # The command line makes QEMU end instead, for panics.
        self.qmp("set-action", {"reboot": "reset"})
        self.qmp("system_reset")
        self.wait(lambda: self._ready, timeout, what="the guest to boot again")
        self.qmp("set-action", {"reboot": "shutdown"})

    def power_off(self, timeout: float = 60) -> int:
        """Let the guest sync and power off, as its user would; QEMU's exit status.

        Raises:
            GuestTimeoutError: it still runs after *timeout*. GuestError: it has died before.
        """
        timeout *= _PATIENCE
        self.send("poweroff")
        try:
            return self._qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"the guest has not powered off within {timeout:g} s\n--- console\n{self._console_tail()}"
            raise GuestTimeoutError(message) from None

    def close(self) -> None:
        """End the guest at once, as a power cut would, and remove its files; harmless if it has ended."""
        # QEMU restores the terminal when it is asked to quit, but takes no command while it waits for a back-end.
        self._qemu.terminate()
        try:
            self._qemu.wait(_TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            self._qemu.kill()
            self._qemu.wait()
        self._agent.close()
        self._control.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def send(self, line: str) -> None:
        """Send a line to the agent; for `Job`.

        Raises:
            GuestError: the guest died.
        """
        try:
            self._agent.sendall(line.encode() + b"\n")
        except OSError as error:
            raise self._died() from error

    def wait(self, condition: Callable[[], bool], timeout: float, *, what: str) -> None:
        """Handle what the agent says until *condition* holds; for `Job`.

        Raises:
            GuestTimeoutError: it does not after *timeout*; the message names *what* was waited for.
            GuestError: the guest died.
        """
        timeout *= _PATIENCE
        deadline = time.monotonic() + timeout
        while not condition():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                message = f"waited {timeout:g} s in vain for {what}"
                raise GuestTimeoutError(message)
            self.receive(timeout=remaining)

    def _has_data(self, timeout_s: float) -> bool:
        # select.select takes no descriptor above 1023, which a process that runs many tests reaches.
        poller = select.poll()
        poller.register(self._agent, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def receive(self, *, timeout: float) -> None:
        """Handle what the agent says within *timeout* seconds (these are real ones), at most one portion; for `Job`.

        Raises:
            GuestError: the guest died, or was ended.
        """
        if self._agent.fileno() < 0:
            message = "the guest has been ended"
            raise GuestError(message)
        if not self._has_data(timeout):
            return
        try:
            data = self._agent.recv(_RECEIVE_BYTES)
        except ConnectionError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["ready"]:
                    self._ready = True
                case ["done", name, status]:
                    self._jobs[name].returncode = int(status)
                case words:
                    message = f"the guest's agent says {words}, which is none of its words"
                    raise AssertionError(message)

    def _state(self) -> str:
        return self.run("ls /sys/block; cat /proc/mounts").stdout

    def _died(self) -> GuestError:
        return GuestError(f"the guest has gone\n--- QEMU\n{self.qemu_output}\n--- console\n{self._console_tail()}")

    def _console_tail(self) -> str:
        # The firmware colours its messages.
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", self.console)
        return "\n".join(text.splitlines()[-_CONSOLE_TAIL_LINES:])


def zns_drive(image: Path, *, zone_size_mib: int = 64, max_open_zones: int = 0) -> list[str]:
    """Arguments for a ZNS drive of 4096-byte blocks that QEMU itself emulates on *image*: /dev/nvme0n1, our peer.

    Args:
        image: a raw file of whole zones. QEMU keeps no zone state in it: all zones are empty after each boot.
        zone_size_mib: size and capacity of a zone, in MiB.
        max_open_zones: limit of open and of active zones; 0 = no limit.
    """
    blocks = "logical_block_size=4096,physical_block_size=4096"
    zones = f"zoned=true,zoned.zone_size={zone_size_mib}M"
    limits = f"zoned.max_open={max_open_zones},zoned.max_active={max_open_zones}"
    return [
        *("-drive", f"file={image},id=zns,format=raw,if=none"),
        *("-device", "nvme,serial=zns,id=nvme"),
        *("-device", f"nvme-ns,drive=zns,bus=nvme,{blocks},{zones},{limits}"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk that `Guest.attach` has attached."""

    guest: Guest
    device: str
    chardev: str
    name: str
    """Its name in the guest, without /dev/."""

    @property
    def path(self) -> str:
        """Its path in the guest."""
        return f"/dev/{self.name}"

    def detach(self) -> None:
        """Take it out of the guest, which must not use it any more."""
        self.guest.unplug(self.device)
        self.guest.qmp("chardev-remove", {"id": self.chardev})


def _is_listening(socket_path: Path) -> bool:
    """Whether a process accepts connections there; asking by connecting would use up the back-end's only connection."""
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON.
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(socket_path) and int(fields[3], 16) & 0x10000:
            return True
    return False


def _machine_arguments(memory_mib: int, processors: int) -> list[str]:
    return [
        *("-nodefaults", "-no-reboot", "-display", "none"),
        # KVM is never used: a present /dev/kvm does not mean that a stock kernel runs under it. Kernels copy eight
        # bytes at a time without the two features; with them an emulated processor copies byte by byte.
        *("-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", str(processors)),
        # Back-ends map the guest's memory, so it must be a shared mapping.
        *("-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
        # The old board, because it takes PCI devices at run time without bridges.
        *("-machine", "pc,memory-backend=memory", "-m", str(memory_mib)),
    ]


def _file_system(tag: str, path: Path, *, readonly: bool) -> list[str]:
    # "remap" keeps inode numbers apart where the tree spans several of the host's file systems.
    options = f"local,id={tag},path={path},security_model=none,multidevs=remap,readonly={'on' if readonly else 'off'}"
    return ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
