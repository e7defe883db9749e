"""Disturbances of the loads: injected faults, garbage, and hostile guests."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tools.soak.daemon import LOADED, ZONE, ZONE_BLOCKS, Daemon, GoneError
from tools.soak.ledger import BLOCK_SECTORS
from tools.soak.loads import Load, asking
from zonefs_emu.daemon import rendezvous
from zonefs_emu.daemon.framing import MAGIC, Json
from zonefs_emu.errors import PeerError
from zonefs_emu.scsi.commands import Opcode
from zonefs_emu.testing.driver_rings import GUEST_BASE
from zonefs_emu.testing.vhost_frontend import Frontend, FrontendQueue
from zonefs_emu.vfio_user.vfio_messages import HEADER
from zonefs_emu.virtio import blk_codec

NR_FAULTS: Final = 12
_HOSTILE_MEMORY_BYTES: Final = 16 << 20


class FaultLoad(Load):
    """Faults that come and go, on all zones and all operations."""

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the control socket."""
        with asking(self.target) as self._daemon:
            yield

    def step(self) -> None:
        """Add a fault, and take the oldest away when there are many."""
        rng = self.rng
        fault: dict[str, Json] = {
            "effect": rng.choice(("fail", "fail", "partial", "delay", "recommend-reset")),
            "first_zone": rng.choice(LOADED),
            "nr_zones": 1,
        }
        if fault["effect"] != "recommend-reset":
            fault["nth"] = rng.randrange(1, 20)
        match fault["effect"]:
            case "fail":
                fault["operations"] = [rng.choice(("read", "write", "append", "reset", "flush"))]
                if fault["operations"] == ["flush"]:
                    fault["first_zone"] = fault["nr_zones"] = 0
            case "partial":
                fault["operations"] = ["write", "append"]
                fault["nr_sectors"] = BLOCK_SECTORS * rng.randrange(1, 8)
            case "delay":
                fault["operations"] = [rng.choice(("read", "write", "append"))]
                fault["delay_min_ns"], fault["delay_max_ns"] = 1_000_000, 20_000_000
            case _:  # changes reports only, at once
                pass
        self._daemon.ask("inject", fault=fault)
        reply = self._daemon.ask("faults")
        assert reply is not None
        faults = reply[0]["faults"]
        assert isinstance(faults, list)
        for old in faults[:-NR_FAULTS]:
            assert isinstance(old, dict)
            self._daemon.ask("remove-fault", id=old["id"])
        self.nr_done += 1
        self.stopping.wait(0.05)


class GarbageLoad(Load):
    """Peers that send anything but what the protocols say."""

    def step(self) -> None:
        """Connect to one of the sockets, say something wrong, and go."""
        rng = self.rng
        peer: socket.socket | None = None
        try:
            path = rng.choice((None, self.target.blk, self.target.scsi, self.target.vfio))
            if path is None:
                peer = rendezvous.connect(self.target.image)
            else:
                peer = socket.socket(socket.AF_UNIX)
                peer.settimeout(0.2)
                peer.connect(str(path))
            if peer is None:
                raise GoneError
            peer.settimeout(0.2)
            for _ in range(rng.randrange(1, 6)):
                peer.sendall(self._words())
                if rng.random() < 0.5:
                    peer.recv(1 << 16)
        except OSError:  # the daemon drops the connection, as it should
            pass
        finally:
            if peer is not None:
                peer.close()
        self.nr_done += 1
        self.stopping.wait(0.02)

    def _words(self) -> bytes:
        rng = self.rng
        body = rng.randbytes(rng.choice((0, 1, 8, 40, 300)))
        match rng.randrange(5):
            case 0:
                return body
            case 3:  # a header of vfio-user: number, command, length, flags, error
                size = rng.choice((HEADER.size + len(body), HEADER.size, rng.randrange(1 << 16)))
                return HEADER.pack(rng.randrange(1 << 16), rng.randrange(24), size, rng.randrange(64), 0) + body
            case 1:  # a header of vhost-user: request, flags, length
                words = (rng.randrange(48), rng.choice((1, 9, 5, 0)), rng.choice((len(body), rng.randrange(5000))))
                return b"".join(word.to_bytes(4, "little") for word in words) + body
            case 2:  # a length as on the control socket, right or wrong
                text = rng.choice((b'{"verb":"report"}', b'{"verb":[]}', b"[]", b'{"verb":"write","zone_no":-1}', body))
                lengths = rng.choice(((len(text), 0), (len(text), len(body)), (rng.randrange(1 << 31), 0)))
                return MAGIC + b"".join(length.to_bytes(4, "little") for length in lengths) + text
            case _:
                return bytes(rng.randrange(64))


