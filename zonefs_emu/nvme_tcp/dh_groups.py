"""The groups of Diffie-Hellman that NVMe uses, and values in them.

The primes are computed by the formula of RFC 7919 from the digits of e, so that no typing error can hide in thousands
of digits. An exponent is used once, and powers are computed by GMP's function for secrets, whose time does not depend
on the exponent. Two alternatives were rejected: ``cryptography``, which will remove these groups, and Python's ``pow``,
whose time depends on the exponent.

Source: RFC 7919, Appendix A; NVM Express Base Specification 2.1, "DH group identifiers".
"""

import functools
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import gmpy2

#: The group without values.
NULL: Final = 0
#: Bits of the prime, the number that RFC 7919 adds to the digits of e, and bits of an exponent. An exponent has twice
#: the strength of its group, and the 256 bits at least that the Base Specification demands of each.
_GROUPS: Final[Mapping[int, tuple[int, int, int]]] = MappingProxyType(
    {
        1: (2048, 560316, 256),
        2: (3072, 2625351, 275),
        3: (4096, 5736041, 325),
        4: (6144, 15705020, 375),
        5: (8192, 10965728, 400),
    }
)
GROUPS: Final = frozenset((NULL, *_GROUPS))
_GENERATOR: Final = 2


class KeyPair(NamedTuple):
    """A secret exponent of the group *group_id*, and the public value as messages carry it."""

    group_id: int
    exponent: int
    value: bytes


def value_bytes(group_id: int) -> int:
    """Return the length of the values of a group; 0 for the group without values."""
    return _GROUPS[group_id][0] // 8 if group_id else 0


@functools.cache
def prime(group_id: int) -> int:
    """Return the prime of a group: 2^b - 2^(b-64) + (floor(2^(b-130) e) + X) 2^64 - 1."""
    bits, offset, _ = _GROUPS[group_id]
    guard_bits = 64
    term = digits = 1 << (bits - 130 + guard_bits)
    divisor = 0
    while term:
        divisor += 1
        term //= divisor
        digits += term
    return (1 << bits) - (1 << (bits - 64)) + (((digits >> guard_bits) + offset) << 64) - 1


def new_pair(group_id: int) -> KeyPair:
    """Return a new secret and its public value; both empty for the group without values."""
    if group_id == NULL:
        return KeyPair(group_id, 0, b"")
    bits = _GROUPS[group_id][2]
    exponent = secrets.randbits(bits) | 1 << (bits - 1)
    return KeyPair(group_id, exponent, _power(_GENERATOR, exponent, group_id))


def shared_secret(pair: KeyPair, other: bytes) -> bytes | None:
    """Return the secret that *pair* and the public value *other* have in common; None if *other* is no such value.

    The values 0, 1 and p - 1 would give a secret that is public.
    """
    if len(other) != value_bytes(pair.group_id):
        return None
    if pair.group_id == NULL:
        return b""
    value = int.from_bytes(other, "big")
    if not 1 < value < prime(pair.group_id) - 1:
        return None
    return _power(value, pair.exponent, pair.group_id)


def _power(base: int, exponent: int, group_id: int) -> bytes:
    return int(gmpy2.powmod_sec(base, exponent, prime(group_id))).to_bytes(value_bytes(group_id), "big")
