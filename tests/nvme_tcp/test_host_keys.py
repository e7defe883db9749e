"""The text of keys, and what binds a key to its owner."""

import base64
import zlib

import pytest
from hypothesis import given, strategies as st

from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access, DhchapKey, key_text, parse_key
from zonefs_emu.nvme_tcp.tls_keys import TlsKey

#: As nvme-cli 2.3 prints keys.
FROM_NVME_CLI = [
    ("DHHC-1:00:ZlUV9PlzniCVNuUSYWkbn4yzlKn5uQraT6tDaJn+0Cd8vw+S:", 0, 32),
    ("DHHC-1:01:x990cPxkXxl0fQjbqEaw0GPcPYC1C8CC0TANemi4qTpg9C8D:", 1, 32),
    ("DHHC-1:02:duUIQLGETb/j22mVWGwrGrb1QOmTH6a+Ji0ryRUDTesJ7N0KZmKFW9AYPXuOVMkJDHaolw==:", 2, 48),
    (
        "DHHC-1:03:cEfjMncnKIKPNI8yFvGr/S6Ywg0zAfvbR9b70o8H4r5w7QJiNn8yU/GqsblUeWYw2gyse9sKyghD6afIKxTC3GMGLHw=:",
        3,
        64,
    ),
]


@pytest.mark.parametrize(("text", "hash_id", "nr_bytes"), FROM_NVME_CLI)
def test_keys_of_nvme_cli(text: str, hash_id: int, nr_bytes: int) -> None:
    key = parse_key(f"{text}\n")
    assert (key.hash_id, len(key.secret)) == (hash_id, nr_bytes)
    assert key_text(key) == text
    assert key.secret.hex() not in repr(key)
    assert str(key.secret) not in repr(key)


def text_of(secret: bytes, kind: str = "00") -> str:
    return f"DHHC-1:{kind}:{base64.b64encode(secret + zlib.crc32(secret).to_bytes(4, 'little')).decode()}:"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "this is not a key"),
        ("geheim", "this is not a key"),
        (text_of(bytes(32))[:-1], "this is not a key"),
        (text_of(bytes(32)).replace("DHHC-1", "DHHC-2"), "this is not a key"),
        (text_of(bytes(32), "0x"), "this is not a key"),
        (text_of(bytes(32), "04"), "the key names hash 04"),
        ("DHHC-1:00:AAAAA:", "the key is not base64"),
        (text_of(bytes(31)), "the key has 31 bytes, but a key with hash 00 has 32 or 48 or 64"),
        (text_of(bytes(32), "02"), "the key has 32 bytes, but a key with hash 02 has 48"),
        ("DHHC-1:00:AA==:", "the key has 0 bytes"),
        (FROM_NVME_CLI[0][0].replace("ZlUV", "ZlUW"), "the checksum of the key is wrong"),
    ],
)
def test_what_is_no_key(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_key(text)
    assert str(caught.value).startswith(sentence)


@given(text=st.text(max_size=80) | st.from_regex(r"DHHC-1:0[0-3]:[A-Za-z0-9+/=]{0,90}:", fullmatch=True))
def test_any_text_is_a_key_or_is_refused(text: str) -> None:
    try:
        parse_key(text)
    except UsageError:
        return


def test_a_key_is_bound_to_its_owner() -> None:
    # The figures were checked with Linux, whose driver authenticates with the same keys (tests/guest).
    key = DhchapKey(secret=bytes(range(32)), hash_id=1)
    assert key.bound_to("nqn.a") != key.bound_to("nqn.b") != key.secret
    assert len(DhchapKey(secret=bytes(32), hash_id=3).bound_to("nqn.a")) == 64
    assert DhchapKey(secret=bytes(range(32)), hash_id=0).bound_to("nqn.a") == bytes(range(32))


def test_access() -> None:
    key = DhchapKey(secret=bytes(32), hash_id=0)
    assert OPEN.admits("nqn.any")
    assert OPEN.key_of("nqn.any") is None
    assert not OPEN.is_authenticated
    mixed = Access(hosts={"nqn.a": key, "nqn.b": None})
    assert [mixed.admits(host) for host in ("nqn.a", "nqn.b", "nqn.c")] == [True, True, False]
    assert (mixed.key_of("nqn.a"), mixed.key_of("nqn.b")) == (key, None)
    assert not mixed.is_authenticated
    assert Access(hosts={"nqn.a": key}).is_authenticated


def test_keys_for_tls() -> None:
    one, two = (TlsKey(secret=bytes([number]) * 32, hash_id=0) for number in range(2))
    assert not OPEN.needs_tls
    assert OPEN.tls_key_of("nqn.a") is None
    access = Access(hosts={"nqn.a": None}, tls_keys={"nqn.a": one})
    assert access.needs_tls
    assert access.is_authenticated
    assert (access.tls_key_of("nqn.a"), access.tls_key_of("nqn.b")) == (one, None)
    for_all = Access(tls_keys={"nqn.a": one, "": two})
    assert (for_all.tls_key_of("nqn.a"), for_all.tls_key_of("nqn.b")) == (one, two)
    assert for_all.names_of_one_key() == []
    shared = Access(tls_keys={"nqn.a": one, "nqn.b": one, "": two, "nqn.c": two})
    assert shared.names_of_one_key() == [["nqn.a", "nqn.b"], ["all other hosts", "nqn.c"]]


def test_who_has_the_key_of_another_one() -> None:
    one, two, three = (DhchapKey(secret=bytes([number]) * 32, hash_id=0) for number in range(3))
    bound = DhchapKey(secret=one.secret, hash_id=1)
    assert OPEN.names_of_one_key() == []
    assert Access(hosts={"nqn.a": one, "nqn.b": two, "nqn.c": None, "nqn.d": None}).names_of_one_key() == []
    assert Access(hosts={"nqn.a": one}, controller_key=two).names_of_one_key() == []
    shared = Access(hosts={"nqn.a": one, "nqn.b": two, "nqn.c": bound, "nqn.d": three}, controller_key=two)
    assert shared.names_of_one_key() == [["nqn.a", "nqn.c"], ["nqn.b", "the drive"]]
