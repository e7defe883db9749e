"""Hosts of NVMe over TCP: one that knows what its zones hold, and a hostile one; and a guest of vfio-user."""

import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from tools.soak.daemon import ANSWER_SECONDS, ZONE_BLOCKS, Daemon, GoneError
from tools.soak.ledger import BLOCK_BYTES, BLOCK_SECTORS, Ledger
from tools.soak.loads import Load, PluggedLoad
from zonefs_emu.nvme.command import AdminOpcode, IoOpcode, SendAction
from zonefs_emu.nvme.controller import Register
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme_tcp.pdu import COMMON, PduType
from zonefs_emu.testing.nvme_initiator import NvmeHost, NvmeQueue, Reply
from zonefs_emu.testing.vfio_client import NvmeGuest, PciQueue, VfioClient

_NSID: Final = 1
#: The answers to a command that faults and exceptions make fail.
_FAILED: Final = frozenset((NvmeStatus.WRITE_FAULT, NvmeStatus.UNRECOVERED_READ_ERROR, NvmeStatus.INTERNAL_ERROR))
_WP: Final = struct.Struct("<Q")
_WP_OFFSET: Final = 64 + 24
_HOSTILE_SECONDS: Final = 0.2


class NvmeLoad(PluggedLoad):
    """A host at the NVMe/TCP drive, with or without digests."""

    def __init__(self, daemon: Daemon, name: str, seed: int, ledgers: Sequence[Ledger]) -> None:
        super().__init__(daemon, name, seed, ledgers)
        self._host: NvmeHost | None = None

    def plug(self) -> None:
        """Connect an admin queue and an I/O queue."""
        address, port = self.target.nvme
        # Without keep alives, which a host must send at times of its own.
        self._host = host = NvmeHost(
            address, port, self.target.nqn, keep_alive_ms=0,
            header_digest=self.rng.random() < 0.5, data_digest=self.rng.random() < 0.5,
        )  # fmt: skip
        self._queue = host.queue(1)
        for queue in (host.admin, self._queue):
            queue.sock.settimeout(ANSWER_SECONDS)

    def unplug(self) -> None:
        """Close the connections of all queues."""
        if self._host is not None:
            self._host.close()

    @staticmethod
    def _is_done(reply: Reply) -> bool:
        """Say whether it was done; all that faults make of a command is an error of the medium."""
        assert not reply.status or reply.status in _FAILED, f"the NVMe drive answers {reply.status:03X}h"
        return not reply.status

    def read(self, zone: Ledger, first: int, count: int) -> bytes | None:
        """Read."""
        reply = self._queue.read(_NSID, zone.zone_no * ZONE_BLOCKS + first, count, BLOCK_BYTES)
        return reply.data if self._is_done(reply) else None

    def write(self, zone: Ledger, data: bytes) -> bool:
        """Write or append."""
        start = zone.zone_no * ZONE_BLOCKS
        if self.rng.random() < 0.5:
            return self._is_done(self._queue.write(_NSID, start + zone.acknowledged, data, BLOCK_BYTES))
        reply = self._queue.append(_NSID, start, data, BLOCK_BYTES)
        done = self._is_done(reply)
        assert not done or reply.result == start + zone.acknowledged, "an append went astray"
        return done

    def reset(self, zone: Ledger) -> bool:
        """Send a reset."""
        return self._is_done(self._queue.manage(_NSID, SendAction.RESET, zone.zone_no * ZONE_BLOCKS))

    def flush(self, zone: Ledger) -> bool:  # noqa: ARG002  (a namespace is flushed whole)
        """Flush."""
        return self._is_done(self._queue.flush(_NSID))

    def written_sectors(self, zone: Ledger) -> int:
        """Receive a report of one zone."""
        start = zone.zone_no * ZONE_BLOCKS
        reply = self._queue.report(_NSID, start, room=128)
        if not self._is_done(reply):
            self.lost(ConnectionError("a report was refused"))
        return int(_WP.unpack_from(reply.data, _WP_OFFSET)[0] - start) * BLOCK_SECTORS

    def look(self) -> None:
        """Ask what Linux and its tools ask a drive, and for what it has not."""
        assert self._host is not None
        host, queue, rng = self._host, self._queue, self.rng
        match rng.randrange(7):
            case 0:
                command_set = rng.choice((0, 2))
                self._look_at(
                    host.identify(rng.choice((0, 1, 2, 3, 5, 6, 8, 0x1C, 0x77)), nsid=1, command_set=command_set)
                )
            case 1:
                self._look_at(host.log(rng.choice((1, 2, 3, 5, 0xBF, 0x77)), room=rng.choice((64, 512, 4096))))
            case 2:
                self._look_at(
                    host.admin.call(AdminOpcode.GET_FEATURES, cdws=(rng.choice((1, 2, 6, 7, 0xB, 0xF, 0x77)),))
                )
            case 3:
                self._look_at(host.admin.call(AdminOpcode.KEEP_ALIVE))
            case 4:
                self._look_at(host.admin.get_property(rng.choice((Register.CSTS, Register.CC, 0x14, 0x77))))
            case 5:
                self._look_at(queue.report(_NSID, 0, room=rng.choice((64, 4096, 16384)), partial=rng.random() < 0.5))
            case _:
                self._look_at(queue.call(rng.choice((0x55, IoOpcode.READ)), nsid=rng.choice((1, 2, 0xFFFFFFFF))))

    def _look_at(self, reply: Reply) -> None:
        """Count a refusal of what the drive does not have as done."""
        self._note(done=reply.status not in _FAILED)


