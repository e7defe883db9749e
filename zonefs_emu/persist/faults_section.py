"""The fault section in its two copies: a save survives the death of the process, and a durable one a power cut too.

May not know: the meaning of the text, and the consequences of a failing host (image.py knows).
"""

from zonefs_emu.persist.backing import Backing, checked_sync
from zonefs_emu.persist.codec.faults import encode_faults, faults_version
from zonefs_emu.persist.codec.header import Header, SectionKind
from zonefs_emu.persist.metadata import read_copies
from zonefs_emu.persist.recovery import choose_faults


class FaultsSection:
    """A text of the layer above; the newer of the good copies counts. One caller at a time."""

    def __init__(self, backing: Backing, header: Header) -> None:
        """Read what was saved last.

        Raises:
            CorruptImageError: both copies are damaged.
        """
        self._backing = backing
        self._header = header
        self._offsets = [header.section(SectionKind.FAULTS, copy).offset for copy in (0, 1)]
        self.load()

    def load(self) -> bytes:
        """Return the text that was saved last; b"" if there is none.

        Raises:
            CorruptImageError: both copies are damaged.
        """
        copies = read_copies(self._backing, self._header, SectionKind.FAULTS)
        self._generation, data, newest = choose_faults(copies, self._header.seed, offsets=self._offsets)
        #: The version of the text: as read, or as the layer above sets it before a save.
        self.version = faults_version(copies[newest]) if self._generation else 0
        # The copy to overwrite first. The other one may be the only good one.
        self._first = 1 - newest
        return data

    def save(self, data: bytes, *, durably: bool) -> None:
        """Write *data* to both copies with a sync after each; or, if not *durably*, to one copy without a sync.

        Raises:
            UsageError: *data* does not fit. OSError: the host refuses.
        """
        block = encode_faults(data, self._generation + 1, self._header.seed, version=self.version)
        if not durably:
            # The copy that counted before stays valid even if this write is torn.
            self._backing.pwrite(block, self._offsets[self._first])
            return
        self._generation += 1
        first = self._first
        for copy in (first, 1 - first):
            self._backing.pwrite(block, self._offsets[copy])
            # A failed sync is reported only once, and data may have been lost.
            checked_sync(self._backing)
            # This copy is good, and the other one may be torn from here on.
            self._first = 1 - copy
