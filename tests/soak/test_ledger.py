"""The ledger of the soak: what it takes for lost."""

import pytest

from tools.soak.ledger import BLOCK_BYTES, Ledger, LostError, block


def test_a_block_says_where_and_when_it_was_written() -> None:
    assert len(block(1, 2, 3)) == BLOCK_BYTES
    assert len({block(1, 2, 3), block(2, 2, 3), block(1, 3, 3), block(1, 2, 4), bytes(BLOCK_BYTES)}) == 5


@pytest.mark.parametrize("written", [80, 88, 96])
def test_what_was_under_way_may_be_there_in_part(written: int) -> None:
    ledger = Ledger(7, life=1, acknowledged=10, trying=2)
    ledger.reconcile(written)
    assert (ledger.acknowledged, ledger.trying) == (written // 8, 0)


@pytest.mark.parametrize("written", [0, 72, 79, 84, 104])
def test_less_or_more_than_was_asked_for_is_an_error(written: int) -> None:
    with pytest.raises(LostError, match="zone 7"):
        Ledger(7, life=1, acknowledged=10, trying=2).reconcile(written)


def test_a_reset_under_way_is_done_or_not() -> None:
    ledger = Ledger(7, life=1, acknowledged=10, resetting=True)
    ledger.reconcile(80)
    assert (ledger.life, ledger.acknowledged, ledger.resetting) == (1, 10, False)
    ledger.resetting = True
    ledger.reconcile(0)
    assert (ledger.life, ledger.acknowledged, ledger.resetting) == (2, 0, False)


def test_other_content_is_found() -> None:
    ledger = Ledger(7, life=2, acknowledged=3)
    ledger.compare(0, 3, ledger.data(0, 3))
    ledger.compare(1, 1, ledger.data(1, 1))
    with pytest.raises(LostError, match=r"life 2: block 1 "):
        ledger.compare(0, 3, block(7, 2, 0) + block(7, 1, 1) + block(7, 2, 2))
    with pytest.raises(LostError, match="block 2 begins with nothing"):
        ledger.compare(0, 3, ledger.data(0, 2))
