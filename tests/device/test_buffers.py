from itertools import combinations_with_replacement, pairwise

from hypothesis import given, strategies as st

from zonefs_emu.device.buffers import Cursor, carve, gather, scatter, total_bytes


def cut(data: bytes, cuts: list[int]) -> list[memoryview]:
    borders = [0, *sorted(cuts), len(data)]
    view = memoryview(bytearray(data))
    return [view[start:end] for start, end in pairwise(borders)]


@given(
    data=st.binary(min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    start=st.integers(0, 45),
    length=st.integers(0, 45),
    kind=st.sampled_from((bytes, bytearray, memoryview)),
)
def test_buffers_are_one_run_however_they_are_cut(
    data: bytes, cuts: list[int], start: int, length: int, kind: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    buffers = cut(data, [at for at in cuts if at <= len(data)])
    assert gather(buffers, start, length) == data[start : start + length]
    assert b"".join(carve(buffers, start, start + length)) == data[start : start + length]
    assert total_bytes(buffers) == len(data)
    patch = bytes(range(1, 1 + min(length, max(len(data) - start, 0))))
    scatter(buffers, start, kind(patch))
    assert b"".join(buffers) == data[:start] + patch + data[start + len(patch) :]


@given(
    pieces=st.lists(st.binary(max_size=12), max_size=6),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    spare=st.integers(0, 5),
)
def test_pieces_are_stored_one_behind_the_other(pieces: list[bytes], cuts: list[int], spare: int) -> None:
    whole = b"".join(pieces)
    size = len(whole) + spare
    buffers = cut(bytes(size), [at for at in cuts if at <= size])
    cursor = Cursor(buffers)
    for piece in pieces:
        cursor.store(piece)
    assert b"".join(buffers) == whole + bytes(spare)
    assert cursor.nr_stored == len(whole)


def test_every_piece_of_every_cut() -> None:
    data = b"abcde"
    for cuts in combinations_with_replacement(range(6), 2):
        buffers = cut(data, list(cuts))
        for start in range(7):
            for end in range(start, 8):
                parts = carve(buffers, start, end)
                assert b"".join(parts) == data[start:end], (cuts, start, end)
                assert all(parts), "none is empty"
