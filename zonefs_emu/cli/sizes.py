"""Sizes as people write them: 64M, 1GiB, 4096, 8s.

Pure. A letter is a power of 1024, as in QEMU, blkzone and mkfs tools; "MB" and its like are refused because half of
the field means 10^6 by it. ``s`` counts 512-byte sectors.
"""

import re
from decimal import Decimal
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.units import SECTOR_BYTES

_SHAPE: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)")
_UNITS: Final = {"": 1, "B": 1, "S": SECTOR_BYTES}
_LETTERS: Final = "KMGTPE"
_SIZE_BYTES_MAX: Final = 1 << 63
#: The longest number. Arithmetic with a million digits, which a file may have, would take minutes.
_CHARACTERS_MAX: Final = 200
_HELP: Final = "write bytes (4096), a power of 1024 (64M or 64MiB, likewise K, G, T, P) or sectors (8s)"


def parse_size(text: str) -> int:
    """Return the size *text* in bytes.

    Raises:
        UsageError: *text* is no size; the sentence says how sizes are written.
    """
    shape = _SHAPE.fullmatch(text.strip())
    if shape is None:
        message = f"'{text}' is not a size: {_HELP}"
        raise UsageError(message)
    if len(text) > _CHARACTERS_MAX:
        message = f"a number of {len(text)} characters is too large: sizes end at 8 EiB"
        raise UsageError(message)
    number, suffix = shape.groups()
    value = Decimal(int(number, 16)) if number[:2] in {"0x", "0X"} else Decimal(number)
    size = value * _multiplier(text, suffix)
    if size != int(size):
        message = f"'{text}' is {size.normalize():f} bytes, which is not a whole number of bytes"
        raise UsageError(message)
    if size >= _SIZE_BYTES_MAX:
        message = f"'{text}' is too large: sizes end at 8 EiB"
        raise UsageError(message)
    return int(size)


def _multiplier(text: str, suffix: str) -> int:
    upper = suffix.upper()
    if upper in _UNITS:
        return _UNITS[upper]
    letter, rest = upper[0], upper[1:]
    if letter in _LETTERS and rest in {"", "IB"}:
        return 1 << 10 * (_LETTERS.index(letter) + 1)
    if letter in _LETTERS and rest == "B":
        message = f"'{text}' could mean powers of 1000 or of 1024: write {letter}iB for 1024"
        raise UsageError(message)
    message = f"'{text}' has the unknown unit '{suffix}': {_HELP}"
    raise UsageError(message)
