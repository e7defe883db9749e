"""Pre-shared keys for TLS: their text, the names that are bound to them, and the key that both sides give to TLS.

The user's key (``NVMeTLSkey-1:HH:BASE64:``, as ``nvme gen-tls-key`` prints it) becomes the *retained* key, which is
bound to the name of the host if HH is a hash, and that becomes the *PSK*, which is bound to a PSK identity. A host says
the identity at the beginning of a connection: ``NVMe0R01 HOST SUBSYSTEM``, or in version 1 ``NVMe1R01 HOST SUBSYSTEM
DIGEST``, where DIGEST is made of the retained key and both names.

libnvme before 1.16 derives keys in another way than the specification. An identity of version 1 tells by its digest
which way it is, so both are understood. One of version 0 does not, and is read as the specification says.

Only SHA-256 (R01) is used: Python's ssl module cannot bind a pre-shared key to SHA-384 (R02). Generated keys (G) come
from "secure channel concatenation", which is not there.

Source: NVMe over TCP Transport Specification 1.1, 3.6.1 ("TLS"); libnvme 1.13 and 1.16, src/nvme/linux.c; Linux,
drivers/nvme/common/auth.c.
"""

import base64
import hmac
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from zonefs_emu.errors import UsageError
from zonefs_emu.nvme_tcp.key_form import KeyForm

FORM: Final = KeyForm(name="NVMeTLSkey-1", lengths={0: {32, 48}, 1: {32}, 2: {48}}, tool="nvme gen-tls-key")
_HASH: Final = "sha256"
_HASH_BYTES: Final = 32
#: The identifier of the hash, in identities and in the text that a PSK of version 1 is bound to.
_HASH_NAME: Final = "01"
#: The longest context of HKDF-Expand-Label, and so the longest identity of version 0. OpenSSL takes 256 bytes.
_CONTEXT_BYTES_MAX: Final = 255
_DIGEST_CHARS: Final = 44
#: The most bytes that the names of a host and of a drive may have together: what an identity of version 1 leaves.
NAMES_BYTES_MAX: Final = _CONTEXT_BYTES_MAX - len("NVMe1R01   ") - _DIGEST_CHARS
_PURPOSE: Final = "NVMe-over-Fabrics"

