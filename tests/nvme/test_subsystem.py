import pytest

from tests.nvme.conftest import UUID_1
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.subsystem import Subsystem, require_nqn


def test_it_is_named_after_the_image(device: ZonedDevice) -> None:
    subsystem = Subsystem([device])
    assert subsystem.nqn == f"nqn.2014-08.org.nvmexpress:uuid:{UUID_1}"
    assert subsystem.serial == UUID_1.hex[:20].upper()
    assert list(subsystem.namespaces()) == [1]
    named = Subsystem([device], nqn="nqn.2024-01.org.example:a", serial="S1")
    assert (named.nqn, named.serial) == ("nqn.2024-01.org.example:a", "S1")


@pytest.mark.parametrize("serial", ["S" * 21, "S\n", "Ü1"])
def test_serial_numbers_that_are_none(device: ZonedDevice, serial: str) -> None:
    with pytest.raises(UsageError, match=r"is not a serial number of NVMe, which has at most 20 printable ASCII"):
        Subsystem([device], serial=serial)


@pytest.mark.parametrize("nqn", ["", "nqn.", "iqn.2024-01.org.example", "nqn.a b", "nqn.\n", "nqn." + 220 * "x"])
def test_names_that_are_none(nqn: str) -> None:
    with pytest.raises(UsageError, match=r"is not an NVMe Qualified Name, which begins with nqn\."):
        require_nqn(nqn)


def test_a_controller_number_is_not_used_again_soon(device: ZonedDevice) -> None:
    """A host that returns could take another host's controller for its own."""
    subsystem = Subsystem([device])
    assert [subsystem.take_cntlid() for _ in range(3)] == [1, 2, 3]
    subsystem.give_back_cntlid(2)
    assert subsystem.take_cntlid() == 4
    subsystem._last_cntlid = 0xFFEE
    assert [subsystem.take_cntlid(), subsystem.take_cntlid()] == [0xFFEF, 2]


def test_controller_numbers_run_out(device: ZonedDevice) -> None:
    subsystem = Subsystem([device])
    subsystem._cntlids.update(dict.fromkeys(range(1, 0xFFEF), device))
    assert subsystem.take_cntlid() == 0xFFEF
    assert subsystem.take_cntlid() is None


def test_controllers_for_discovery_have_no_namespaces(device: ZonedDevice) -> None:
    subsystem = Subsystem([device])
    assert [subsystem.take_cntlid(is_discovery=number == 1) for number in range(3)] == [1, 2, 3]
    assert sorted(subsystem.io_cntlids()) == [1, 3]
    subsystem.give_back_cntlid(1)
    subsystem.give_back_cntlid(2)
    assert subsystem.io_cntlids() == [3]
