"""Which hosts may connect, and the keys with which a host and the drive prove their names to each other.

A key has the text form of ``nvme gen-dhchap-key`` and of the kernel: ``DHHC-1:HH:BASE64:``. HH is the hash that binds
the key to the name of its owner, or 00 for a key that is used as it is.

Source: NVM Express Base Specification 2.1, 8.3.4.5.7 and 8.3.4.5.8 ("DH-HMAC-CHAP Security Requirements"); the checks
are those of the kernel's own reader.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from zonefs_emu.nvme_tcp.key_form import KeyForm
from zonefs_emu.nvme_tcp.tls_keys import TlsKey

#: The hashes that a key and an exchange may use, by their identifiers in messages and in the text of a key.
HASHES: Final[Mapping[int, str]] = MappingProxyType({1: "sha256", 2: "sha384", 3: "sha512"})
#: A key without a hash may have any length that a hash has.
FORM: Final = KeyForm(name="DHHC-1", lengths={0: {32, 48, 64}, 1: {32}, 2: {48}, 3: {64}}, tool="nvme gen-dhchap-key")
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

    *controller_key*: the key with which the drive proves its name to a host that asks for proof. *tls_keys*: the keys
    for TLS by the names of hosts; that of the name "" is for all hosts without a key of their own. Empty: no TLS.
    """

    hosts: Mapping[str, DhchapKey | None] = field(default_factory=dict)
    controller_key: DhchapKey | None = None
    tls_keys: Mapping[str, TlsKey] = field(default_factory=dict)

    @property
    def is_authenticated(self) -> bool:
        """Whether no host connects without a key, of DH-HMAC-CHAP or of TLS."""
        return self.needs_tls or (bool(self.hosts) and all(key is not None for key in self.hosts.values()))

    @property
    def needs_tls(self) -> bool:
        """Whether every connection must be a TLS connection."""
        return bool(self.tls_keys)

    def tls_key_of(self, host_nqn: str) -> TlsKey | None:
        """Return the key with which *host_nqn* makes a TLS connection; None if it cannot."""
        return self.tls_keys.get(host_nqn) or self.tls_keys.get("")

    def admits(self, host_nqn: str) -> bool:
        """Whether *host_nqn* may connect; it may have to prove its name after that."""
        return not self.hosts or host_nqn in self.hosts

    def key_of(self, host_nqn: str) -> DhchapKey | None:
        """Return the key with which *host_nqn* proves its name; None if it need not."""
        return self.hosts.get(host_nqn)

    def names_of_one_key(self) -> list[list[str]]:
        """Return who shares a key with whom: names of hosts, and "the drive". Each of them can pose as the others.

        Hosts that share the TLS key for all hosts are not among them: that is what such a key is.
        """
        names: dict[bytes, list[str]] = {}
        for name, key in (*self.hosts.items(), ("the drive", self.controller_key)):
            if key is not None:
                # Keys are compared by their secret alone, because a host that has it can bind it to any name.
                names.setdefault(key.secret, []).append(name)
        tls_names: dict[bytes, list[str]] = {}
        for name, tls_key in self.tls_keys.items():
            tls_names.setdefault(tls_key.secret, []).append(name or "all other hosts")
        return [found for found in (*names.values(), *tls_names.values()) if len(found) > 1]


#: Every host may connect, without a key.
OPEN: Final = Access()


def parse_key(text: str) -> DhchapKey:
    """Return the key in *text*.

    Raises:
        UsageError: it says none; says in one sentence what is wrong, without a part of the text.
    """
    hash_id, secret = FORM.parse(text)
    return DhchapKey(secret=secret, hash_id=hash_id)


def key_text(key: DhchapKey) -> str:
    """Return *key* as text, which is a secret."""
    return FORM.text(key.hash_id, key.secret)
