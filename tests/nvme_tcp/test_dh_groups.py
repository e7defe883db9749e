"""The groups, compared with what is known of them, and secrets in common."""

import hashlib

import gmpy2
import pytest

from zonefs_emu.nvme_tcp.dh_groups import GROUPS, NULL, new_pair, prime, shared_secret, value_bytes

WITH_VALUES = sorted(GROUPS - {NULL})


@pytest.mark.parametrize(("group_id", "bits"), [(1, 2048), (2, 3072), (3, 4096), (4, 6144), (5, 8192)])
def test_primes_are_safe_and_have_their_length(group_id: int, bits: int) -> None:
    found = prime(group_id)
    assert found.bit_length() == bits == 8 * value_bytes(group_id)
    assert found >> (bits - 64) == found & (1 << 64) - 1 == (1 << 64) - 1
    # As RFC 7919 prints all of them, for they begin with the same digits of e.
    assert f"{found:X}"[16:64] == "ADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695"
    if bits <= 4096:  # the others take seconds
        assert gmpy2.is_prime(found)
        assert gmpy2.is_prime(found >> 1)
    assert pow(2, found - 1, found) == 1


def test_the_groups_do_not_change() -> None:
    """All primes were found to be safe once; this notices another one."""
    digits = b"".join(prime(group_id).to_bytes(value_bytes(group_id), "big") for group_id in WITH_VALUES)
    assert hashlib.sha256(digits).hexdigest() == "1952000147a7e6e151cc70c28d99f85cf6d5d4a7228022009f722efd73eec609"


@pytest.mark.parametrize("group_id", WITH_VALUES)
def test_two_sides_have_one_secret(group_id: int) -> None:
    one, two = new_pair(group_id), new_pair(group_id)
    assert one.exponent.bit_length() >= 256, "as the standard demands of each group"
    assert one.value != two.value
    secret = shared_secret(one, two.value)
    assert secret == shared_secret(two, one.value)
    assert secret is not None
    assert len(secret) == len(one.value) == value_bytes(group_id)


@pytest.mark.parametrize("group_id", WITH_VALUES)
def test_values_that_give_a_known_secret_are_none(group_id: int) -> None:
    pair, length = new_pair(group_id), value_bytes(group_id)
    for value in (0, 1, prime(group_id) - 1, prime(group_id), (1 << 8 * length) - 1):
        assert shared_secret(pair, value.to_bytes(length, "big")) is None
    assert shared_secret(pair, pair.value[:-1]) is None
    assert shared_secret(pair, b"\0" + pair.value) is None
    assert shared_secret(pair, b"") is None


def test_the_group_without_values() -> None:
    pair = new_pair(NULL)
    assert pair.value == b""
    assert shared_secret(pair, b"") == b""
    assert shared_secret(pair, b"\2") is None
