"""A host of NVMe over TCP, in Python: for tests, benchmarks, and to try a target without a kernel's driver.

    with NvmeHost("127.0.0.1", 4420, nqn) as host:
        queue = host.queue(1)
        assert queue.write(1, slba=0, data=bytes(4096)).status == 0

It trusts its target: a violation of the protocol raises an exception.
"""

import socket
import ssl
import struct
import sys
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from zonefs_emu.nvme.command import AdminOpcode, Command, IoOpcode, ReceiveAction, SendAction, encode, parse
from zonefs_emu.nvme.controller import Register
from zonefs_emu.nvme_tcp import auth_messages, authentication, dh_groups
from zonefs_emu.nvme_tcp.auth_messages import Message, Negotiate
from zonefs_emu.nvme_tcp.fabrics import AUTHENTICATION_REQUIRED, DYNAMIC, Connect, FabricsType, encode_connect_data
from zonefs_emu.nvme_tcp.host_keys import HASHES, DhchapKey
from zonefs_emu.nvme_tcp.pdu import COMMON, COMMON_BYTES, DIGEST_BYTES, IC_BYTES, Flag, PduType, digest
from zonefs_emu.nvme_tcp.tls_keys import Identity, TlsKey, identity_of, psk_of

_ENABLE: Final = 0x460061
_COMPLETION: Final = struct.Struct("<QHHHH")
_NOTHING: Final = b""
_MESSAGE_BYTES: Final = auth_messages.MESSAGE_BYTES_MAX


class Reply(NamedTuple):
    """A completion. *status*: status code type << 8 | status code, without "Do Not Retry"."""

    cid: int
    status: int
    result: int
    data: bytes
    do_not_retry: bool
    sq_head: int


class AuthenticationError(ConnectionError):
    """The target or the host has not proved its name. *why*: the explanation of the failure."""

    def __init__(self, why: int, what: str) -> None:
        super().__init__(what)
        self.why = why


class HostKeys(NamedTuple):
    """The key with which a host proves its name. *controller*: the drive's key, if the drive must prove its own."""

    host: DhchapKey
    controller: DhchapKey | None = None
    hashes: bytes = bytes(HASHES)
    groups: bytes = bytes(dh_groups.GROUPS)


