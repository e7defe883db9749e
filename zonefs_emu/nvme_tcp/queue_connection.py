"""One connection: a queue of a controller, served by a thread of its own.

The thread receives into one buffer, carries out the commands that are whole in it, in their order, and sends their
answers together. Data in a capsule goes from that buffer to the image without a copy. A command that needs more data
asks for it (R2T) and waits for it in memory of its own. What a connection can make this process hold is bounded: no
more commands wait for data, and no more answers are held, than the queue has entries; the data that are waited for have
:data:`PENDING_BYTES_MAX` bytes at most, and a held answer has the data of one read.

A malformed PDU ends its connection, with a PDU that names the field. An exception that nothing foresaw costs its
command. Rejected: one event loop for all connections, because a command that waits for the host's disk would hold up
all hosts.
"""

import contextlib
import heapq
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from zonefs_emu.device.alarm import HeldAnswer
from zonefs_emu.device.timed_port import TimedPort
from zonefs_emu.device.waker import Waker
from zonefs_emu.nvme.answer import SUCCESS, Answer, RefusedError
from zonefs_emu.nvme.command import ALL_NAMESPACES, ENTRY_BYTES, AdminOpcode, Command, IoOpcode, parse
from zonefs_emu.nvme.controller import Controller
from zonefs_emu.nvme.namespace import Namespace, flush_all, refuse_command
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme_tcp import auth_messages, fabrics
from zonefs_emu.nvme_tcp.authentication import Authentication
from zonefs_emu.nvme_tcp.data_pointer import (
    data_in_capsule,
    length_error,
    only_in_capsule,
    require_sgl,
    require_transport,
)
from zonefs_emu.nvme_tcp.fabrics import Connect, FabricsType
from zonefs_emu.nvme_tcp.pdu import (
    CAPSULE_BYTES,
    COMMON_BYTES,
    PDU_BYTES_MAX,
    Fatal,
    Framing,
    PduError,
    PduType,
    TlsUnexpectedError,
    ic_response,
    parse_h2c_data,
    parse_ic_request,
    terminate,
)
from zonefs_emu.nvme_tcp.stream import Stream
from zonefs_emu.nvme_tcp.tls_keys import PskFinder
from zonefs_emu.nvme_tcp.tls_stream import HandshakeError

if TYPE_CHECKING:
    from zonefs_emu.nvme_tcp.server import NvmeTcpServer

#: The most data that the commands of one connection may wait for together.
PENDING_BYTES_MAX: Final = 16 << 20
#: Answers are sent when they have so many bytes or parts, or no whole command is left in the buffer.
_SEND_BYTES: Final = 1 << 20
_SEND_PARTS: Final = 1000
_BUFFER_BYTES: Final = 4 * PDU_BYTES_MAX
#: How long a host may take for its first PDU and its Connect command, and to prove its name.
_CONNECT_S: Final = 10.0
_AUTHENTICATION_S: Final = 30.0
#: The longest single wait: an answer of a slowed drive may be due in more time than a wait can last, 25 days.
_WAIT_NS_MAX: Final = 3600 * 1_000_000_000


class _Waiting:
    """A command whose data is on its way into *data*, of which *received* bytes are there."""

    __slots__ = ("command", "data", "received")

    def __init__(self, command: Command, length: int) -> None:
        self.command = command
        self.data = bytearray(length)
        self.received = 0


