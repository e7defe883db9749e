"""Keys for TLS against what libnvme and Linux derive, and what unknown hosts say."""

import base64
import subprocess

import pytest
from hypothesis import given, strategies as st

from tests.requires import requires
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp import tls_keys
from zonefs_emu.nvme_tcp.tls_keys import (
    NAMES_BYTES_MAX,
    Identity,
    PskFinder,
    TlsKey,
    identity_of,
    parse_tls_key,
    psk_of,
    tls_key_text,
)

#: libnvme 1.16, test/psk.c: the text of a key, and the digests of it, also as libnvme made them before 1.16.
FROM_LIBNVME = "NVMeTLSkey-1:01:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwNf9LrZ:"
UNHASHED_FROM_LIBNVME = FROM_LIBNVME.replace(":01:", ":00:")
SHA384_FROM_LIBNVME = "NVMeTLSkey-1:02:VRLbtnN9AQb2WXW3c9+wEf/DRLz0QuLdbYvEhwtdWwP/w0S89ELi3W2LxIcLXVsDn8kXZQ==:"
NAMES = "nqn.psk-test-host", "nqn.psk-test-subsys"
DIGEST = "iSbjiStwJ/1TrTvDlt2fjFmzvsytOJelidNnA+X5lEU="
OLD_DIGEST = "66GuqV08TsAGII39teWUfwQwizjv06Jy8jOcX3NAAzM="


