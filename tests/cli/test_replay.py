import json
from pathlib import Path

from tests.cli.conftest import fails, ok
from tests.cli.test_serve import serving
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.oplog import record
from zonefs_emu.model.transitions import VIRTIO, Operation


def recorded(image: Path, tmp_path: Path) -> Path:
    """A log made on a copy of *image*."""
    copy = tmp_path / "recorded.img"
    ok("dump", image, copy)
    log = tmp_path / "operations.log"
    device = ZonedDevice.open(copy)
    with log.open("w") as file:
        record(device, file)
        port = device.port("fuse", VIRTIO)
        zone_size = device.geometry.zone_size
        port.write(2 * zone_size, 8, (bytes(4096),))
        port.append(3 * zone_size, 8, (bytes(4096),))
        port.write(2 * zone_size, 8, (bytes(4096),))
        port.manage(Operation.FINISH, 3 * zone_size)
    device.close()
    return log


def test_the_same_answers(fresh: Path, tmp_path: Path) -> None:
    log = recorded(fresh, tmp_path)
    assert ok("replay", log, fresh) == "4 operations, all answered as in the log\n"
    conds = [zone["cond"] for zone in json.loads(ok("report", fresh, "--json"))["zones"]]
    assert conds[2:4] == ["oi", "fu"]


def test_the_first_difference_is_shown_and_fails(fresh: Path, tmp_path: Path) -> None:
    log = recorded(fresh, tmp_path)
    ok("set-cond", fresh, "--zone", 3, "readonly")
    assert "line 3: the log says OK, this device says ZONE_READONLY" in fails("replay", log, fresh)


def test_json(fresh: Path, tmp_path: Path) -> None:
    log = recorded(fresh, tmp_path)
    assert json.loads(ok("replay", log, fresh, "--json")) == {"operations": 4, "difference": None}


def test_no_log(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "no.log").write_bytes(b"\xff\x00garbage\n")
    assert "line 1 of the log is not a JSON object" in fails("replay", tmp_path / "no.log", fresh, code=2)
    assert "No such file" in fails("replay", tmp_path / "missing", fresh)


def test_a_log_of_a_killed_daemon_is_whole(fresh: Path, tmp_path: Path) -> None:
    """Each answered operation is in the log, up to the last before the kill."""
    log = tmp_path / "operations.log"
    ok("dump", fresh, tmp_path / "before.img")
    with serving(fresh, "--vhost-user-blk", tmp_path / "blk", "--record", log) as daemon:
        for number in range(20):
            ok("write", fresh, "--zone", 2, stdin=bytes((number,)) * 4096)
        daemon.kill()
        daemon.wait()
    assert ok("replay", log, tmp_path / "before.img") == "20 operations, all answered as in the log\n"
