import json
from contextlib import closing
from pathlib import Path

from tests.cli.conftest import fails, ok, run_cli
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.model.transitions import ZBC
from zonefs_emu.scsi.target import Target


def test_nothing_refused_is_said_on_stderr(image: Path) -> None:
    result = run_cli("why", image)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing was refused\n")
    assert json.loads(ok("why", image, "--json")) == {"refusals": []}


def test_the_last_refusals_oldest_first(image: Path) -> None:
    fails("open", image, "--zone", 0)
    fails("write", image, "--zone", 3, "--offset", "4K", stdin=bytes(4096))
    (line,) = ok("why", image).splitlines()
    assert "cli: write of 8 sectors at sector 6152 was refused (UNALIGNED_WP)" in line
    assert [refusal["rule"] for refusal in json.loads(ok("why", image, "-n", "9", "--json"))["refusals"]] == [
        "CONVENTIONAL",
        "UNALIGNED_WP",
    ]
    assert len(ok("why", image, "-n", 2).splitlines()) == 2


def test_how_many() -> None:
    assert "is not in the range 1<=x<=1000" in fails("why", "x", "-n", 0, code=2)


def test_a_malformed_request_has_no_zone(fresh: Path) -> None:
    with closing(ZonedDevice.open(fresh)) as device:
        disk = Target(device.port("vhost-user-scsi", ZBC), serial="x", power_on=False)
        disk.execute(0, bytes.fromhex("42 00 00000000 00 0018 00"), [], [])  # UNMAP
    fails("open", fresh, "--zone", 0)
    first, second = ok("why", fresh, "-n", 2).splitlines()
    assert first.partition(" ")[2] == (
        "vhost-user-scsi: command 42h (CDB 42 00 00 00 00 00 00 00 18 00, byte 0) was refused (UNSUPPORTED): a command "
        "must be one that the disk has, as REPORT SUPPORTED OPERATION CODES lists them "
        "[SPC-4 INVALID COMMAND OPERATION CODE]; answered as ILLEGAL_REQUEST 20h/00h (scsi)"
    )
    assert "cli: open at sector 0 was refused (CONVENTIONAL)" in second
    malformed, plain = json.loads(ok("why", fresh, "-n", 2, "--json"))["refusals"]
    assert malformed["request"] == "command 42h (CDB 42 00 00 00 00 00 00 00 18 00, byte 0)"
    assert malformed["answers"] == {"scsi": "ILLEGAL_REQUEST 20h/00h"}
    for name in ("operation", "zone_no", "cond", "wp", "sector", "nr_sectors"):
        assert malformed[name] is None
    assert (plain["operation"], plain["zone_no"], plain["cond"], plain["request"]) == ("open", 0, "NOT_WP", None)


def test_the_slowest_are_shown_once_and_by_their_own_number(fresh: Path) -> None:
    for option in (("--follow",), ("-n", 2)):
        assert f"{option[0]} has no effect beside --slow" in fails("why", fresh, "--slow", 3, *option, code=2)
