"""Words: the condition and the data extent of a zone in one number, in the table, the journal and the live table.

In an image whose zones can have attributes, the word has these as well.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from zonefs_emu.errors import CorruptImageError
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, Attribute, Condition

#: Every live word is a multiple of this prime. A change of a single byte (at most 255 · 2^8k) is no multiple of it, so
#: it is detected.
LIVE_PRIME: Final = 65521
COND_BITS: Final = 4
#: The place of the attributes: the upper half of byte 5.
ATTRIBUTES_SHIFT: Final = 44
_ATTRIBUTES_BYTE: Final = 5
_ATTRIBUTES_OF_BYTE: Final = bytes(byte >> 4 for byte in range(256))
_REST_OF_BYTE: Final = bytes(byte & 15 for byte in range(256))
_WP_MASK: Final = (1 << ATTRIBUTES_SHIFT - COND_BITS) - 1
_COND_MASK: Final = (1 << COND_BITS) - 1
_COND_OF_BYTE: Final = bytes(byte & _COND_MASK for byte in range(256))
_CONVENTIONAL_CONDS: Final = frozenset((Condition.NOT_WP, Condition.READONLY, Condition.OFFLINE))
_WRITTEN_CONDS: Final = frozenset((Condition.FULL, Condition.READONLY, Condition.OFFLINE))
_WITHOUT_ATTRIBUTES: Final = frozenset((Condition.NOT_WP, Condition.EMPTY))
_ACTIVE_CONDS: Final = frozenset(map(int, ACTIVE_CONDITIONS))
_PART_CONDS: Final = frozenset((Condition.IMP_OPEN, Condition.EXP_OPEN, Condition.CLOSED))


class ZoneStates(NamedTuple):
    """The states of all zones, one entry a zone in each array: condition, sectors with data, attributes."""

    conds: bytearray
    wps: "array[int]"
    attributes: bytearray

    @classmethod
    def blank(cls, nr_zones: int) -> Self:
        """Return arrays for *nr_zones* zones, to be filled.

        Their memory has been written to, so that the host need not provide it during :meth:`fill`, under a lock.
        """
        return cls(bytearray(nr_zones), array("Q", bytes(8 * nr_zones)), bytearray(nr_zones))

    def fill(self, others: "ZoneStates") -> None:
        """Take over the states of *others*, which has as many zones."""
        self.conds[:], self.wps[:], self.attributes[:] = others

    def copy(self) -> "ZoneStates":
        """Return the same states in arrays of their own."""
        return ZoneStates(self.conds[:], self.wps[:], self.attributes[:])


def pack_word(cond: int, nr_written: int, attributes: int = 0) -> int:
    """Return the 48-bit word of a zone: its attributes above its sectors with data above its condition."""
    return attributes << ATTRIBUTES_SHIFT | nr_written << COND_BITS | cond


def unpack_word(word: int) -> tuple[int, int]:
    """Return (condition number, sectors with data) of *word*."""
    return word & _COND_MASK, word >> COND_BITS


def pack_words(conds: bytes | bytearray, wps: "array[int]", attributes: bytes | bytearray = b"") -> bytes:
    """Return the words of all zones, 8 bytes each; fast, by arithmetic on one large number.

    Without *attributes*, no zone has any.
    """
    lanes = bytearray(8 * len(conds))
    lanes[0::8] = conds
    total = (int.from_bytes(wps.tobytes(), "little") << COND_BITS) + int.from_bytes(lanes, "little")
    if attributes.strip(b"\0"):
        lanes[0::8] = bytes(len(conds))
        lanes[_ATTRIBUTES_BYTE::8] = attributes
        total += int.from_bytes(lanes, "little") << 4
    return total.to_bytes(len(lanes), "little")


def unpack_words(words: bytes) -> tuple[bytearray, "array[int]"]:
    """Return (conditions, sectors with data) of all zones from their *words*, 8 bytes each."""
    conds = bytearray(words[0::8].translate(_COND_OF_BYTE))
    lanes = bytearray(len(words))
    lanes[0::8] = conds
    total = (int.from_bytes(words, "little") - int.from_bytes(lanes, "little")) >> COND_BITS
    wps = array("Q")
    wps.frombytes(total.to_bytes(len(words), "little"))
    return conds, wps


def unpack_states(geometry: Geometry, words: bytes) -> ZoneStates:
    """Return the states of all zones of *geometry* from their *words*, 8 bytes each."""
    attributes = bytearray(len(words) // 8)
    if geometry.has_attributes:
        packed = words[_ATTRIBUTES_BYTE::8]
        attributes = bytearray(packed.translate(_ATTRIBUTES_OF_BYTE))
        if attributes.strip(b"\0"):
            without = bytearray(words)
            without[_ATTRIBUTES_BYTE::8] = packed.translate(_REST_OF_BYTE)
            words = bytes(without)
    return ZoneStates(*unpack_words(words), attributes)


def unpack_state(geometry: Geometry, word: int) -> tuple[int, int, int]:
    """Return (condition number, sectors with data, attributes) of *word* in an image of *geometry*."""
    cond, nr_written = unpack_word(word)
    if geometry.has_attributes:
        return cond, nr_written & _WP_MASK, word >> ATTRIBUTES_SHIFT
    return cond, nr_written, 0


def encode_live(words: bytes) -> bytes:
    """Return the live table for *words*: every word times LIVE_PRIME. No lane overflows: 48 + 16 bits."""
    return (int.from_bytes(words, "little") * LIVE_PRIME).to_bytes(len(words), "little")


def decode_live(live: bytes, *, offset: int) -> bytes:
    """Return the words of the *live* table, which is at byte *offset* of the file.

    Raises:
        CorruptImageError: a word is not a multiple of LIVE_PRIME; names the zone.
    """
    total, rest = divmod(int.from_bytes(live, "little"), LIVE_PRIME)
    words = total.to_bytes(len(live), "little")
    # If a word is no multiple, its remainder goes into the quotient of its lower neighbour, whose upper 16 bits are
    # then not zero. The lowest word has no such neighbour: its remainder is that of the whole number.
    if rest or words[6::8].strip(b"\0") or words[7::8].strip(b"\0"):
        for zone_no, (value,) in enumerate(struct.iter_unpack("<Q", live)):
            if value % LIVE_PRIME:
                raise CorruptImageError(
                    f"live table, zone {zone_no}",
                    offset=offset + 8 * zone_no,
                    found=f"{value:#018x}",
                    expected=f"a multiple of {LIVE_PRIME}",
                )
    return words


def check_words(
    geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray | None = None, *, what: str,
    offset: int,
) -> None:  # fmt: skip
    """Check that every zone's condition, extent and attributes are possible in *geometry*.

    Raises:
        CorruptImageError: names the first impossible zone; *what* and *offset* name the table for the message.
    """
    for zone_no, expected in impossible_zones(geometry, conds, wps, attributes):
        found = f"condition {conds[zone_no]} with {wps[zone_no]} sectors of data"
        if attributes and attributes[zone_no]:
            found += f" and attributes {attributes[zone_no]:#x}"
        raise CorruptImageError(f"{what}, zone {zone_no}", offset=offset, found=found, expected=expected)


def impossible_zones(
    geometry: Geometry, conds: bytearray, wps: "array[int]", attributes: bytearray | None = None
) -> Iterator[tuple[int, str]]:
    """Yield (zone_no, a description of the possible states) for each zone whose state is impossible."""
    if attributes and attributes.strip(b"\0"):
        unknown = ~geometry.possible_attributes
        for zone_no, bits in enumerate(attributes):
            cond = conds[zone_no]
            if bits and (bits & unknown or not _may_have(cond, bits)):
                yield zone_no, "attributes that its condition allows"
    last = geometry.nr_zones - 1
    capacity = geometry.zone_capacity
    start = 0
    for first, count in (*geometry.conventional, (geometry.nr_zones, 0)):
        # Empty zones are skipped first, because most zones may be empty.
        for zone_no in range(start, first):
            cond, nr_written = conds[zone_no], wps[zone_no]
            if cond == 1 and not nr_written:
                continue
            cap = capacity if zone_no != last else geometry.zone_cap(zone_no)
            if not _possible(cond, nr_written, cap):
                yield zone_no, f"a condition of a sequential zone that fits 0 to {cap} sectors of data"
        for zone_no in range(first, first + count):
            if conds[zone_no] not in _CONVENTIONAL_CONDS or wps[zone_no]:
                yield zone_no, "a condition of a conventional zone, and no write pointer"
        start = first + count


def _may_have(cond: int, bits: int) -> bool:
    """Say whether a zone in condition *cond* may have the attributes *bits*."""
    if cond in _WITHOUT_ATTRIBUTES:
        return False
    excluded = Attribute.FINISHED_BY_CONTROLLER if cond in _ACTIVE_CONDS else Attribute.ZRWA
    return not bits & excluded


def _possible(cond: int, nr_written: int, capacity: int) -> bool:
    if cond in _WRITTEN_CONDS:
        return nr_written <= capacity
    return cond in _PART_CONDS and nr_written < capacity
