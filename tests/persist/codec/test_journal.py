"""Records both ways, and which of them are whole."""

import hypothesis
from hypothesis import strategies as st

from tests.persist.codec.samples import SEED
from zonefs_emu.persist.codec.journal import (
    JOURNAL_ALIGN_BYTES,
    Record,
    decode_record,
    encode_record,
    find_records,
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


def test_whole_records_are_found_wherever_they_begin() -> None:
    records = [Record(epoch=epoch, seq=seq, entries=((seq, 1),)) for epoch, seq in ((4, 1), (4, 2), (3, 3))]
    encoded = [encode_record(record, SEED) for record in records]
    lost = bytes(512)
    journal = encoded[0] + lost + encoded[1] + encoded[2]
    assert list(find_records(journal, SEED)) == records
    assert list(find_records(journal, SEED, start=512)) == records[1:]
    assert list(find_records(journal, SEED, epoch=4)) == records[:2]
    assert list(find_records(journal, SEED, start=512, epoch=3)) == records[2:]
    # What only begins like a record, or ends like one, is none.
    assert list(find_records(lost + encoded[2][:40] + bytes(472) + encoded[2][512:] + encoded[1][:36], SEED)) == []
