"""Numbers that are shared with the standards and with Linux, so they never change."""

from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition, Zone, ZoneType


def test_conditions_are_numbered_as_in_zbc_virtio_and_linux() -> None:
    assert {cond.name: cond.value for cond in Condition} == {
        "NOT_WP": 0x0,
        "EMPTY": 0x1,
        "IMP_OPEN": 0x2,
        "EXP_OPEN": 0x3,
        "CLOSED": 0x4,
        "READONLY": 0xD,
        "FULL": 0xE,
        "OFFLINE": 0xF,
    }


def test_types_are_numbered_as_in_zbc_virtio_and_linux() -> None:
    assert {kind.name: kind.value for kind in ZoneType} == {"CONVENTIONAL": 1, "SWR": 2, "SWP": 3}


def test_which_conditions_hold_resources() -> None:
    assert {Condition.IMP_OPEN, Condition.EXP_OPEN} == OPEN_CONDITIONS
    assert {Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED} == ACTIVE_CONDITIONS


def test_a_snapshot_has_its_fields_in_order() -> None:
    assert ",".join(Zone._fields) == "zone_no,start,size,capacity,wp,cond,type,reset_recommended,attributes"
    zone = Zone(1, 64, 64, 48, 72, Condition.CLOSED, ZoneType.SWR)
    assert tuple(map(int, zone)) == (1, 64, 64, 48, 72, 4, 2, 0, 0)
