"""Records both ways, and which of them are whole."""

import hypothesis
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED
from zonefs_emu.persist.codec.journal import (
    JOURNAL_ALIGN_BYTES,
    Record,
    decode_record,
    encode_record,
    find_later,
    record_bytes,
)

entries = st.lists(st.tuples(st.integers(0, 2**24), st.integers(0, 2**48 - 1)), max_size=70).map(tuple)


@hypothesis.given(part=entries, epoch=st.integers(0, 2**64 - 1), seq=st.integers(0, 2**64 - 1))
def test_records_round_trip(part: tuple[tuple[int, int], ...], epoch: int, seq: int) -> None:
    record = Record(epoch=epoch, seq=seq, entries=part)
    encoded = encode_record(record, SEED)
    assert len(encoded) == record_bytes(len(part))
    assert len(encoded) % JOURNAL_ALIGN_BYTES == 0
    assert decode_record(bytes(512) + encoded, 512, SEED) == record


def test_every_flipped_byte_of_a_record_is_seen_and_no_length_is_believed() -> None:
    record = bytearray(encode_record(Record(epoch=1, seq=1, entries=((5, 99), (6, 1))), SEED))
    for at in range(len(record)):
        record[at] ^= 0x20
        assert decode_record(bytes(record), 0, SEED) is None
        record[at] ^= 0x20
    for length in range(len(record)):
        assert decode_record(bytes(record[:length]), 0, SEED) is None
    assert decode_record(bytes(record), 0, SEED) is not None


def test_a_later_record_is_found_wherever_it_begins() -> None:
    records = [encode_record(Record(epoch=4, seq=seq, entries=((seq, 1),)), SEED) for seq in (1, 2, 3)]
    lost = bytes(512)
    hole = records[0] + lost + records[2]
    found = find_later([records[0] + lost + lost, hole], 512, 4, 2, SEED)
    assert found == Record(epoch=4, seq=3, entries=((3, 1),))
    # Earlier ones and those of another epoch are none, nor is what only begins like a record.
    assert find_later([hole], 512, 4, 4, SEED) is None
    assert find_later([hole], 512, 5, 1, SEED) is None
    assert find_later([lost + records[2][:40] + bytes(472)], 0, 4, 1, SEED) is None