#: HKDF-Expand-Label, of a key with a label and a context; the result is as long as the hash.
ExpandLabel = Callable[[bytes, str, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsKey:
    """A key of the user's. *hash_id*: 1 if it is bound to the name of its host by SHA-256, 0 if it is used as it is."""

    secret: bytes = field(repr=False)
    hash_id: int


class Identity(NamedTuple):
    """A PSK identity: the names that a host says, and of version 1 the *digest* of its key."""

    version: int
    host_nqn: str
    subsystem_nqn: str
    digest: str

    def __str__(self) -> str:
        text = f"NVMe{self.version}R{_HASH_NAME} {self.host_nqn} {self.subsystem_nqn}"
        return f"{text} {self.digest}" if self.version else text


class PskFinder:
    """Finds the PSK of one connection from what an unknown host says, and keeps what it has found."""

    def __init__(self, subsystem_nqns: Collection[str], key_of: Callable[[str], TlsKey | None]) -> None:
        """*subsystem_nqns*: the names that the drive has. *key_of*: returns the key of a host by its name."""
        self._subsystem_nqns = subsystem_nqns
        self._key_of = key_of
        #: What the host is, once the handshake has proved it.
        self.identity: Identity | None = None
        self._failure = ""

    def __call__(self, text: str) -> bytes:
        """Return the PSK of the identity *text*; nothing if there is none."""
        kind, *words = text.split(" ")
        version, nr_words = {"NVMe0R01": (0, 2), "NVMe1R01": (1, 3)}.get(kind, (0, 0))
        if not nr_words or len(words) != nr_words or len(text.encode()) > _CONTEXT_BYTES_MAX:
            self._failure = f"{text!r} is not a PSK identity of SHA-256"
            return b""
        identity = Identity(version, words[0], words[1], words[2] if version else "")
        key = self._key_of(identity.host_nqn)
        if identity.subsystem_nqn not in self._subsystem_nqns:
            self._failure = f"the host wants the drive {identity.subsystem_nqn!r}, which is not this one"
        elif key is None:
            self._failure = f"{identity.host_nqn!r} has no TLS key here; see --tls-key"
        elif psk := psk_of(key, identity):
            self.identity = identity
            return psk
        else:
            self._failure = _wrong_key(identity)
        return b""

    def failure(self, reason: str) -> str:
        """Return why the handshake has failed, as a part of a sentence. *reason*: what OpenSSL says."""
        if self.identity is not None:
            return _wrong_key(self.identity) if reason == "binder does not verify" else reason
        return self._failure or f"{reason}; the host offers no pre-shared key"


def _wrong_key(identity: Identity) -> str:
    return f"the TLS key of {identity.host_nqn!r} is not the one that was given for it"


def parse_tls_key(text: str) -> TlsKey:
    """Return the key in *text*.

    Raises:
        UsageError: it says none that can be used; says in one sentence what is wrong, without a part of the text.
    """
    hash_id, secret = FORM.parse(text)
    if len(secret) != _HASH_BYTES:
        message = (
            "the key is for SHA-384, with which Python's ssl module has no pre-shared keys: make one for SHA-256 with "
            "nvme gen-tls-key --hmac=1"
        )
        raise UsageError(message)
    return TlsKey(secret=secret, hash_id=hash_id)


def tls_key_text(key: TlsKey) -> str:
    """Return *key* as text, which is a secret."""
    return FORM.text(key.hash_id, key.secret)


def identity_of(key: TlsKey, host_nqn: str, subsystem_nqn: str, *, version: int = 1) -> Identity:
    """Return the identity by which *host_nqn* says that it has *key* for *subsystem_nqn*."""
    digest = _digest(_retained(key, host_nqn, expand_label), host_nqn, subsystem_nqn) if version else ""
    return Identity(version, host_nqn, subsystem_nqn, digest)


def psk_of(key: TlsKey, identity: Identity) -> bytes | None:
    """Return the PSK of *identity*; None if its digest is not of *key*."""
    if not identity.version:
        return expand_label(_retained(key, identity.host_nqn, expand_label), "nvme-tls-psk", str(identity))
    for expand in (expand_label, _expand_label_of_old_libnvme):
        retained = _retained(key, identity.host_nqn, expand)
        digest = _digest(retained, identity.host_nqn, identity.subsystem_nqn)
        if hmac.compare_digest(digest.encode(), identity.digest.encode()):
            return expand(retained, "nvme-tls-psk", f"{_HASH_NAME} {digest}")
    return None


def _retained(key: TlsKey, host_nqn: str, expand: ExpandLabel) -> bytes:
    return expand(key.secret, "HostNQN", host_nqn) if key.hash_id else key.secret


def _digest(retained: bytes, host_nqn: str, subsystem_nqn: str) -> str:
    return base64.b64encode(hmac.digest(retained, f"{host_nqn} {subsystem_nqn} {_PURPOSE}".encode(), _HASH)).decode()


def expand_label(key: bytes, label: str, context: str) -> bytes:
    """Return HKDF-Expand-Label of HKDF-Extract(0, *key*), of :data:`_HASH_BYTES` bytes. Source: RFC 8446, 7.1."""
    text, data = f"tls13 {label}".encode(), context.encode()
    return _expand(key, struct.pack(">HB", _HASH_BYTES, len(text)) + text + bytes((len(data),)) + data)


def _expand_label_of_old_libnvme(key: bytes, label: str, context: str) -> bytes:
    """Return what libnvme before 1.16 takes for HKDF-Expand-Label: the length is reversed, and texts have none."""
    return _expand(key, struct.pack("<H", _HASH_BYTES) + f"tls13 {label}{context}".encode())


def _expand(key: bytes, info: bytes) -> bytes:
    """Return HKDF of *key*, without a salt, in one block. Source: RFC 5869."""
    extracted = hmac.digest(bytes(_HASH_BYTES), key, _HASH)
    return hmac.digest(extracted, info + b"\1", _HASH)
