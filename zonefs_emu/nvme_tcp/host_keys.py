"""Which hosts may connect, and the keys with which a host and the drive prove their names to each other.

A key has the text form of ``nvme gen-dhchap-key`` and of the kernel: ``DHHC-1:HH:BASE64:``. HH is the hash that binds
the key to the name of its owner, or 00 for a key that is used as it is; BASE64 holds the key and its CRC-32.

Source: NVM Express Base Specification 2.1, 8.3.4.5.7 and 8.3.4.5.8 ("DH-HMAC-CHAP Security Requirements"); the checks
are those of the kernel's own reader.
"""

import base64
import binascii
import hmac
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError

#: The hashes that a key and an exchange may use, by their identifiers in messages and in the text of a key.
HASHES: Final[Mapping[int, str]] = MappingProxyType({1: "sha256", 2: "sha384", 3: "sha512"})
KEY_BYTES: Final = frozenset((32, 48, 64))
#: The length that the text demands of a key, by its hash. A key without a hash may have any of :data:`KEY_BYTES`.
_BYTES_OF_HASH: Final[Mapping[int, int]] = MappingProxyType({1: 32, 2: 48, 3: 64})
_CRC_BYTES: Final = 4
_TEXT: Final = re.compile(r"DHHC-1:([0-9A-Fa-f]{2}):([0-9A-Za-z+/]+=*):")
#: A key is bound to the name of its owner and to this text.
_PURPOSE: Final = b"NVMe-over-Fabrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class DhchapKey:
    """A key. *hash_id*: one of :data:`HASHES`, or 0 if the key is used as it is. Its text shows no secret."""

    secret: bytes = field(repr=False)
    hash_id: int

    def bound_to(self, nqn: str) -> bytes:
        """Return the key as its owner *nqn* uses it."""
        if not self.hash_id:
            return self.secret
        return hmac.digest(self.secret, nqn.encode() + _PURPOSE, HASHES[self.hash_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The access rules. *hosts*: the names of hosts, each with its key or None; empty: every host, without a key.

    *controller_key*: the key with which the drive proves its name to a host that asks for proof.
    """

    hosts: Mapping[str, DhchapKey | None] = field(default_factory=dict)
    controller_key: DhchapKey | None = None

    @property
    def is_authenticated(self) -> bool:
        """Whether no host connects without a key."""
        return bool(self.hosts) and all(key is not None for key in self.hosts.values())

    def admits(self, host_nqn: str) -> bool:
        """Whether *host_nqn* may connect; it may have to prove its name after that."""
        return not self.hosts or host_nqn in self.hosts

    def key_of(self, host_nqn: str) -> DhchapKey | None:
        """Return the key with which *host_nqn* proves its name; None if it need not."""
        return self.hosts.get(host_nqn)

    def names_of_one_key(self) -> list[list[str]]:
        """Return who shares a key with whom: names of hosts, and "the drive". Each of them can pose as the others."""
        names: dict[bytes, list[str]] = {}
        for name, key in (*self.hosts.items(), ("the drive", self.controller_key)):
            if key is not None:
                # Keys are compared by their secret alone, because a host that has it can bind it to any name.
                names.setdefault(key.secret, []).append(name)
        return [found for found in names.values() if len(found) > 1]


#: Every host may connect, without a key.
OPEN: Final = Access()


def parse_key(text: str) -> DhchapKey:
    """Return the key in *text*. Messages have no part of it, because it may be a secret with a typing error.

    Raises:
        UsageError: it says none; says in one sentence what is wrong.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        message = (
            "this is not a key: a key is DHHC-1:00:BASE64: with a colon at its end, as nvme gen-dhchap-key prints it"
        )
        raise UsageError(message)
    hash_id = int(found[1], 16)
    if hash_id and hash_id not in HASHES:
        message = f"the key names hash {hash_id:02X}, which is not known: there are 00 (none), 01, 02 and 03"
        raise UsageError(message)
    try:
        decoded = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        message = "the key is not base64: a part of it may be missing"
        raise UsageError(message) from None
    secret, checksum = decoded[:-_CRC_BYTES], decoded[-_CRC_BYTES:]
    allowed = {_BYTES_OF_HASH[hash_id]} if hash_id else KEY_BYTES
    if len(secret) not in allowed:
        lengths = " or ".join(map(str, sorted(allowed)))
        message = f"the key has {len(secret)} bytes, but a key with hash {hash_id:02X} has {lengths}"
        raise UsageError(message)
    if zlib.crc32(secret).to_bytes(_CRC_BYTES, "little") != checksum:
        message = "the checksum of the key is wrong: it was damaged or mistyped"
        raise UsageError(message)
    return DhchapKey(secret=secret, hash_id=hash_id)


def key_text(key: DhchapKey) -> str:
    """Return *key* as text, which is a secret."""
    encoded = base64.b64encode(key.secret + zlib.crc32(key.secret).to_bytes(_CRC_BYTES, "little"))
    return f"DHHC-1:{key.hash_id:02x}:{encoded.decode()}:"