def test_a_key_of_libnvme() -> None:
    key = parse_tls_key(f"{FROM_LIBNVME}\n")
    assert key.secret.hex() == "5512dbb6737d0106f65975b773dfb011ffc344bcf442e2dd6d8bc4870b5d5b03"
    assert tls_key_text(key) == FROM_LIBNVME
    assert key.secret.hex() not in repr(key)
    assert str(key.secret) not in repr(key)
    assert parse_tls_key(UNHASHED_FROM_LIBNVME) == TlsKey(secret=key.secret, hash_id=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SHA384_FROM_LIBNVME, "the key is for SHA-384"),
        (SHA384_FROM_LIBNVME.replace(":02:", ":00:"), "the key is for SHA-384"),
        (SHA384_FROM_LIBNVME.replace(":02:", ":01:"), "the key has 48 bytes, but a key with hash 01 has 32"),
        (FROM_LIBNVME.replace(":01:", ":03:"), "the key names hash 03"),
        (FROM_LIBNVME.replace("VRLb", "VRLc"), "the checksum of the key is wrong"),
        (
            "DHHC-1:00:AAAA:",
            "this is not a key: a key is NVMeTLSkey-1:00:BASE64: with a colon at its end, as nvme gen-tls",
        ),
    ],
)
def test_what_is_no_key_that_can_be_used(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tls_key(text)
    assert str(caught.value).startswith(sentence)


def test_the_identity_is_that_of_libnvme() -> None:
    key = parse_tls_key(FROM_LIBNVME)
    assert str(identity_of(key, *NAMES)) == f"NVMe1R01 {NAMES[0]} {NAMES[1]} {DIGEST}"
    assert str(identity_of(key, *NAMES, version=0)) == f"NVMe0R01 {NAMES[0]} {NAMES[1]}"


def test_the_psk_is_that_of_linux() -> None:
    """Linux 7.0, drivers/nvme/common/tests/auth_kunit.c: digest and PSK of a key that is used as it is."""
    key = TlsKey(secret=bytes.fromhex("1733c59fa7f48fcf37f5f26fc4ff0268ad4f78e030f4f3b0bfd1d47e7bb1447a"), hash_id=0)
    identity = identity_of(key, "hostnqn", "subsysnqn")
    assert identity.digest == "OldoKuTfKddMuyCznAZojkWD7P4D9/AtzDzLimtOxqI="
    psk = psk_of(key, identity)
    assert psk is not None
    assert psk.hex() == "3c17da628474a04d2247c4cab47968c915388193f7c071bd9489cc3666cd7cc8"


def openssl_hkdf(key: bytes, info: bytes) -> bytes:
    """Return what OpenSSL's own HKDF makes of *key* and *info*."""
    options = ("digest:SHA2-256", f"hexkey:{key.hex()}", f"hexinfo:{info.hex()}")
    words = ["openssl", "kdf", "-keylen", "32", "-binary", *(w for each in options for w in ("-kdfopt", each)), "HKDF"]
    return subprocess.run(words, capture_output=True, check=True).stdout


def test_openssl_derives_the_same() -> None:
    """From the bytes that the specification, and the source of libnvme 1.13, put together."""
    requires("openssl")
    secret = parse_tls_key(FROM_LIBNVME).secret
    host = NAMES[0].encode()
    retained = openssl_hkdf(secret, b"\0\x20\x0dtls13 HostNQN" + bytes([len(host)]) + host)
    said = f"NVMe0R01 {NAMES[0]} {NAMES[1]}".encode()
    psk = openssl_hkdf(retained, b"\0\x20\x12tls13 nvme-tls-psk" + bytes([len(said)]) + said)
    key = parse_tls_key(FROM_LIBNVME)
    assert psk_of(key, identity_of(key, *NAMES, version=0)) == psk
    retained = openssl_hkdf(secret, b"\x20\0tls13 HostNQN" + host)
    old = openssl_hkdf(retained, b"\x20\0tls13 nvme-tls-psk01 " + OLD_DIGEST.encode())
    assert psk_of(key, Identity(1, *NAMES, OLD_DIGEST)) == old


def test_the_way_of_old_libnvme_is_known_by_its_digest() -> None:
    key = parse_tls_key(FROM_LIBNVME)
    new, old = (psk_of(key, Identity(1, *NAMES, digest)) for digest in (DIGEST, OLD_DIGEST))
    assert new
    assert old
    assert new != old
    assert psk_of(key, Identity(1, *NAMES, DIGEST.replace("i", "j"))) is None


def test_each_name_and_each_version_has_a_psk_of_its_own() -> None:
    found = set()
    for secret, hash_id in ((bytes(32), 0), (bytes(32), 1), (b"\1" * 32, 1)):
        key = TlsKey(secret=secret, hash_id=hash_id)
        for host, subsystem, version in (("a", "s", 1), ("b", "s", 1), ("a", "t", 1), ("a", "s", 0)):
            found.add(psk_of(key, identity_of(key, host, subsystem, version=version)))
    assert len(found) == 12
    assert {len(psk or b"") for psk in found} == {32}


KEYS = {"nqn.a": TlsKey(secret=bytes(32), hash_id=1), "nqn.b": TlsKey(secret=b"\1" * 32, hash_id=1)}


def finder() -> PskFinder:
    return PskFinder({"nqn.drive"}, KEYS.get)


@pytest.mark.parametrize("version", [0, 1])
def test_what_a_host_says_is_found_and_kept(version: int) -> None:
    identity = identity_of(KEYS["nqn.a"], "nqn.a", "nqn.drive", version=version)
    found = finder()
    assert found(str(identity)) == psk_of(KEYS["nqn.a"], identity)
    assert found.identity == identity
    assert found.failure("binder does not verify") == "the TLS key of 'nqn.a' is not the one that was given for it"
    assert found.failure("unexpected message") == "unexpected message"


LONG = f"nqn.{'x' * 250}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is not a PSK identity"),
        ("Client_identity", "'Client_identity' is not a PSK identity"),
        ("NVMe0R02 nqn.a nqn.drive", "'NVMe0R02 nqn.a nqn.drive' is not a PSK identity of SHA-256"),
        ("NVMe0G01 nqn.a nqn.drive", "is not a PSK identity"),
        ("NVMe0R01 nqn.a", "is not a PSK identity"),
        ("NVMe0R01 nqn.a nqn.drive more", "is not a PSK identity"),
        ("NVMe1R01 nqn.a nqn.drive", "is not a PSK identity"),
        (f"NVMe0R01 {LONG} nqn.drive", "is not a PSK identity"),
        ("NVMe0R01 nqn.a nqn.other", "the host wants the drive 'nqn.other', which is not this one"),
        ("NVMe0R01 nqn.c nqn.drive", "'nqn.c' has no TLS key here; see --tls-key"),
        ("NVMe0R01 nqn.\n nqn.drive", r"'nqn.\n' has no TLS key here"),
        (f"NVMe1R01 nqn.a nqn.drive {DIGEST}", "the TLS key of 'nqn.a' is not the one that was given for it"),
    ],
)
def test_what_has_no_key(text: str, why: str) -> None:
    found = finder()
    assert found(text) == b""
    assert found.identity is None
    assert why in found.failure("no suitable signature algorithm")


def test_a_host_that_offers_no_key() -> None:
    assert finder().failure("no shared cipher") == "no shared cipher; the host offers no pre-shared key"


SAID = st.tuples(
    st.sampled_from(["NVMe0R01", "NVMe1R01"]), st.sampled_from(["nqn.a", "nqn.c"]), st.just("nqn.drive"),
    st.sampled_from([DIGEST, ""]),
)  # fmt: skip


@given(text=st.text(max_size=60) | SAID.map(lambda words: " ".join(words).rstrip()))
def test_any_text_is_answered(text: str) -> None:
    found = finder()
    psk = found(text)
    assert bool(psk) == (found.identity is not None)
    assert len(psk) in {0, 32}


def test_names_of_the_greatest_length_fit() -> None:
    names = "nqn.h".ljust(NAMES_BYTES_MAX - 9, "x"), "nqn.drive"
    key = KEYS["nqn.a"]
    assert len(str(identity_of(key, *names))) == 255
    for version in (0, 1):
        assert PskFinder({"nqn.drive"}, lambda _: key)(str(identity_of(key, *names, version=version)))


def test_the_digest_is_base64_of_a_hash() -> None:
    assert len(base64.b64decode(identity_of(KEYS["nqn.a"], *NAMES).digest)) == 32
    assert tls_keys.FORM.name == "NVMeTLSkey-1"
