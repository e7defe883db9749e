"""The drive has what Linux looks at, over each transport, and the test of each row knows a drive that lacks it."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lacking_drive import ROWS, Row, lacking
from tests.nvme.conftest import NR_ZONES, UUID_1, new_device
from tests.nvme_tcp import conftest as tcp
from tests.vfio_user import conftest as vfio_user
from zonefs_emu.nvme.controller import Register
from zonefs_emu.nvme.subsystem import nqn_of
from zonefs_emu.testing.nvme_initiator import AdminCommands, IoCommands

CASES = [(row, way) for row in ROWS for way in ("tcp", "vfio-user") if way == "tcp" or not row.only_tcp]
IDS = [f"{row.name} {way}" for row, way in CASES]


@contextmanager
def connected(directory: Path, way: str) -> Iterator[tuple[AdminCommands, int, IoCommands]]:
    """Serve a drive; yields its host, its register CAP, and an I/O queue."""
    with new_device(directory) as device:
        if way == "tcp":
            with tcp.serving(device) as target, target.host() as host:
                yield host, host.admin.get_property(Register.CAP, wide=True).result, host.queue(1)
        else:
            with vfio_user.serving(device) as served, served.guest() as guest:
                yield guest, guest.client.register(Register.CAP, 8), guest.queue(1)


@pytest.mark.parametrize(("row", "way"), CASES, ids=IDS)
def test_the_drive_has_it(tmp_path: Path, row: Row, way: str) -> None:
    with connected(tmp_path, way) as (host, cap, _):
        assert row.is_met(host, cap)


@pytest.mark.parametrize(("row", "way"), CASES, ids=IDS)
def test_a_drive_that_lacks_it_is_known_by_that(tmp_path: Path, row: Row, way: str) -> None:
    with lacking({nqn_of(UUID_1): row}), connected(tmp_path, way) as (host, cap, _):
        missing = [each.name for each, how in CASES if how == way and not each.is_met(host, cap)]
    assert row.name in missing
    # A page that is refused has none of its fields.
    assert all(name.startswith(row.name) for name in missing)


@pytest.mark.parametrize("way", ["tcp", "vfio-user"])
def test_all_zones_are_sequential_ones(tmp_path: Path, way: str) -> None:
    """Linux refuses a drive with another zone: "invalid zone type"."""
    with connected(tmp_path, way) as (_, _, queue):
        report = queue.report(1, room=64 * (NR_ZONES + 1)).data
    assert struct.unpack_from("<Q", report) == (NR_ZONES,)
    assert set(report[64::64]) == {2}
