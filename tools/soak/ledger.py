"""The expected content of a zone: every block names its zone, the life of that zone, and its place."""

from dataclasses import dataclass
from typing import Final

BLOCK_BYTES: Final = 4096
BLOCK_SECTORS: Final = BLOCK_BYTES // 512


def block(zone_no: int, life: int, index: int) -> bytes:
    """Return the only content that block *index* of a zone may have in that *life* (lives are ended by resets)."""
    return b"".join(n.to_bytes(8, "little") for n in (zone_no, life, index, zone_no ^ life ^ index)) * (
        BLOCK_BYTES // 32
    )


class LostError(AssertionError):
    """Acknowledged data is missing, or a zone holds data that was never written."""


@dataclass(slots=True)
class Ledger:
    """One zone as its only writer knows it, in blocks: *acknowledged*, and *trying* more in the request under way."""

    zone_no: int
    life: int = 0
    acknowledged: int = 0
    trying: int = 0
    resetting: bool = False

    def data(self, first: int, count: int) -> bytes:
        """Return what blocks *first* to *first* + *count* hold."""
        return b"".join(block(self.zone_no, self.life, index) for index in range(first, first + count))

    def was_reset(self) -> None:
        """Begin the next life."""
        self.life += 1
        self.acknowledged = self.trying = 0
        self.resetting = False

    def reconcile(self, written_sectors: int) -> None:
        """Learn how far a request came that was refused or never answered.

        Raises:
            LostError: acknowledged blocks are missing, or there are more than were ever asked for.
        """
        if self.resetting and not written_sectors:
            self.was_reset()
            return
        low, high = self.acknowledged * BLOCK_SECTORS, (self.acknowledged + self.trying) * BLOCK_SECTORS
        if not low <= written_sectors <= high or written_sectors % BLOCK_SECTORS:
            message = f"zone {self.zone_no}: {written_sectors} sectors are written, where {low} to {high} must be"
            raise LostError(message)
        self.acknowledged = written_sectors // BLOCK_SECTORS
        self.trying = 0
        self.resetting = False

    def compare(self, first: int, count: int, found: bytes) -> None:
        """Compare what was read of the *count* blocks from *first* on.

        Raises:
            LostError: they differ; names the first that does.
        """
        for index in range(first, first + count):
            at = (index - first) * BLOCK_BYTES
            if found[at : at + BLOCK_BYTES] != block(self.zone_no, self.life, index):
                start = found[at : at + 32].hex(" ", 8) or "nothing"
                message = f"zone {self.zone_no}, life {self.life}: block {index} begins with {start}"
                raise LostError(message)
