from hypothesis import given, strategies as st

from zonefs_emu.scsi.result import GOOD, ScsiStatus, first_bytes, nothing_transferred, reply


@given(st.lists(st.binary(max_size=9), max_size=5), st.integers(0, 60))
def test_first_bytes(buffers: list[bytes], nr_bytes: int) -> None:
    assert b"".join(first_bytes(buffers, nr_bytes)) == b"".join(buffers)[:nr_bytes]


@given(st.binary(max_size=40), st.integers(0, 50), st.lists(st.integers(0, 20), max_size=4))
def test_reply_fills_buffers_in_order(data: bytes, allocation: int, sizes: list[int]) -> None:
    buffers = [bytearray(b"-" * size) for size in sizes]
    result = reply(data, allocation, [], buffers)
    moved = min(len(data), allocation, sum(sizes))
    assert result == (ScsiStatus.GOOD, b"", sum(sizes) - moved, False)
    assert b"".join(buffers) == data[:moved] + b"-" * (sum(sizes) - moved)


def test_nothing_transferred() -> None:
    assert nothing_transferred([], []) is GOOD
    assert nothing_transferred([b"12"], []).residual == 2
