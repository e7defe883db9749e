"""What the kernel's files say, as a directory of the test; connecting for real is tested in the guest."""

import io
from pathlib import Path
from typing import Self

import pytest
from typing_extensions import Buffer

from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp import kernel_host
from zonefs_emu.nvme_tcp.attached_drive import new_credentials
from zonefs_emu.nvme_tcp.host_keys import key_text
from zonefs_emu.nvme_tcp.kernel_host import Credentials, KernelController

NQN = "nqn.subsystem"
OPTIONS = "instance=-1,transport=%s,traddr=%s"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, directory in (("_FABRICS", "fabrics"), ("_CONTROLLERS", "nvme"), ("_DISKS", "block")):
        monkeypatch.setattr(kernel_host, name, tmp_path / directory)
    return tmp_path


def attributes(directory: Path, **values: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")


def controller(kernel: Path, name: str, credentials: Credentials, **changes: str) -> None:
    values = {
        "address": "traddr=127.0.0.1,trsvcid=4321,src_addr=127.0.0.1",
        "subsysnqn": NQN,
        "hostnqn": credentials.host_nqn,
        "dhchap_secret": key_text(credentials.host_key),
        "dhchap_ctrl_secret": key_text(credentials.controller_key),
        "state": "live",
    }
    attributes(kernel / "nvme" / name, **(values | changes))


def test_controllers_of_a_drive(kernel: Path) -> None:
    assert kernel_host.connected(NQN) == []
    ours = new_credentials()
    controller(kernel, "nvme3", ours)
    controller(kernel, "nvme4", ours, subsysnqn="nqn.other")
    controller(kernel, "nvme5", ours, address="traddr=192.0.2.1,trsvcid=4321")
    controller(kernel, "nvme6", ours, address="0000:00:04.0")
    controller(kernel, "nvme7", ours, dhchap_secret="none")
    assert kernel_host.connected(NQN) == [KernelController(name="nvme3", port=4321, credentials=ours)]
    other = new_credentials()
    assert ours.host_key.secret != ours.controller_key.secret
    assert ours.host_key.secret != other.host_key.secret
    assert ours.host_nqn != other.host_nqn


def test_the_disk_of_a_namespace(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_host, "_LOOK_S", 0)
    monkeypatch.setattr(kernel_host, "_WAIT_S", 0)
    ours = KernelController(name="nvme0", port=1, credentials=new_credentials())
    controller(kernel, "nvme0", ours.credentials)
    with pytest.raises(UsageError, match="the kernel has made no disk of the controller nvme0"):
        kernel_host.wait_for_disk(ours, NQN, "u")
    attributes(kernel / "block/nvme0c0n1", hidden="1", uuid="u")
    attributes(kernel / "block/nvme0n1", hidden="0", uuid="u")
    attributes(kernel / "block/nvme0n1/device", subsysnqn="nqn.other")
    assert kernel_host.disk(NQN, "u") is None
    attributes(kernel / "block/nvme0n1/device", subsysnqn=NQN)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    assert kernel_host.wait_for_disk(ours, NQN, "u") == Path("/dev/nvme0n1")
    assert kernel_host.disk(NQN, "v") is None
    attributes(kernel / "nvme/nvme0", state="connecting")
    with pytest.raises(UsageError, match="has made no disk"):
        kernel_host.wait_for_disk(ours, NQN, "u")


def test_a_kernel_that_cannot(kernel: Path) -> None:
    with pytest.raises(UsageError, match=r"fabrics cannot be opened .*: load the driver with 'modprobe nvme-tcp', as"):
        kernel_host.check_host()
    (kernel / "fabrics").write_text(OPTIONS)
    with pytest.raises(UsageError, match="CONFIG_NVME_HOST_AUTH"):
        kernel_host.check_host()
    (kernel / "fabrics").write_text(f"{OPTIONS},dhchap_secret=%s")
    kernel_host.check_host()


def test_a_kernel_that_does_not_connect(kernel: Path) -> None:
    with pytest.raises(UsageError, match=r"the kernel does not connect to the drive \(No such file"):
        kernel_host.connect(NQN, 1, new_credentials(), nr_queues=1)


class Fabrics(io.BytesIO):
    """The kernel's file: connects a controller nvme5, whatever is written, and says so."""

    def open(self, *_: object, **__: object) -> Self:
        return self

    def write(self, _options: Buffer, /) -> int:
        return 0


def test_keys_are_for_root_only_or_nothing_is_connected(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = new_credentials()
    controller(kernel, "nvme5", ours, delete_controller="")
    monkeypatch.setattr(kernel_host, "_FABRICS", Fabrics(b"instance=5,cntlid=1\n"))
    assert kernel_host.connect(NQN, 1, ours, nr_queues=1).name == "nvme5"
    for name in ("dhchap_secret", "dhchap_ctrl_secret"):
        assert (kernel / "nvme/nvme5" / name).stat().st_mode & 0o777 == 0o600
    (kernel / "nvme/nvme5/dhchap_ctrl_secret").unlink()
    monkeypatch.setattr(kernel_host, "_FABRICS", Fabrics(b"instance=5,cntlid=1\n"))
    with pytest.raises(UsageError, match=r"cannot be hidden from other users \(No such file or directory\)"):
        kernel_host.connect(NQN, 1, ours, nr_queues=1)
    assert (kernel / "nvme/nvme5/delete_controller").read_text().startswith("1")


def test_the_end_of_a_controller(kernel: Path) -> None:
    ours = KernelController(name="nvme0", port=1, credentials=new_credentials())
    kernel_host.disconnect(ours)
    attributes(kernel / "nvme/nvme0", delete_controller="")
    kernel_host.disconnect(ours)
    assert (kernel / "nvme/nvme0/delete_controller").read_text().startswith("1")
