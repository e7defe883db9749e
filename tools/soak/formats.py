"""Every file format, damaged at random: each reader answers with one sentence, or with something that works."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault, FaultTable
from zonefs_emu.device.oplog import record, replay
from zonefs_emu.errors import Status, ZonedError
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.fs import superblock
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.persist.check import Severity, check_image
from zonefs_emu.persist.repair import repair_image
from zonefs_emu.vhost_user import state_transfer

GEOMETRY: Final = Geometry(size=8 * 64, zone_size=64, zone_capacity=48, conventional=((0, 1),), max_open_zones=3)
_TOKENS: Final = (b"null", b"-1", b"1e99", b"[]", b"{}", b'""', b"true", b"9" * 30, b"\xff", b"\n", b"")


class Formats:
    """Damages files and has them read. *directory* is for them; what failed stays there."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._rng = random.Random(f"formats {seed}")
        self._path = directory / "damaged.img"
        original = directory / "whole.img"
        ZonedDevice.create(original, GEOMETRY, uuid=uuid4())
        device = ZonedDevice.open(original)
        log = io.StringIO()
        record(device, log)
        port = device.port("soak", VIRTIO)
        for zone_no in range(1, 7):
            port.append(64 * zone_no, zone_no, [bytes(512 * zone_no)])
        port.read(64, 48, [bytearray(48 * 512)])
        port.manage(Operation.FINISH, 128)
        port.manage(Operation.RESET, 192, 2)
        port.manage_all(Operation.CLOSE)
        port.flush()
        self._faults = FaultTable(
            [
                Fault(effect=Effect.FAIL, operations=frozenset((Operation.WRITE,)), nth=4),
                Fault(effect=Effect.DELAY, operations=frozenset((Operation.READ,)), delay_max_ns=1000, seed=3),
            ]
        ).encode()
        self._state = state_transfer.encode(device)
        device.close()
        self._image = original.read_bytes()
        self._super_block = superblock.encode(
            superblock.SuperBlock(uuid=uuid4(), features=superblock.Feature.UID | superblock.Feature.PERM, uid=7)
        )
        self._log = log.getvalue().encode()
        self.counts: dict[str, int] = {}

    def step(self) -> None:
        """Damage one file and have it read.

        Raises:
            Exception: one of its reader that is no ZonedError with a sentence, which would be an answer.
        """
        kinds: tuple[tuple[str, Callable[[], None]], ...] = (
            ("images", self._read_image),
            ("repairs", self._repair_image),
            ("operation logs", self._replay_log),
            ("fault tables", self._decode_faults),
            ("super blocks", self._decode_super_block),
            ("device states", self._load_state),
        )
        name, read = self._rng.choice(kinds)
        try:
            read()
        except ZonedError as error:
            if not str(error):
                raise
        self.counts[name] = self.counts.get(name, 0) + 1

    def _damage_image(self) -> None:
        rng = self._rng
        data = bytearray(self._image)
        start = GEOMETRY.size * 512
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice((0, 1, 1, 2, 20))):
            if len(data) > start:
                at = rng.randrange(start, len(data))
                length = rng.choice((1, 1, 8, 512))
                data[at : at + length] = rng.randbytes(len(data[at : at + length]))
        self._path.write_bytes(data)

    def _read_image(self) -> None:
        self._damage_image()
        check_image(self._path)
        device = ZonedDevice.open(self._path)
        port = device.port("soak", VIRTIO)
        for zone in port.report(0, GEOMETRY.nr_zones):
            port.append(zone.start, 1, [bytes(512)])
        port.flush()
        device.statistics()
        for refusal in device.refusals.last(10):
            assert EXPLAINER.explain_all(refusal, device.geometry)
        device.close()

    def _repair_image(self) -> None:
        """Repair an image; if that is possible the image opens, with the data it had."""
        self._damage_image()
        data = self._path.read_bytes()[: GEOMETRY.size * 512]
        repair = repair_image(self._path)
        if repair.backup is not None:
            repair.backup.unlink()
        errors = [finding for finding in check_image(self._path) if finding.severity is not Severity.INFO]
        assert not errors, errors
        assert self._path.read_bytes()[: GEOMETRY.size * 512] == data
        ZonedDevice.open(self._path).close()

    def _replay_log(self) -> None:
        text = self._damaged(self._log).decode(errors="replace")
        with self._new_device() as device:
            replay(io.StringIO(text), device)

    @contextmanager
    def _new_device(self) -> Iterator[ZonedDevice]:
        self._path.unlink(missing_ok=True)
        ZonedDevice.create(self._path, GEOMETRY, uuid=uuid4())
        device = ZonedDevice.open(self._path)
        try:
            yield device
        finally:
            device.close()

    def _decode_faults(self) -> None:
        text = FaultTable.decode(self._damaged(self._faults)).encode()
        assert FaultTable.decode(text).encode() == text

    def _decode_super_block(self) -> None:
        block = bytearray(self._super_block)
        for _ in range(self._rng.choice((1, 2, 5))):
            at = self._rng.choice((self._rng.randrange(112), self._rng.randrange(len(block))))
            block[at] = self._rng.randrange(256)
        if self._rng.random() < 0.5:
            # The kernel's: not inverted at the end.
            block[4:8] = bytes(4)
            block[4:8] = struct.pack("<I", zlib.crc32(block) ^ 0xFFFFFFFF)
        found = superblock.decode(bytes(block))
        assert superblock.decode(superblock.encode(found)) == found

    def _load_state(self) -> None:
        """Load the zone states of a device that migrates; a state that is taken over must be sound."""
        stream = self._damaged(self._state)
        if self._rng.random() < 0.5:
            stream = stream[:-4] + struct.pack("<I", zlib.crc32(stream[:-4]))
        with self._new_device() as device:
            state_transfer.load(device, stream)
            assert device.port("soak", VIRTIO).flush() is Status.OK
        errors = [finding for finding in check_image(self._path) if finding.severity is Severity.ERROR]
        assert not errors, errors

    def _damaged(self, text: bytes) -> bytes:
        rng = self._rng
        data = bytearray(text)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice((0, 1, 1, 4, 30))] = rng.choice((*_TOKENS, rng.randbytes(2)))
        return bytes(data)
