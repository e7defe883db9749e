"""Reading and writing the descriptor extensions of zones: one record for each zone, in one copy.

A record is written before the zone's state refers to it, and not while a checkpoint may refer to its former content
(image.py sees to that). So a crash loses no record, and one copy is enough. A second copy would help against damage of
the medium only, against which the content of zones has no copy either.
"""

from zonefs_emu.persist.backing import Backing
from zonefs_emu.persist.codec.extension import decode_extension, encode_extension, extension_record_bytes
from zonefs_emu.persist.codec.header import Header, SectionKind


class ExtensionsSection:
    """Reads and writes the records of an image whose geometry has extensions."""

    def __init__(self, backing: Backing, header: Header) -> None:
        """Read nothing yet."""
        self._backing = backing
        self._seed = header.seed
        self._record_bytes = extension_record_bytes(header.geometry.extension_bytes)
        self._offset = header.section(SectionKind.EXTENSIONS).offset if header.geometry.extension_bytes else 0

    def offset(self, zone_no: int) -> int:
        """Return the byte of the file where the record of *zone_no* stands."""
        return self._offset + zone_no * self._record_bytes

    def load(self, zone_no: int) -> bytes | None:
        """Return the extension of *zone_no*, which has the attribute for it; None if the record is damaged.

        Raises:
            OSError: the host cannot read it.
        """
        return decode_extension(self.record(zone_no), zone_no, self._seed)

    def record(self, zone_no: int) -> bytes:
        """Return the record of *zone_no* as it is, with zeros beyond the end of a file that was cut.

        Raises:
            OSError: the host cannot read it.
        """
        return self._backing.pread(self._record_bytes, self.offset(zone_no)).ljust(self._record_bytes, b"\0")

    def save(self, zone_no: int, data: bytes) -> None:
        """Write *data*, as many bytes as the geometry says, as the extension of *zone_no*.

        Raises:
            OSError: the host refuses.
        """
        self._backing.pwrite(encode_extension(zone_no, data, self._seed), self.offset(zone_no))
