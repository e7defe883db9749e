"""The text of keys: ``NAME:HH:BASE64:``. HH is a hash; BASE64 holds the key and its CRC-32.

Keys for DH-HMAC-CHAP and keys for TLS have this form, each with a name and hashes of its own. Messages about a wrong
text have no part of it, because it may be a secret with a typing error.
"""

import base64
import binascii
import re
import zlib
from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from zonefs_emu.errors import UsageError

_CRC_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyForm:
    """The form of one kind of keys. *lengths*: of a key in bytes, by its hash; hash 0 stands for none.

    *tool*: the command that prints such keys.
    """

    name: str
    lengths: Mapping[int, AbstractSet[int]]
    tool: str

    def parse(self, text: str) -> tuple[int, bytes]:
        """Return the hash and the secret in *text*.

        Raises:
            UsageError: it is not of this form; says in one sentence what is wrong.
        """
        found = re.fullmatch(rf"{self.name}:([0-9A-Fa-f]{{2}}):([0-9A-Za-z+/]+=*):", text.strip())
        if found is None:
            message = (
                f"this is not a key: a key is {self.name}:00:BASE64: with a colon at its end, as {self.tool} prints it"
            )
            raise UsageError(message)
        hash_id = int(found[1], 16)
        allowed = self.lengths.get(hash_id)
        if allowed is None:
            *known, last = (f"{number:02X}" for number in sorted(self.lengths) if number)
            names = ", ".join(["00 (none)", *known])
            message = f"the key names hash {hash_id:02X}, which is not known: there are {names} and {last}"
            raise UsageError(message)
        try:
            decoded = base64.b64decode(found[2], validate=True)
        except binascii.Error:
            message = "the key is not base64: a part of it may be missing"
            raise UsageError(message) from None
        secret, checksum = decoded[:-_CRC_BYTES], decoded[-_CRC_BYTES:]
        if len(secret) not in allowed:
            lengths = " or ".join(map(str, sorted(allowed)))
            message = f"the key has {len(secret)} bytes, but a key with hash {hash_id:02X} has {lengths}"
            raise UsageError(message)
        if zlib.crc32(secret).to_bytes(_CRC_BYTES, "little") != checksum:
            message = "the checksum of the key is wrong: it was damaged or mistyped"
            raise UsageError(message)
        return hash_id, secret

    def text(self, hash_id: int, secret: bytes) -> str:
        """Return a key as text, which is a secret."""
        encoded = base64.b64encode(secret + zlib.crc32(secret).to_bytes(_CRC_BYTES, "little"))
        return f"{self.name}:{hash_id:02x}:{encoded.decode()}:"
