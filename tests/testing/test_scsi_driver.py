"""The initiator, against the real host of a SCSI disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost_user.serving import ZONE, create, serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import PeerError
from zonefs_emu.model.zone import Condition
from zonefs_emu.testing import scsi_driver
from zonefs_emu.testing.scsi_driver import FIRST_REQUEST_QUEUE, Reply, ScsiDriver, ScsiZone
from zonefs_emu.testing.vhost_frontend import Frontend
from zonefs_emu.virtqueue.scsi_host import ScsiHost


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[ScsiDriver]:
    device = ZonedDevice.open(create(tmp_path / "image"))
    with (
        serving(device, ScsiHost(device, serial="serial"), tmp_path / "socket"),
        Frontend(tmp_path / "socket", nr_queues=FIRST_REQUEST_QUEUE + 1) as frontend,
    ):
        frontend.start()
        yield ScsiDriver(frontend.queues[FIRST_REQUEST_QUEUE], 512)
    device.close()


def test_reads_writes_and_flushes(driver: ScsiDriver) -> None:
    assert driver.write(2 * ZONE, b"a" * 1024) == Reply(None, b"")
    assert driver.read(2 * ZONE, 3) == Reply(None, b"a" * 1024 + bytes(512))
    assert driver.flush() == Reply(None, b"")


def test_refusals_are_sense_data_in_either_format(driver: ScsiDriver) -> None:
    unaligned = (0x5, 0x21, 0x04)
    assert driver.write(2 * ZONE + 1, bytes(512)).sense == unaligned
    control = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 0000 ffff 0000")  # D_SENSE: descriptor format
    assert driver.command(bytes.fromhex("15 10 00 00 10 00"), out=control).sense is None
    assert driver.write(2 * ZONE + 1, bytes(512)).sense == unaligned


def test_zones(driver: ScsiDriver) -> None:
    start = 3 * ZONE
    conds = []
    for action in (scsi_driver.OPEN, scsi_driver.CLOSE, scsi_driver.FINISH, scsi_driver.RESET):
        assert driver.manage(action, start).sense is None
        conds.append(driver.report(start, 1)[0].cond)
    assert conds == [Condition.EXP_OPEN, Condition.EMPTY, Condition.FULL, Condition.EMPTY]
    driver.write(start, bytes(512))
    assert driver.report(start + 5, 2) == [
        ScsiZone(2, Condition.IMP_OPEN, ZONE, start, start + 1),
        ScsiZone(2, Condition.EMPTY, ZONE, start + ZONE, start + ZONE),
    ]
    assert driver.manage(scsi_driver.RESET, 0, all_zones=True).sense is None
    assert driver.report(start, 1)[0].cond == Condition.EMPTY
    assert len(driver.report()) == 32


def test_what_does_not_get_there_is_an_error(driver: ScsiDriver) -> None:
    with pytest.raises(PeerError, match="answers 1 to command 88"):
        driver.command(bytes.fromhex("88 00").ljust(13, b"\0") + b"\x09\0\0", room=512)
    with pytest.raises(PeerError, match=r"REPORT ZONES from block 65536 answers sense \(5, 33, 0\)"):
        driver.report(32 * ZONE)
