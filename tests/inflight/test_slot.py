"""The two words of an intent, which processes of different versions exchange."""

import pytest

from zonefs_emu.inflight.slot import COND_SHIFT, OPERATION_SHIFT, SlotIntent, decode
from zonefs_emu.model.transitions import Operation
from zonefs_emu.model.zone import Condition

WORDS = [
    (0, 0, SlotIntent(0, 0, 0, 0)),
    (4096, 0x02_02_00000008, SlotIntent(Operation.APPEND, 4096, 8, Condition.IMP_OPEN)),
    (1 << 40, 0x0E_01_FFFFFFFF, SlotIntent(Operation.WRITE, 1 << 40, (1 << 32) - 1, Condition.FULL)),
    # Not a condition, and more than a byte: the peer wrote it.
    (7, 0xABCDEF_00_00000001, SlotIntent(0, 7, 1, 0xABCDEF)),
]


@pytest.mark.parametrize(("sector", "what", "intent"), WORDS)
def test_words(sector: int, what: int, intent: SlotIntent) -> None:
    assert decode(sector, what) == intent
    assert intent.nr_sectors | intent.operation << OPERATION_SHIFT | intent.cond << COND_SHIFT == what
