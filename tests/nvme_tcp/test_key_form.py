"""The text of keys of any kind, there and back."""

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp.key_form import KeyForm

FORM = KeyForm(name="Key-1", lengths={0: {4, 6}, 1: {4}, 9: {6}}, tool="the tool")


@given(secret=st.binary(min_size=4, max_size=4), hash_id=st.sampled_from([0, 1]))
def test_there_and_back(secret: bytes, hash_id: int) -> None:
    assert FORM.parse(f" {FORM.text(hash_id, secret)}\n") == (hash_id, secret)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Key-2:00:AAAA:",
            "this is not a key: a key is Key-1:00:BASE64: with a colon at its end, as the tool prints it",
        ),
        ("Key-1:02:AAAA:", "the key names hash 02, which is not known: there are 00 (none), 01 and 09"),
        ("Key-1:00:AAAAA:", "the key is not base64: a part of it may be missing"),
        (FORM.text(0, b"12345"), "the key has 5 bytes, but a key with hash 00 has 4 or 6"),
        (FORM.text(9, b"1234"), "the key has 4 bytes, but a key with hash 09 has 6"),
        ("Key-1:00:AAAAAAAAAAA=:", "the checksum of the key is wrong: it was damaged or mistyped"),
    ],
)
def test_what_is_no_key(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        FORM.parse(text)
    assert str(caught.value) == sentence
