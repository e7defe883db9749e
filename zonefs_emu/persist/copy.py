"""Copying an image: the zone states of one instant, and the data that they cover. Holes stay holes.

A copy is an image like any other, stopped in order, with the UUID and label of its origin. The origin may be in use:
the states are copied at one instant, and from then on every write calls :meth:`Copy.save` before it changes bytes.

May not know: which process holds the origin.
"""

import threading
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from zonefs_emu.model.zone import Attribute
from zonefs_emu.persist.backing import Backing, FileBacking
from zonefs_emu.persist.codec.header import Header
from zonefs_emu.persist.codec.words import ZoneStates, pack_words
from zonefs_emu.persist.extensions_section import ExtensionsSection
from zonefs_emu.persist.metadata import initialize
from zonefs_emu.units import Sector, to_bytes

#: The most bytes that are copied at once, while a write may wait.
_CHUNK_BYTES: Final = 1 << 20
#: 1 for the attributes of a zone with a descriptor extension.
_EXTENSION_MARKS: Final = bytes(bool(bits & Attribute.EXTENSION) for bits in range(256))
#: How many bytes are copied between two reports of progress.
_REPORT_BYTES: Final = 64 << 20


class Copy:
    """A copy in progress: :meth:`begin`, :meth:`run` to its end, :meth:`seal`; or :meth:`abandon`.

    A copy that becomes the source of further copies is not sealed: it has :meth:`content` after the run, and it is
    abandoned in the end.

    Only :meth:`save` and :meth:`save_zones` may be called by other threads. A chunk is at most 1 MiB of one zone,
    identified by its first byte.

    Invariant: a chunk is copied before it changes. The chunks below *_passed* and those in *_ahead* are copied.
    """

    def __init__(self, source: Backing, header: Header, target: Path) -> None:
        """Create the file *target*, which becomes an image when it is sealed, with at most the permissions of *source*.

        Raises:
            FileExistsError: *target* exists. OSError: the host has no room; nothing is left behind.
        """
        self._source = source
        self._header = header
        self._target = target
        self._states = ZoneStates(bytearray(), array("Q"), bytearray())
        self._covering: tuple[ZoneStates, ...] = ()
        self._extensions: dict[int, bytes] = {}
        self._zone_bytes = to_bytes(header.geometry.zone_size)
        self._copying = threading.Lock()
        self._passed = 0
        self._ahead: set[int] = set()
        self._failure: Exception | None = None
        self._backing = FileBacking.create(
            target, header.file_bytes, header.reserved, permissions=source.permissions | 0o600
        )

    def begin(self, states: ZoneStates, *others: ZoneStates) -> None:
        """Note the *states* of all zones and copy the descriptor extensions. From now on changes must be saved.

        The copy has the data and extensions that *states* or one of the *others* cover.

        Raises:
            OSError: the host cannot read an extension.
        """
        self._states = states
        self._covering = (states, *others)
        if self._header.geometry.extension_bytes:
            section = ExtensionsSection(self._source, self._header)
            self._extensions = {
                section.offset(zone_no): section.record(zone_no)
                for covering in self._covering
                for zone_no in _with_extension(covering.attributes)
            }

    def run(self) -> Iterator[int]:
        """Copy all data; yield the progress periodically, in bytes of the device.

        Raises:
            OSError: the host refuses or has no room. Exception: an error of :meth:`save`.
        """
        reported = 0
        for offset, length in self._source.extents(0, to_bytes(self._header.geometry.size)):
            for chunk, end in self._chunks(offset, offset + length):
                with self._copying:
                    if self._failure is not None:
                        raise self._failure
                    if chunk in self._ahead:
                        self._ahead.discard(chunk)
                    elif chunk >= self._passed:
                        self._copy(chunk, end)
                    self._passed = chunk + 1
                if chunk - reported >= _REPORT_BYTES:
                    reported = chunk
                    yield chunk

    def save(self, start: int, end: int) -> None:
        """Copy the bytes from *start* to *end* of the device, which are about to change.

        Never raises: an error fails the copy, and not the command that is about to write.
        """
        try:
            for chunk, chunk_end in self._chunks(start, end):
                with self._copying:
                    if chunk >= self._passed and chunk not in self._ahead and self._failure is None:
                        self._copy(chunk, chunk_end)
                        self._ahead.add(chunk)
        except Exception as error:  # a boundary: run() and seal() raise the error in the thread that makes the copy
            self.fail(error)

    def save_zones(self, zone_numbers: Sequence[int]) -> None:
        """Do what :meth:`save` does for whole zones, whose bytes are about to be freed."""
        for zone_no in zone_numbers:
            self.save(zone_no * self._zone_bytes, (zone_no + 1) * self._zone_bytes)

    def fail(self, error: Exception) -> None:
        """Make :meth:`run` and :meth:`seal` raise *error*."""
        self._failure = error

    def content(self) -> Backing:
        """Return the target after the run: data and descriptor extensions where an image has them, and no states.

        Raises:
            OSError: the host refuses or has no room. Exception: an error of :meth:`save`.
        """
        if self._failure is not None:
            raise self._failure
        for offset, record in self._extensions.items():
            self._backing.pwrite(record, offset)
        return self._backing

    def seal(self) -> None:
        """Make the target a durable image.

        Raises:
            OSError: the host refuses or has no room. Exception: an error of :meth:`save`.
        """
        try:
            initialize(self.content(), self._header, pack_words(*self._states))
            self._backing.sync_name()
        except OSError as error:
            raise self._named(error) from None
        self._backing.close()

    def abandon(self) -> None:
        """Remove the target."""
        self._backing.close()
        self._target.unlink(missing_ok=True)

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (first byte, end) of the chunks that have covered bytes between *start* and *end*, ascending."""
        for zone_no in range(start // self._zone_bytes, -(-end // self._zone_bytes)):
            zone = zone_no * self._zone_bytes
            covered = zone + to_bytes(self._nr_covered(zone_no))
            if start >= covered:
                continue
            first = zone + max(start - zone, 0) // _CHUNK_BYTES * _CHUNK_BYTES
            for chunk in range(first, min(covered, end), _CHUNK_BYTES):
                yield chunk, min(chunk + _CHUNK_BYTES, covered)

    def _nr_covered(self, zone_no: int) -> Sector:
        geometry = self._header.geometry
        if geometry.is_conventional(zone_no):
            return geometry.zone_len(zone_no)
        return max(geometry.covered(zone_no, wps[zone_no], bits[zone_no]) for _, wps, bits in self._covering)

    def _copy(self, start: int, end: int) -> None:
        try:
            for offset, length in self._source.extents(start, end):
                # Bytes that a source lacks because it was cut meanwhile read as zeros in the target.
                self._backing.copy_from(self._source, offset, length)
        except OSError as error:
            raise self._named(error) from None

    def _named(self, error: OSError) -> OSError:
        # The host reports "No space left" without a file name.
        error.filename = error.filename or str(self._target)
        return error


def _with_extension(attributes: bytearray) -> Iterator[int]:
    """Yield the zones that have a descriptor extension; a loop over a million zones would hold the lock for long."""
    marks = attributes.translate(_EXTENSION_MARKS)
    zone_no = marks.find(1)
    while zone_no >= 0:
        yield zone_no
        zone_no = marks.find(1, zone_no + 1)


def copy_image(
    source: Backing,
    header: Header,
    target: Path,
    states: ZoneStates,
    changes: Iterable[tuple[Sector, bytes]] = (),
) -> Generator[int]:
    """Create the image *target* with the zone *states* and the data of *source*, which does not change.

    The target has the data of *changes* from the sector of each on instead.

    Yields the progress periodically, in bytes of the device. A generator that is closed early leaves no file.

    Raises:
        FileExistsError: *target* exists.
        OSError: the host refuses or has no room; nothing is left behind.
    """
    copy = Copy(source, header, target)
    try:
        copy.begin(states)
        yield from copy.run()
        content = copy.content()
        for sector, data in changes:
            content.pwrite(data, to_bytes(sector))
        copy.seal()
    except BaseException:
        copy.abandon()
        raise
