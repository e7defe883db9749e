"""Loads on disks: a virtual machine's drivers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.soak.daemon import ANSWER_SECONDS, ZONE, ZONE_BLOCKS, Daemon
from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS, Ledger
from tools.soak.loads import PluggedLoad
from zonefs_emu.errors import PeerError
from zonefs_emu.scsi.commands import READ_CAPACITY_16, REPORT_SUPPORTED_OPERATION_CODES, Opcode
from zonefs_emu.scsi.sense import SenseKey
from zonefs_emu.testing import scsi_driver
from zonefs_emu.testing.blk_driver import BlkDriver
from zonefs_emu.testing.scsi_driver import FIRST_REQUEST_QUEUE, Reply, ScsiDriver
from zonefs_emu.testing.vhost_frontend import Frontend, FrontendQueue
from zonefs_emu.virtio import blk_codec


class DiskLoad(PluggedLoad):
    """A disk at the vhost-user socket *path*, as a virtual machine's driver."""

    #: The queue for requests; those before it are started with it.
    queue_no = 0

    def __init__(self, daemon: Daemon, name: str, seed: int, ledgers: Sequence[Ledger], path: Path) -> None:
        super().__init__(daemon, name, seed, ledgers)
        self._path = path
        self._frontend: Frontend | None = None

    def plug(self) -> None:
        """Plug the disk in, with a split or packed ring."""
        frontend = Frontend(self._path, packed=self.rng.random() < 0.5, nr_queues=self.queue_no + 1)
        frontend.timeout_seconds = ANSWER_SECONDS
        try:
            frontend.start()
        except BaseException:
            frontend.close()
            raise
        self._frontend = frontend
        self.use(frontend.queues[self.queue_no])

    def unplug(self) -> None:
        """Close the socket."""
        if self._frontend is not None:
            self._frontend.close()

    def use(self, queue: FrontendQueue) -> None:
        """Send requests to *queue* from now on."""
        raise NotImplementedError


class BlkLoad(DiskLoad):
    """The vhost-user-blk disk."""

    def use(self, queue: FrontendQueue) -> None:
        """Be a virtio-blk driver."""
        self._driver = BlkDriver(queue)

    @staticmethod
    def _is_done(status: int) -> bool:
        """Say whether it was done; all that faults make of a request is an I/O error."""
        assert status in (blk_codec.S_OK, blk_codec.S_IOERR), f"the vhost-user-blk disk answers {status}"
        return status == blk_codec.S_OK

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Read."""
        status, data = self._driver.read(zone.zone_no * ZONE + first * BLOCK_SECTORS, count * BLOCK_BYTES)
        return data if self._is_done(status) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write or append."""
        start, end = zone.zone_no * ZONE, zone.zone_no * ZONE + zone.acknowledged * BLOCK_SECTORS
        if self.rng.random() < 0.5:
            return self._is_done(self._driver.write(end, data))
        status, where = self._driver.append(start, data)
        done = self._is_done(status)
        assert not done or where == end, "an append went astray"
        return done

    def reset(self, zone: Ledger) -> bool:
        """Reset."""
        return self._is_done(self._driver.manage(blk_codec.T_ZONE_RESET, zone.zone_no * ZONE))

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Flush."""
        return self._is_done(self._driver.flush())

    def written_sectors(self, zone: Ledger) -> int:
        """Report."""
        status, zones = self._driver.report(zone.zone_no * ZONE, 1)
        if status:
            self.lost(PeerError("a report was refused"))
        return zones[0].wp - zones[0].start

    def look(self) -> None:
        """Ask for the identity of the disk, for many zones, and for pages that it does not have."""
        driver, rng = self._driver, self.rng
        start = rng.choice(self.ledgers).zone_no * ZONE
        match rng.randrange(5):
            case 0:
                driver.identity()
            case 1:
                status, _ = driver.report(0, rng.choice((1, 30, 200)))
                self._note(done=self._is_done(status))
            case 2:
                assert self._frontend is not None
                self._frontend.config()
            case 3:  # nothing to close in an empty zone, or it is done
                assert driver.manage(blk_codec.T_ZONE_CLOSE, start) in (
                    blk_codec.S_OK, blk_codec.S_IOERR, blk_codec.S_ZONE_INVALID_CMD
                )  # fmt: skip
            case _:
                assert driver.manage(rng.choice((99, 2)), start) in (blk_codec.S_UNSUPP, blk_codec.S_IOERR)


_DONE_OR_FAILED: Final = frozenset((SenseKey.NO_SENSE, SenseKey.MEDIUM_ERROR, SenseKey.HARDWARE_ERROR))


class ScsiLoad(DiskLoad):
    """The vhost-user-scsi disk."""

    queue_no = FIRST_REQUEST_QUEUE

    def use(self, queue: FrontendQueue) -> None:
        """Be an initiator."""
        self._driver = ScsiDriver(queue, BLOCK_BYTES)

    @staticmethod
    def _is_done(reply: Reply) -> bool:
        """Say whether it was done; all that faults make of a command is a medium error."""
        key = reply.sense[0] if reply.sense is not None else SenseKey.NO_SENSE
        assert key in _DONE_OR_FAILED, f"the vhost-user-scsi disk answers {reply.sense}"
        return key == SenseKey.NO_SENSE

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Do READ(16)."""
        reply = self._driver.read(zone.zone_no * ZONE_BLOCKS + first, count)
        return reply.data if self._is_done(reply) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Do WRITE(16)."""
        return self._is_done(self._driver.write(zone.zone_no * ZONE_BLOCKS + zone.acknowledged, data))

    def reset(self, zone: Ledger) -> bool:
        """Do RESET WRITE POINTER."""
        return self._is_done(self._driver.manage(scsi_driver.RESET, zone.zone_no * ZONE_BLOCKS))

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a disk is flushed whole)
        """Do SYNCHRONIZE CACHE(16)."""
        return self._is_done(self._driver.flush())

    def written_sectors(self, zone: Ledger) -> int:
        """Do REPORT ZONES."""
        (found,) = self._driver.report(zone.zone_no * ZONE_BLOCKS, 1)
        return (found.wp - found.start) * BLOCK_SECTORS

    def look(self) -> None:
        """Ask what Linux and its tools ask a disk, and for what it has not."""
        first = self.rng.choice(self.ledgers).zone_no * ZONE_BLOCKS
        cdb = self.rng.choice(
            (
                bytes(6),  # TEST UNIT READY
                bytes((Opcode.INQUIRY, 0, 0, 0, 96, 0)),
                *(bytes((Opcode.INQUIRY, 1, page, 0, 255, 0)) for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB6, 0x77)),
                bytes((Opcode.MODE_SENSE_6, 0, 0x3F, 0, 192, 0)),
                bytes((Opcode.READ_CAPACITY_10, *bytes(9))),
                bytes((Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, *bytes(11), 32, 0, 0)),
                bytes((Opcode.REPORT_LUNS, *bytes(8), 64, 0, 0)),
                bytes((Opcode.MAINTENANCE_IN, REPORT_SUPPORTED_OPERATION_CODES, *bytes(6), 4, 0, 0, 0)),
                bytes((Opcode.VERIFY_10, 0)) + first.to_bytes(4, "big") + bytes((0, 0, 1, 0)),
                b"\xff" + bytes(15),
            )
        )
        reply = self._driver.command(cdb, room=1024)
        refused = reply.sense is not None and reply.sense[0] == SenseKey.ILLEGAL_REQUEST
        self._note(done=refused or self._is_done(reply))