class Connection:
    """One connection over *stream*. *server* knows the subsystem and the controllers. *tls*: of a TLS connection."""

    def __init__(self, server: "NvmeTcpServer", stream: Stream, peer: str, tls: PskFinder | None) -> None:
        self.server = server
        self.peer = peer
        self.controller: Controller | None = None
        self.connect: Connect | None = None
        self.nr_commands = 0
        self.stream = stream
        self.tls = tls
        self._framing = Framing()
        self._namespaces: dict[int, Namespace] = {}
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_bytes = 0
        self._sq_head = 0
        self._sq_size = 1
        self._delay_ns = 0
        self._heard_ns = time.monotonic_ns()
        self._authentication: Authentication | None = None
        #: When the connection is ended unless its host is admitted before; None: it is admitted.
        self._deadline_ns: int | None = None
        self._held = HeldAnswer()
        #: Answers that injected delays or a drive's timing hold back: (when due, number, parts, when the command of a
        #: timed answer arrived, or 0).
        self._delayed: list[tuple[int, int, list[bytes | memoryview], int]] = []
        self._timed: TimedPort | None = None
        self._nr_delayed = 0
        self._waker = Waker()
        self._stopping = False

    # -- life -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the connection; from any thread."""
        self._stopping = True
        # At the daemon's end the thread still sends the answers that a drive's timing holds.
        is_cut = self._timed is not None and self._timed.alarm.is_cut
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RD if is_cut else socket.SHUT_RDWR)
        self.wake()

    def wake(self) -> None:
        """Have the thread send due answers and events; from any thread, also with the device's lock held."""
        self._waker.wake()

    def run(self) -> None:
        """Serve until the host goes, breaks the protocol or falls silent, or :meth:`stop`."""
        try:
            with contextlib.ExitStack() as ending:  # each step is done, whatever the others raise
                ending.callback(self.close)
                ending.callback(self.stream.close)
                # Before the host sees the end: it may connect the same queue again at once.
                ending.callback(self.server.forget, self)
                self._run()
        except Exception as error:  # the boundary of a connection
            self.server.unforeseen.contain("nvme", "a connection", error)

    def close(self) -> None:
        """Close the descriptors and give back the memory, after the connection was served."""
        # Python's collector, which counts objects and not bytes, is late to find the circles of connection and ports.
        self._waiting, self._delayed, self._out, self._buffer = {}, [], [], memoryview(b"")
        self._waker.close()

    def _run(self) -> None:
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                self._serve()
                self._send_due()
                self._flush_out()
        except PduError as error:
            log = self.server.log.warning if isinstance(error, TlsUnexpectedError) else self.server.log.info
            log("%s: %s; the connection is ended", self.peer, error.what)
            self._last_words(error)
        except HandshakeError as error:
            self.server.note_failed_handshake(self, error)
            if error.is_plain:
                self._last_words(PduError(Fatal.UNSUPPORTED, 0, str(error)))
        except OSError as error:
            self.server.log.info("%s: the connection is lost: %s", self.peer, error)

    def _last_words(self, error: PduError) -> None:
        pdu = bytes(self._buffer[self._begin : min(self._end, self._begin + CAPSULE_BYTES)])
        with contextlib.suppress(OSError):
            self._flush_out()
            self.stream.send([terminate(error, pdu)])
            self.stream.shutdown(socket.SHUT_WR)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self.stream, select.POLLIN)
        poller.register(self._waker.fd, select.POLLIN)
        self._deadline_ns = time.monotonic_ns() + int(_CONNECT_S * 1e9)
        while not self._stopping:
            timeout_ns = self._until_due_ns()
            events = poller.poll(None if timeout_ns is None else -(-timeout_ns // 1_000_000))
            for fd, _ in events:
                if fd == self._waker.fd:
                    os.eventfd_read(fd)
                elif not self._receive():
                    return
            self._send_due()
            if self._is_late():
                self.server.log.info("%s: the host has not connected, or not proved its name, in time", self.peer)
                return
            if self._is_silent():
                self.server.log.warning(
                    "%s: the host has sent no keep alive in time; its controller is removed", self.peer
                )
                return
            self._flush_out()

    def _until_due_ns(self) -> int | None:
        """Return for how many nanoseconds the thread may wait for the host; None: without end."""
        due = [self._delayed[0][0]] if self._delayed else []
        if self._deadline_ns is not None:
            due.append(self._deadline_ns)
        if self._is_admin and self.controller and self.controller.keep_alive_ns:
            due.append(self._heard_ns + self._patience_ns)
        return min(max(min(due) - time.monotonic_ns(), 0), _WAIT_NS_MAX) if due else None

    @property
    def _is_admin(self) -> bool:
        return self.connect is not None and self.connect.qid == 0

    @property
    def _patience_ns(self) -> int:
        """How long a host may be silent: half as long again as its keep alive time, because the network may be slow."""
        return (self.controller.keep_alive_ns if self.controller else 0) * 3 // 2

    def _is_late(self) -> bool:
        return self._deadline_ns is not None and time.monotonic_ns() >= self._deadline_ns

    def _is_silent(self) -> bool:
        controller = self.controller
        if controller is None or not self._is_admin or not controller.keep_alive_ns:
            return False
        return time.monotonic_ns() - self._heard_ns >= self._patience_ns

    # -- receiving --------------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Receive from the host and carry out each whole PDU; False at the end of the connection."""
        while True:
            if self._begin == self._end:
                self._begin = self._end = 0
            elif len(self._buffer) - self._begin < PDU_BYTES_MAX:
                left = self._end - self._begin
                self._buffer[:left] = bytes(self._buffer[self._begin : self._end])
                self._begin, self._end = 0, left
            try:
                count = self.stream.receive_into(self._buffer[self._end :])
            except BlockingIOError:
                return True
            if not count:
                return False
            self._end += count
            self._heard_ns = time.monotonic_ns()
            self._take_all()
            if not self.stream.has_more:
                return True

    def _take_all(self) -> None:
        """Act on each whole PDU in the buffer."""
        while self._end - self._begin >= COMMON_BYTES:
            kind, length = self._framing.check(self._buffer[self._begin :])
            if self._end - self._begin < length:
                break
            self._take(kind, self._buffer[self._begin : self._begin + length])
            self._begin += length
            if self._out_bytes >= _SEND_BYTES or len(self._out) >= _SEND_PARTS:
                self._flush_out()
        self._flush_out()

    def _take(self, kind: int, pdu: memoryview) -> None:
        """Act on one whole PDU."""
        if (kind == PduType.IC_REQ) != (not self._is_initialized):
            raise PduError(Fatal.SEQUENCE, 0, f"PDU type {kind:02X}h, out of sequence")
        match kind:
            case PduType.IC_REQ:
                header, data = parse_ic_request(pdu)
                self._framing = Framing(header_digest=header, data_digest=data)
                self._is_initialized = True
                self._queue([ic_response(self._framing)])
            case PduType.COMMAND:
                self._take_command(pdu)
            case PduType.H2C_DATA:
                self._take_data(pdu)
            case _:
                raise ConnectionError

    _is_initialized = False

    def _take_command(self, pdu: memoryview) -> None:
        entry = pdu[COMMON_BYTES : COMMON_BYTES + ENTRY_BYTES]
        command = parse(entry)
        self.nr_commands += 1
        self._sq_head = (self._sq_head + 1) % self._sq_size
        try:
            data = self._framing.data_of(pdu)
            if command.opcode == AdminOpcode.FABRICS:
                self._fabrics(entry, command, data)
                return
            controller = self._ready_controller()
            require_sgl(command)
            length, from_host = self._transfer(controller, command)
            if not length:
                self._execute(command, 0, None)
            elif not from_host:
                require_transport(command, data)
                self._execute(command, length, None)
            elif (in_capsule := data_in_capsule(command, data, length)) is not None:
                self._execute(command, length, in_capsule)
            else:
                self._ask_for_data(command, length)
        except RefusedError as refused:
            self._respond(command, self._refuse(command, refused))

    def _ready_controller(self) -> Controller:
        """Return the controller, for a command that is none of fabrics.

        Raises:
            PduError: the host has not connected. RefusedError: it has not proved its name, or not enabled the
            controller.
        """
        controller = self.controller
        if controller is None:
            raise PduError(Fatal.SEQUENCE, COMMON_BYTES, "a command before Connect")
        self._require_authenticated()
        if not controller.is_ready:
            raise RefusedError(NvmeRule.NVME_SEQUENCE, "the controller is not ready")
        return controller

    def _require_authenticated(self) -> None:
        if not self._is_authenticated:
            raise RefusedError(NvmeRule.NVME_AUTHENTICATION, "the name of the host is not proved yet")

    def _transfer(self, controller: Controller, command: Command) -> tuple[int, bool]:
        """Return how many bytes *command* moves, and whether they come from the host. Its data may not have come yet.

        Raises:
            RefusedError: the command names no namespace, or :meth:`Namespace.transfer` refuses it.
        """
        if self._is_admin:
            return controller.data_length(command)
        namespace = self._namespaces.get(command.nsid)
        if namespace is None:
            if command.opcode == IoOpcode.FLUSH and command.nsid == ALL_NAMESPACES:
                return 0, False
            raise RefusedError(NvmeRule.NVME_NAMESPACE, f"namespace {command.nsid:X}h")
        return namespace.transfer(command)

    def _refuse(self, command: Command, refused: RefusedError) -> Answer:
        """Note that *command* breaks a rule of the drive, and return its answer.

        The image does not note what a host without a proven name is refused, because that host could fill the log.
        """
        if self.controller is None:
            return self.server.refuse_connect(self, command, refused)
        if not self._is_authenticated:
            return refused.answer
        if self._is_admin:
            return self.controller.refuse(command, refused)
        return self._noted(command, refuse_command(self._namespaces, command, refused))

    def _noted(self, command: Command, answer: Answer) -> Answer:
        """Put a command that was refused or failed into the error log of the controller."""
        if answer.status and self.controller is not None and self.connect is not None:
            self.controller.note_error(self.connect.qid, command, answer.status)
        return answer

    def _ask_for_data(self, command: Command, length: int) -> None:
        """Have the host send the data of *command*."""
        if command.cid in self._waiting:
            raise PduError(Fatal.SEQUENCE, COMMON_BYTES + 2, f"command {command.cid} while one of that number waits")
        if self._waiting_bytes + length > PENDING_BYTES_MAX or len(self._waiting) >= self._sq_size:
            raise PduError(Fatal.LIMIT_EXCEEDED, COMMON_BYTES, "more commands with data than the queue has entries")
        self._waiting[command.cid] = _Waiting(command, length)
        self._waiting_bytes += length
        self._queue([self._framing.ready_to_transfer(command.cid, command.cid, length)])

    def _take_data(self, pdu: memoryview) -> None:
        cid, tag, offset, length, _ = parse_h2c_data(pdu)
        waiting = self._waiting.get(cid)
        if waiting is None or tag != cid:
            raise PduError(Fatal.INVALID_HEADER, 8, f"data of command {cid}, which waits for none")
        try:
            data = self._framing.data_of(pdu)
        except RefusedError as refused:
            self._forget(cid)
            self._respond(waiting.command, self._refuse(waiting.command, refused))
            return
        received = waiting.received
        if offset != received or length != len(data) or received + length > len(waiting.data):
            raise PduError(Fatal.OUT_OF_RANGE, 12, f"{len(data)} bytes at offset {offset} of the data of a command")
        waiting.data[received : received + length] = data
        waiting.received = received + length
        if waiting.received == len(waiting.data):
            self._forget(cid)
            self._execute(waiting.command, len(waiting.data), memoryview(waiting.data))

    def _forget(self, cid: int) -> None:
        self._waiting_bytes -= len(self._waiting.pop(cid).data)

    # -- executing --------------------------------------------------------------------------------------------

    def _execute(self, command: Command, length: int, data: memoryview | None) -> None:
        """Carry out *command* with *data* from the host, or with room for *length* bytes for it."""
        try:
            answer = self._answer(command, length, data)
            if answer is not None and len(answer.data) > command.sgl_bytes:  # the host has no room for the rest
                answer = self._refuse(command, length_error(command.sgl_bytes, len(answer.data)))
        except Exception as error:  # the boundary of a command
            self.server.unforeseen.contain("nvme", "a command", error)
            answer = self._noted(command, Answer(NvmeStatus.INTERNAL_ERROR))
        if answer is not None:
            self._respond(command, answer)

    def _answer(self, command: Command, length: int, data: memoryview | None) -> Answer | None:
        controller = self.controller
        assert controller is not None
        if self._is_admin:
            return controller.execute(command, b"" if data is None else data)
        namespace = self._namespaces.get(command.nsid)
        if namespace is None:
            return flush_all(self._namespaces, command)
        if data is not None:
            answer = namespace.execute(command, (data,))
        elif length:
            room = memoryview(bytearray(length))
            answer = namespace.execute(command, (room,))
            if not answer.status:
                answer = Answer(NvmeStatus.SUCCESS, answer.result, room)
        else:
            answer = namespace.execute(command, ())
        return self._noted(command, answer)

    def defer(self, duration_ns: int) -> None:
        """Note an injected delay of the command that is being carried out: its answer waits, and no other command."""
        self._delay_ns += duration_ns

    # -- fabrics ----------------------------------------------------------------------------------------------

    def _fabrics(self, entry: memoryview, command: Command, data: memoryview) -> None:
        kind = command.nsid & 0xFF  # byte 4
        controller = self.controller
        if kind == FabricsType.CONNECT:
            if controller is not None:
                raise RefusedError(NvmeRule.NVME_SEQUENCE, "connect, of a queue that is connected")
            record = only_in_capsule(command, data, fabrics.CONNECT_DATA_BYTES)
            self._connect(command, fabrics.parse_connect(entry, record))
            return
        if controller is None:
            raise PduError(Fatal.SEQUENCE, COMMON_BYTES, "a fabrics command before Connect")
        if kind in {FabricsType.AUTHENTICATION_SEND, FabricsType.AUTHENTICATION_RECEIVE}:
            self._authenticate(command, data, is_send=kind == FabricsType.AUTHENTICATION_SEND)
            return
        self._require_authenticated()
        asked = fabrics.parse_property(entry)
        match kind:
            case FabricsType.PROPERTY_GET if self._is_admin:
                value = controller.read_register(asked.offset)
                if value is None:
                    raise RefusedError(NvmeRule.NVME_FIELD, f"property get of {asked.offset:X}h")
                self._respond(command, Answer(NvmeStatus.SUCCESS, value if asked.is_wide else value & 0xFFFFFFFF))
            case FabricsType.PROPERTY_SET if self._is_admin:
                if not controller.write_register(asked.offset, asked.value):
                    raise RefusedError(NvmeRule.NVME_FIELD, f"property set of {asked.offset:X}h")
                self._respond(command, SUCCESS)
            case FabricsType.DISCONNECT if not self._is_admin:
                self._respond(command, SUCCESS)
                self._flush_out()
                raise ConnectionError
            case _:
                raise RefusedError(NvmeRule.NVME_FIELD, f"fabrics command type {kind:02X}h")

    def _connect(self, command: Command, connect: Connect) -> None:
        """Make this connection the queue that the host asks for.

        Raises:
            RefusedError: it cannot be.
        """
        result = self.server.admit(self, connect)
        self.connect = connect
        self._authentication = self.server.authentication_of(connect)
        if self._authentication is None:
            self._deadline_ns = None
        else:
            result |= fabrics.AUTHENTICATION_REQUIRED
            self._deadline_ns = time.monotonic_ns() + int(_AUTHENTICATION_S * 1e9)
        self._sq_size = connect.sq_size + 1
        self._sq_head = 1 % self._sq_size
        assert self.controller is not None
        if connect.qid:
            self._namespaces = self.controller.namespaces_of_queue()
            for namespace in self._namespaces.values():
                namespace.port.defer = self.defer
                if isinstance(namespace.port, TimedPort):
                    namespace.port.hold = self._held.hold
                    self._timed = namespace.port
        else:
            self.controller.wake = self.wake
        self._respond(command, Answer(NvmeStatus.SUCCESS, result))

    @property
    def is_admitted(self) -> bool:
        """Whether the host has connected this queue, and has proved its name if it must; from any thread."""
        return self.connect is not None and self._is_authenticated

    @property
    def _is_authenticated(self) -> bool:
        return self._authentication is None or self._authentication.is_done

    def _authenticate(self, command: Command, data: memoryview, *, is_send: bool) -> None:
        """Take a message of the host's authentication, or give it one.

        Raises:
            ConnectionError: the exchange has failed, or another connection is the queue already. The answer is sent.
            RefusedError: a field of the command is wrong, or it is not its turn.
        """
        authentication, nr_bytes = self._authentication, auth_messages.message_bytes(command)
        if authentication is None:
            raise RefusedError(NvmeRule.NVME_FIELD, "a message of an authentication, which is not asked for")
        if nr_bytes is None:
            raise RefusedError(NvmeRule.NVME_FIELD, "security protocol or length of a message of an authentication")
        if is_send:
            message = only_in_capsule(command, data, nr_bytes)
            had_failed = bool(authentication.failure)
            authentication.receive(bytes(message))
            if authentication.failure and not had_failed:
                # Noted now, because a host that tries keys may disconnect before it reads the failure.
                self.server.note_failed_authentication(self, authentication.failure)
            self._respond(command, SUCCESS)
        else:
            require_transport(command, data)
            due = authentication.due()
            if due is None:
                raise RefusedError(NvmeRule.NVME_SEQUENCE, "no message of the authentication is due")
            if len(due) > nr_bytes:
                raise RefusedError(NvmeRule.NVME_FIELD, f"room for {nr_bytes} of {len(due)} bytes of a message")
            authentication.sent()
            # All bytes that were asked for: Linux takes less for an error.
            self._respond(command, Answer(NvmeStatus.SUCCESS, data=due.ljust(nr_bytes, b"\0")))
        if authentication.is_done:
            self._deadline_ns = None
        elif self._deadline_ns is None:
            self._deadline_ns = time.monotonic_ns() + int(_AUTHENTICATION_S * 1e9)
        if authentication.has_failed or (authentication.is_done and not self.server.take_queue(self)):
            self._flush_out()
            raise ConnectionError

    # -- sending ----------------------------------------------------------------------------------------------

    def _respond(self, command: Command, answer: Answer) -> None:
        """Queue the answer to *command*: its data, and its completion or a sign in the data that stands for it."""
        field = answer.status_field
        qid = self.connect.qid if self.connect else 0
        parts: list[bytes | memoryview] = []
        if answer.data and not field:
            success = not answer.result
            parts += self._framing.data(command.cid, memoryview(answer.data), success=success)
            if success:
                self._queue(parts)
                return
        parts.append(self._framing.response(answer.result, self._sq_head, qid, command.cid, field))
        self._queue(parts)

    def _queue(self, parts: list[bytes | memoryview]) -> None:
        delay_ns, self._delay_ns = self._delay_ns, 0
        if delay_ns or self._timed is not None:
            self._hold(parts, delay_ns)
            return
        self._out += parts
        self._out_bytes += sum(map(len, parts))

    def _hold(self, parts: list[bytes | memoryview], delay_ns: int) -> None:
        """Send *parts* when the command's delay is over, and when the drive would answer; at once if it has neither."""
        held_ns, arrival_ns = self._held.take()
        now_ns = time.monotonic_ns()
        due_ns = held_ns if held_ns and not delay_ns else max(held_ns, now_ns) + delay_ns
        if len(self._delayed) >= self._sq_size:
            raise PduError(Fatal.LIMIT_EXCEEDED, COMMON_BYTES, "more commands than the queue has entries")
        self._nr_delayed += 1
        heapq.heappush(self._delayed, (due_ns, self._nr_delayed, parts, arrival_ns if held_ns else 0))
        if due_ns > now_ns and self._timed is not None:
            self._timed.alarm.at(due_ns, self._waker.wake)
        self._give_due(now_ns)  # carrying it out may have taken so long that others are due as well

    def _send_due(self) -> None:
        """Queue delayed answers whose time has come, or all at the daemon's end (they are carried out), and events."""
        self._give_due(time.monotonic_ns())
        if self._is_admin and self.controller is not None:
            for cid, answer in self.controller.due_events():
                self._queue([self._framing.response(answer.result, self._sq_head, 0, cid, answer.status_field)])

    def _give_due(self, now_ns: int) -> None:
        is_cut = self._timed is not None and self._timed.alarm.is_cut
        while self._delayed and (is_cut or self._delayed[0][0] <= now_ns):
            due_ns, _, parts, arrival_ns = heapq.heappop(self._delayed)
            if arrival_ns and self._timed is not None:
                self._timed.answered(due_ns, arrival_ns)
            self._out += parts
            self._out_bytes += sum(map(len, parts))

    def _flush_out(self) -> None:
        """Send what is queued; TimeoutError if the host does not take it."""
        if self._out:
            out, self._out, self._out_bytes = self._out, [], 0
            self.stream.send(out)