class IoCommands(Protocol):
    """The commands of an I/O queue, over any transport."""

    def call(self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = b"", room: int = 0) -> Reply:
        """Send a command with *data*, or with *room* for its answer, and return its completion."""
        ...

    def read(self, nsid: int, slba: int, nr_blocks: int, block_bytes: int) -> Reply:
        """Read."""
        cdws = (slba & 0xFFFFFFFF, slba >> 32, nr_blocks - 1)
        return self.call(IoOpcode.READ, nsid=nsid, cdws=cdws, room=nr_blocks * block_bytes)

    def write(
        self, nsid: int, slba: int, data: bytes, block_bytes: int, *, opcode: int = IoOpcode.WRITE, flags: int = 0
    ) -> Reply:
        """Write *data*, or append or compare it."""
        cdws = (slba & 0xFFFFFFFF, slba >> 32, len(data) // block_bytes - 1 | flags)
        return self.call(opcode, nsid=nsid, cdws=cdws, data=data)

    def append(self, nsid: int, slba: int, data: bytes, block_bytes: int) -> Reply:
        """Append *data* to the zone that starts at *slba*; the result is where."""
        return self.write(nsid, slba, data, block_bytes, opcode=IoOpcode.ZONE_APPEND)

    def flush(self, nsid: int) -> Reply:
        """Flush."""
        return self.call(IoOpcode.FLUSH, nsid=nsid)

    def manage(self, nsid: int, action: SendAction, slba: int = 0, *, select_all: bool = False) -> Reply:
        """Send a zone management command."""
        cdws = (slba & 0xFFFFFFFF, slba >> 32, 0, action | select_all << 8)
        return self.call(IoOpcode.ZONE_SEND, nsid=nsid, cdws=cdws)

    def report(self, nsid: int, slba: int = 0, *, room: int = 4096, listed: int = 0, partial: bool = True) -> Reply:
        """Receive a zone report."""
        cdws = (slba & 0xFFFFFFFF, slba >> 32, room // 4 - 1, ReceiveAction.REPORT | listed << 8 | partial << 16)
        return self.call(IoOpcode.ZONE_RECEIVE, nsid=nsid, cdws=cdws, room=room)


class AdminCommands(Protocol):
    """The admin commands of a host, over any transport."""

    def ask(self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = b"", room: int = 0) -> Reply:
        """Send an admin command and return its completion."""
        ...

    def identify(self, cns: int, *, nsid: int = 0, command_set: int = 0) -> Reply:
        """Identify."""
        return self.ask(AdminOpcode.IDENTIFY, nsid=nsid, cdws=(cns, command_set << 24), room=4096)

    def log(
        self, page: int, *, room: int = 4096, nsid: int = 0xFFFFFFFF, offset: int = 0, retain: bool = False
    ) -> Reply:
        """Get a log page."""
        nr_dwords = room // 4 - 1
        cdws = (page | retain << 15 | (nr_dwords & 0xFFFF) << 16, nr_dwords >> 16, offset & 0xFFFFFFFF, offset >> 32)
        return self.ask(AdminOpcode.GET_LOG_PAGE, nsid=nsid, cdws=cdws, room=room)

    def zones(self, queue: IoCommands, nsid: int, nr_zones: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (condition, capacity, start, wp) of the first *nr_zones* zones."""
        report = queue.report(nsid, room=64 * (nr_zones + 1)).data
        (count,) = struct.unpack_from("<Q", report)
        for number in range(1, count + 1):
            state, capacity, start, wp = struct.unpack_from("<xB6xQQQ", report, 64 * number)
            yield state >> 4, capacity, start, wp


class NvmeQueue(IoCommands):
    """One connection, which is one queue. Commands are sent by :meth:`send`, replies taken by :meth:`receive`."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        header_digest: bool = False,
        data_digest: bool = False,
        tls: tuple[Identity, bytes] | None = None,
    ) -> None:
        """Connect, and exchange the first PDUs. *tls*: the PSK identity and the key of a TLS connection."""
        sock = socket.create_connection((address, port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock if tls is None else encrypted(sock, *tls)
        self.header_digest = header_digest
        self.data_digest = data_digest
        #: The most data in a capsule, in bytes; the target requests longer data by R2T.
        self.in_capsule_max = 8192
        self._next_cid = 0
        self._data: dict[int, bytearray] = {}
        self._outgoing: dict[int, bytes] = {}
        try:
            self.h2c_data_max = self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> int:
        """Exchange the first PDUs; return how much data a PDU to the target may have."""
        digests = self.header_digest | self.data_digest << 1
        request = COMMON.pack(PduType.IC_REQ, 0, IC_BYTES, 0, IC_BYTES) + struct.pack("<HBBI112x", 0, 0, digests, 0)
        self.sock.sendall(request)
        answer = self._read(IC_BYTES)
        assert answer[0] == PduType.IC_RESP, answer[:8]
        assert answer[11] == digests
        (h2c_data_max,) = struct.unpack_from("<I", answer, 12)
        return int(h2c_data_max)

    def close(self) -> None:
        """Close the connection without a message."""
        self.sock.close()

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self.sock.recv(length - len(data))
            if not part:
                raise ConnectionError("the target has closed the connection")
            data += part
        return bytes(data)

    # -- sending ----------------------------------------------------------------------------------------------

    def capsule(self, command: Command, data: bytes = _NOTHING) -> bytes:
        """Return the PDU of *command*, with *data* in it."""
        header_bytes = COMMON_BYTES + 64
        offset = header_bytes + (DIGEST_BYTES if self.header_digest else 0)
        length = offset + len(data) + (DIGEST_BYTES if data and self.data_digest else 0)
        flags = (Flag.HEADER_DIGEST if self.header_digest else 0) | (
            Flag.DATA_DIGEST if data and self.data_digest else 0
        )
        header = COMMON.pack(PduType.COMMAND, flags, header_bytes, offset if data else 0, length) + encode(command)
        pdu = header + (digest(header) if self.header_digest else b"") + data
        return pdu + digest(data) if data and self.data_digest else pdu

    def command(
        self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), length: int = 0, inline: bool = False
    ) -> Command:
        """Return a command with the next number, whose data pointer says *length* bytes."""
        self._next_cid = (self._next_cid + 1) & 0xFFFF
        fields = [*cdws, 0, 0, 0, 0, 0, 0][:6]
        kind = 0x01 if inline else 0x5A
        return Command(opcode, 0x40, self._next_cid, nsid, 0, 0, length | kind << 56, *fields)

    def send(
        self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = _NOTHING, room: int = 0
    ) -> int:
        """Send a command with *data*, or with *room* for its answer; returns its number."""
        inline = bool(data) and len(data) <= self.in_capsule_max
        command = self.command(opcode, nsid=nsid, cdws=cdws, length=len(data) or room, inline=inline)
        if data and not inline:
            self._outgoing[command.cid] = data
        self.sock.sendall(self.capsule(command, data if inline else _NOTHING))
        return command.cid

    # -- receiving --------------------------------------------------------------------------------------------

    def receive(self) -> Reply:
        """Return the next completion; data that the target asks for meanwhile is sent.

        Raises:
            ConnectionError: the target has ended the connection; with the reason, if it gave one.
        """
        while True:
            kind, flags, header_bytes, offset, length = COMMON.unpack(self._read(COMMON_BYTES))
            body = self._read(length - COMMON_BYTES)
            header = body[: header_bytes - COMMON_BYTES]
            match kind:
                case PduType.RESPONSE:
                    result, sq_head, _, cid, status = _COMPLETION.unpack(header)
                    data = bytes(self._data.pop(cid, b""))
                    self._outgoing.pop(cid, None)
                    return Reply(cid, status >> 1 & 0x7FF, result, data, bool(status >> 15), sq_head)
                case PduType.C2H_DATA:
                    cid, at, count = struct.unpack_from("<H2xII", header)
                    begin = offset - COMMON_BYTES
                    payload = body[begin : begin + count]
                    if flags & Flag.DATA_DIGEST:
                        assert body[begin + count :] == digest(payload)
                    found = self._data.setdefault(cid, bytearray())
                    assert at == len(found)
                    found += payload
                    if flags & Flag.SUCCESS:
                        assert flags & Flag.LAST
                        return Reply(cid, 0, 0, bytes(self._data.pop(cid)), do_not_retry=False, sq_head=0)
                case PduType.R2T:
                    self._send_data(*struct.unpack_from("<HHII", header))
                case PduType.C2H_TERM:
                    fatal, field = struct.unpack_from("<HI", header)
                    message = f"the target ends the connection: fatal error {fatal}, field {field}"
                    raise ConnectionError(message)
                case _:
                    message = f"PDU type {kind:02X}h"
                    raise ConnectionError(message)

    def _send_data(self, cid: int, tag: int, offset: int, length: int) -> None:
        for at in range(offset, offset + length, self.h2c_data_max):
            payload = self._outgoing[cid][at : min(at + self.h2c_data_max, offset + length)]
            self.sock.sendall(self.data_pdu(cid, tag, at, payload, last=at + len(payload) == offset + length))

    def data_pdu(self, cid: int, tag: int, offset: int, payload: bytes, *, last: bool) -> bytes:
        """Return an H2CData PDU."""
        begin = 24 + (DIGEST_BYTES if self.header_digest else 0)
        flags = (Flag.LAST if last else 0) | (Flag.HEADER_DIGEST if self.header_digest else 0)
        flags |= Flag.DATA_DIGEST if self.data_digest else 0
        length = begin + len(payload) + (DIGEST_BYTES if self.data_digest else 0)
        header = COMMON.pack(PduType.H2C_DATA, flags, 24, begin, length) + struct.pack(
            "<HHII4x", cid, tag, offset, len(payload)
        )
        pdu = header + (digest(header) if self.header_digest else b"") + payload
        return pdu + digest(payload) if self.data_digest else pdu

    def call(
        self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = _NOTHING, room: int = 0
    ) -> Reply:
        """Send a command and return its completion, which must be the next."""
        cid = self.send(opcode, nsid=nsid, cdws=cdws, data=data, room=room)
        reply = self.receive()
        assert reply.cid == cid, f"command {reply.cid} is answered before command {cid}"
        return reply

    # -- fabrics ----------------------------------------------------------------------------------------------

    def connect(self, connect: Connect) -> Reply:
        """Send a Connect command."""
        fixed = struct.pack("<HHHBxI", *connect[:5])
        entry = bytearray(encode(self.command(AdminOpcode.FABRICS, nsid=FabricsType.CONNECT, length=1024, inline=True)))
        entry[40 : 40 + len(fixed)] = fixed
        return self._fabrics(bytes(entry), encode_connect_data(connect))

    def get_property(self, offset: int, *, wide: bool = False) -> Reply:
        """Send a Property Get command."""
        return self._property(FabricsType.PROPERTY_GET, struct.pack("<B3xI", wide, offset))

    def set_property(self, offset: int, value: int) -> Reply:
        """Send a Property Set command."""
        return self._property(FabricsType.PROPERTY_SET, struct.pack("<B3xIQ", 0, offset, value))

    def disconnect(self) -> Reply:
        """Send a Disconnect command."""
        return self._property(FabricsType.DISCONNECT, b"")

    def send_message(self, message: bytes) -> Reply:
        """Send a message of an authentication."""
        return self._authentication(FabricsType.AUTHENTICATION_SEND, len(message), message)

    def receive_message(self, room: int = _MESSAGE_BYTES) -> Reply:
        """Receive a message of an authentication."""
        return self._authentication(FabricsType.AUTHENTICATION_RECEIVE, room, _NOTHING)

    def _authentication(self, kind: FabricsType, nr_bytes: int, message: bytes) -> Reply:
        cdws = auth_messages.command_dwords(nr_bytes)
        asked = self.command(AdminOpcode.FABRICS, nsid=kind, cdws=cdws, length=nr_bytes, inline=bool(message))
        return self._fabrics(encode(asked), message)

    def authenticate(self, connect: Connect, keys: HostKeys, *, transaction: int = 7) -> None:
        """Prove the host's name on this queue, which *connect* has connected; and have the drive prove its own.

        Raises:
            AuthenticationError: the target refuses, or it does not prove its name.
        """
        names = {"host_nqn": connect.host_nqn, "subsystem_nqn": connect.subsystem_nqn}
        offer = Negotiate(transaction, 0, keys.hashes, keys.groups)
        assert self.send_message(auth_messages.encode_negotiate(offer)).status == 0
        challenge = auth_messages.parse_challenge(self._message(Message.CHALLENGE))
        pair = dh_groups.new_pair(challenge.group_id)
        session_key = dh_groups.shared_secret(pair, challenge.value)
        assert session_key is not None
        response = authentication.host_response(keys.host, challenge, session_key, **names)
        own = authentication.new_challenge(challenge.hash_id) if keys.controller else b""
        sequence = authentication.new_sequence() if keys.controller else 0
        reply = auth_messages.Reply(transaction, sequence, response, own, pair.value)
        assert self.send_message(auth_messages.encode_reply(reply)).status == 0
        found = auth_messages.parse_success1(self._message(Message.SUCCESS1))
        if keys.controller is None:
            return
        if found != authentication.controller_response(keys.controller, reply, challenge, session_key, **names):
            self.send_message(auth_messages.encode_failure(Message.FAILURE2, transaction, auth_messages.Why.FAILED))
            raise AuthenticationError(auth_messages.Why.FAILED, "the target has not proved its name")
        assert self.send_message(auth_messages.encode_success2(transaction)).status == 0

    def _message(self, expected: Message) -> bytes:
        reply = self.receive_message()
        assert reply.status == 0, f"status {reply.status:03X}h in place of a message"
        kind, _ = auth_messages.kind_of(reply.data)
        if kind == Message.FAILURE1:
            why = auth_messages.parse_failure(reply.data)
            raise AuthenticationError(why, f"the target does not accept the proof of the host's name: {why}")
        assert kind == expected, f"message {kind:04X}h"
        return reply.data

    def _property(self, kind: FabricsType, fields: bytes) -> Reply:
        entry = bytearray(encode(self.command(AdminOpcode.FABRICS, nsid=kind)))
        entry[40 : 40 + len(fields)] = fields
        return self._fabrics(bytes(entry), _NOTHING)

    def _fabrics(self, entry: bytes, data: bytes) -> Reply:
        self.sock.sendall(self.capsule(parse(entry), data))
        return self.receive()


def encrypted(sock: socket.socket, identity: Identity, psk: bytes) -> ssl.SSLSocket:
    """Return *sock* as a TLS connection.

    Raises:
        OSError: the handshake fails.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the key proves both sides
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _: (str(identity), psk))
    try:
        return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


class NvmeHost(AdminCommands):
    """A host with a controller: connected and enabled, as Linux does it."""

    def __init__(
        self,
        address: str,
        port: int,
        nqn: str,
        *,
        host_nqn: str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
        header_digest: bool = False,
        data_digest: bool = False,
        keep_alive_ms: int = 5000,
        keys: HostKeys | None = None,
        tls_key: TlsKey | None = None,
        tls_version: int = 1,
    ) -> None:
        """Connect the admin queue and enable the controller. *tls_version*: of PSK identities.

        Raises:
            ConnectionError: the target refuses; says with which status.
            AuthenticationError: it wants a proof of the host's name, and *keys* give none.
        """
        self._place = address, port
        self._nqn = nqn
        self._host_nqn = host_nqn
        self._host_id = uuid.uuid5(uuid.NAMESPACE_DNS, host_nqn).bytes
        self._digests = header_digest, data_digest
        self._keys = keys
        self._tls = None
        if tls_key is not None:
            identity = identity_of(tls_key, host_nqn, nqn, version=tls_version)
            psk = psk_of(tls_key, identity)
            assert psk is not None
            self._tls = identity, psk
        self._queues: list[NvmeQueue] = []
        self.cntlid = DYNAMIC
        try:
            self.admin = self._connect(0, keep_alive_ms)
            self.admin.set_property(Register.CC, _ENABLE)
            assert self.admin.get_property(Register.CSTS).result & 1
        except BaseException:
            self.close()
            raise

    def _connect(self, qid: int, keep_alive_ms: int = 0, sq_size: int = 127) -> NvmeQueue:
        header, data = self._digests
        queue = NvmeQueue(*self._place, header_digest=header, data_digest=data, tls=self._tls)
        self._queues.append(queue)
        size = 31 if qid == 0 else sq_size
        connect = Connect(0, qid, size, 0, keep_alive_ms, self._host_id, self.cntlid, self._nqn, self._host_nqn)
        reply = queue.connect(connect)
        if reply.status:
            message = f"Connect is refused with status {reply.status:03X}h, result {reply.result:X}h"
            raise ConnectionError(message)
        self.cntlid = reply.result & 0xFFFF
        if reply.result & AUTHENTICATION_REQUIRED:
            if self._keys is None:
                raise AuthenticationError(0, "the target wants a proof of the host's name, and there is no key")
            queue.authenticate(connect, self._keys)
        return queue

    def queue(self, qid: int, sq_size: int = 127) -> NvmeQueue:
        """Connect I/O queue *qid*."""
        return self._connect(qid, sq_size=sq_size)

    def ask(self, opcode: int, *, nsid: int = 0, cdws: Sequence[int] = (), data: bytes = b"", room: int = 0) -> Reply:
        """Send an admin command and return its completion."""
        return self.admin.call(opcode, nsid=nsid, cdws=cdws, data=data, room=room)

    def close(self) -> None:
        """Close all queues without a message, as a host does that crashes."""
        for queue in self._queues:
            queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
