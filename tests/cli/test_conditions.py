import pytest

from zonefs_emu.cli.conditions import COND_CODES, COND_WORDS, TYPE_CODES, parse_cond, parse_conds
from zonefs_emu.errors import UsageError
from zonefs_emu.model.zone import Condition, ZoneType

C = Condition

# One row per condition: what Linux, blkzone, zbd, nvme-cli, xNVMe and libzbc call it.
NAMES = [
    (C.NOT_WP, ["nw", "Not-write-pointer", "not_wp", "BLK_ZONE_COND_NOT_WP", "0x0", "conventional"]),
    (C.EMPTY, ["em", "EMPTY", "ZND_STATE_EMPTY", "Empty", "0x1", "1"]),
    (C.IMP_OPEN, ["oi", "IMP_OPENED", "ZND_STATE_IOPEN", "Implicit-open", "imp_open", "0x2"]),
    (C.EXP_OPEN, ["oe", "EXP_OPENED", "ZND_STATE_EOPEN", "Explicit-open", "VIRTIO_BLK_ZS_EOPEN", "0x3"]),
    (C.CLOSED, ["cl", "CLOSED", "ZND_STATE_CLOSED", "Closed", "0x4"]),
    (C.READONLY, ["ro", "READONLY", "ZND_STATE_RONLY", "Read-only", "readonly", "0xd"]),
    (C.FULL, ["fu", "FULL", "ZND_STATE_FULL", "Full", "0xe"]),
    (C.OFFLINE, ["ol", "of", "OFFLINE", "ZND_STATE_OFFLINE", "Offline", "0xf"]),
]


@pytest.mark.parametrize(("cond", "name"), [(cond, name) for cond, names in NAMES for name in names])
def test_every_tools_name_is_understood(cond: Condition, name: str) -> None:
    assert parse_cond(name) is cond


def test_what_we_print_is_what_we_read() -> None:
    for cond in Condition:
        assert parse_cond(COND_CODES[cond]) is cond
        assert parse_cond(COND_WORDS[cond]) is cond
    assert set(TYPE_CODES) == set(ZoneType)


def test_lists_of_conditions() -> None:
    assert parse_conds("em, oi,FULL") == {C.EMPTY, C.IMP_OPEN, C.FULL}


@pytest.mark.parametrize("text", ["", "em,", "sleepy", "7", "0x5", "-1", "em oi"])
def test_an_unknown_name_gets_the_list_of_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a zone condition: there are nw \(conventional\), em"):
        parse_conds(text)