class HostileLoad(Load):
    """A hostile guest: chains of any length, made of descriptors that name the same memory or none.

    It writes to zone 1 only, which no other load uses, and resets it, so that there is room again. Its answers are not
    judged: an error, a broken ring or an end of the connection are all right.
    """

    def __init__(self, daemon: Daemon, name: str, seed: int, path: Path, *, nr_queues: int) -> None:
        super().__init__(daemon, name, seed)
        self._path = path
        self._nr_queues = nr_queues

    def step(self) -> None:
        """Connect, send some chains, and go."""
        rng = self.rng
        if not self.target.is_running:
            raise GoneError  # a front-end would wait for its socket
        try:
            with Frontend(
                self._path, packed=rng.random() < 0.5, indirect=rng.random() < 0.5, queue_size=1024,
                memory_bytes=_HOSTILE_MEMORY_BYTES, nr_queues=self._nr_queues,
            ) as frontend:  # fmt: skip
                frontend.timeout_seconds = 1
                frontend.start()
                for _ in range(rng.randrange(1, 10)):
                    self._send(frontend, rng.choice(frontend.queues))
        except (OSError, PeerError, MemoryError):
            if not self.target.is_running:
                raise GoneError from None
        self.nr_done += 1
        self.stopping.wait(0.02)

    def _send(self, frontend: Frontend, queue: FrontendQueue) -> None:
        rng = self.rng
        head = frontend.heap.take(64)
        if self._nr_queues == 1:
            kind = rng.choice(
                (
                    blk_codec.T_IN,
                    blk_codec.T_OUT,
                    blk_codec.T_ZONE_REPORT,
                    blk_codec.T_ZONE_APPEND,
                    blk_codec.T_ZONE_APPEND,
                    blk_codec.T_ZONE_RESET,
                    blk_codec.T_GET_ID,
                    rng.randrange(64),
                )
            )
            if kind in (blk_codec.T_ZONE_RESET_ALL, blk_codec.T_WRITE_ZEROES, blk_codec.T_DISCARD):
                kind = blk_codec.T_FLUSH
            at_start = kind in (blk_codec.T_ZONE_APPEND, blk_codec.T_ZONE_RESET)
            content = blk_codec.HEADER.pack(kind, 0, ZONE if at_start else ZONE + rng.randrange(ZONE))
        else:
            opcode = rng.choice(
                (Opcode.TEST_UNIT_READY, Opcode.INQUIRY, Opcode.READ_16, Opcode.WRITE_16, Opcode.VERIFY_16)
            )
            cdb = bytes((opcode, 0)) + (ZONE_BLOCKS).to_bytes(8, "big") + rng.randrange(1 << 16).to_bytes(4, "big")
            content = b"\x01\0\x40\0\0\0\0\0" + bytes(11) + cdb.ljust(32, b"\0")
        frontend.memory[head.offset : head.offset + len(content)] = content
        body_bytes = rng.choice((512, 4096, 1 << 20, _HOSTILE_MEMORY_BYTES // 2, rng.randrange(1 << 32)))
        count = rng.choice((1, 2, 200, 700, 1020))
        to_device = rng.random() < 0.5
        body = (GUEST_BASE + _HOSTILE_MEMORY_BYTES // 2, body_bytes, not to_device)
        chain = [(GUEST_BASE + head.offset, len(content), False)]
        if to_device:
            chain += [body] * count
        chain.append((GUEST_BASE + head.offset, rng.choice((1, 16, 108)), True))
        if not to_device:
            chain += [body] * count
        table = frontend.heap.take(16 * len(chain)) if frontend.indirect else None
        if queue.ring.nr_free < len(chain):
            return
        queue.ring.add(chain, table)
        queue.kick()
        deadline = time.monotonic() + 1
        while not queue.ring.reap() and not queue.is_broken and time.monotonic() < deadline:
            time.sleep(0.01)