class VfioLoad(NvmeLoad):
    """A guest's driver at the vfio-user socket."""

    _queue: PciQueue  # type: ignore[assignment]  # which takes the same commands

    def __init__(self, daemon: Daemon, name: str, seed: int, ledgers: Sequence[Ledger]) -> None:
        super().__init__(daemon, name, seed, ledgers)
        self._client: VfioClient | None = None

    def plug(self) -> None:
        """Start as a virtual machine does, and create an I/O queue, with or without doorbells in memory."""
        self._client = VfioClient(self.target.vfio)
        self._guest = NvmeGuest(self._client)
        if self.rng.random() < 0.5:
            self._guest.set_shadow()
        self._queue = self._guest.queue(1)

    def unplug(self) -> None:
        """Go away as a virtual machine that dies."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def look(self) -> None:
        """Ask what Linux and its tools ask a drive, and for what it has not; now and then begin anew."""
        guest, rng = self._guest, self.rng
        match rng.randrange(6):
            case 0:
                command_set = rng.choice((0, 2))
                self._look_at(
                    guest.identify(rng.choice((0, 1, 2, 3, 5, 6, 8, 0x1C, 0x77)), nsid=1, command_set=command_set)
                )
            case 1:
                self._look_at(guest.log(rng.choice((1, 2, 3, 5, 0xBF, 0x77)), room=rng.choice((64, 512, 4096))))
            case 2:
                self._look_at(
                    guest.admin.call(AdminOpcode.GET_FEATURES, cdws=(rng.choice((1, 2, 6, 7, 0xB, 0xF, 0x77)),))
                )
            case 3:
                self._look_at(self._queue.report(_NSID, 0, room=rng.choice((64, 4096, 16384))))
            case 4:
                guest.client.config(rng.choice((0, 4, 0x34)), 4)
                guest.client.register(rng.choice((Register.CSTS, Register.CC)))
                self.nr_done += 1
            case _:
                self.unplug()
                self.plug()
                self.nr_done += 1


class HostileHostLoad(Load):
    """A hostile host: commands and data that contradict each other, or the protocol.

    It writes to zone 1 only, which no other load uses. Its answers are not judged.
    """

    def step(self) -> None:
        """Connect, send something, and go."""
        rng = self.rng
        address, port = self.target.nvme
        try:
            if rng.random() < 0.2:
                with socket.create_connection((address, port), timeout=_HOSTILE_SECONDS) as peer:
                    peer.sendall(self._pdu())
                    peer.recv(1 << 16)
            else:
                with NvmeHost(address, port, self.target.nqn, header_digest=rng.random() < 0.2) as host:
                    queues = (host.admin, host.queue(rng.randrange(1, 4), rng.choice((1, 15, 127))))
                    for queue in queues:
                        queue.sock.settimeout(_HOSTILE_SECONDS)
                    for _ in range(rng.randrange(1, 20)):
                        self._send(rng.choice(queues), is_admin=rng.random() < 0.5)
        except OSError:  # the daemon drops the connection, as it should
            if not self.target.is_running:
                raise GoneError from None
        self.nr_done += 1
        self.stopping.wait(0.02)

    def _pdu(self) -> bytes:
        """Return a PDU that may have any type and lengths."""
        rng = self.rng
        body = os.urandom(rng.choice((0, 16, 64, 120, 4096)))
        kind = rng.choice((*PduType, 0xFF))
        header_bytes = rng.choice((8, 24, 72, 128, rng.randrange(256)))
        length = rng.choice((8 + len(body), header_bytes, rng.randrange(1 << 32)))
        return COMMON.pack(kind, rng.randrange(256), header_bytes, rng.randrange(256), length) + body

    def _send(self, queue: NvmeQueue, *, is_admin: bool) -> None:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                queue.sock.sendall(self._pdu())
            case 1:  # data for which no command waits, or of another tag, offset or length
                number, offset = rng.randrange(1 << 16), rng.choice((0, 512, 1 << 31))
                payload = bytes(rng.choice((0, 1, 4096)))
                queue.sock.sendall(queue.data_pdu(number, rng.choice((number, 7)), offset, payload, last=True))
            case _:
                opcode = rng.choice((rng.randrange(256), *(AdminOpcode if is_admin else IoOpcode)))
                if opcode == AdminOpcode.FABRICS:
                    opcode = AdminOpcode.KEEP_ALIVE
                # Of I/O commands: the first block of zone 1, any length and flags, and any action on that zone.
                cdws = (ZONE_BLOCKS, 0, rng.randrange(1 << 32), rng.randrange(256))
                data = bytes(rng.choice((0, 1, 512, 4096, 8192)))
                length = rng.choice((len(data), 4096, 1 << 20, (1 << 32) - 1))
                nsid, inline = rng.choice((0, 1, 1, 1, 0xFFFFFFFF)), rng.random() < 0.5
                command = queue.command(opcode, nsid=nsid, cdws=cdws, length=length, inline=inline)
                queue.sock.sendall(queue.capsule(command, data))
        if rng.random() < 0.3:
            queue.sock.recv(1 << 20)
