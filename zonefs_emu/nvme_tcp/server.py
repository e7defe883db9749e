"""The listening sockets, the controllers of hosts, and the limits of all connections together."""

import contextlib
import hmac
import logging
import select
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from zonefs_emu.device.limited_log import LimitedLog
from zonefs_emu.device.unforeseen import UnforeseenErrors
from zonefs_emu.device.waker import Waker
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.answer import Answer
from zonefs_emu.nvme.command import AdminOpcode
from zonefs_emu.nvme.controller import FIRMWARE, IO_QUEUES_MAX, QUEUE_ENTRIES_MAX, Controller, Feature
from zonefs_emu.nvme.identify import ControllerIdentity, Fabrics
from zonefs_emu.nvme.logs import DiscoveryRecord, discovery
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN, Subsystem
from zonefs_emu.nvme_tcp.authentication import Authentication
from zonefs_emu.nvme_tcp.fabrics import DYNAMIC, Connect
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access
from zonefs_emu.nvme_tcp.pdu import IN_CAPSULE_MAX
from zonefs_emu.nvme_tcp.queue_connection import Connection
from zonefs_emu.nvme_tcp.stream import Stream
from zonefs_emu.nvme_tcp.tls_keys import PskFinder
from zonefs_emu.nvme_tcp.tls_stream import HandshakeError, TlsStream

#: The port that hosts try if they are not told another one.
DEFAULT_PORT: Final = 4420
#: Queues of all hosts together; each has a thread and a buffer of half a mebibyte.
CONNECTIONS_MAX: Final = 128
_BACKLOG: Final = 64
#: How long the end waits for the threads of all connections together.
JOIN_S: Final = 2.0
#: Offsets in the Connect command and in its data, for the answer to a wrong field.
_OF_QID: Final = 42
_OF_SQ_SIZE: Final = 44
_OF_CNTLID: Final = 16 | 1 << 16
_OF_NQN: Final = 256 | 1 << 16
_ADMIN: Final = (
    AdminOpcode.GET_LOG_PAGE,
    AdminOpcode.IDENTIFY,
    AdminOpcode.ABORT,
    AdminOpcode.SET_FEATURES,
    AdminOpcode.GET_FEATURES,
    AdminOpcode.ASYNC_EVENT,
    AdminOpcode.KEEP_ALIVE,
)


class _Attached:
    """A controller with its connections."""

    def __init__(self, controller: Controller, connect: Connect) -> None:
        self.controller = controller
        self.connect = connect
        self.queues: dict[int, Connection] = {}


class NvmeTcpServer:
    """Serves *subsystem* at listening sockets. *access*: the hosts that may connect, and their keys."""

    def __init__(
        self,
        subsystem: Subsystem,
        listeners: Sequence[socket.socket],
        unforeseen: UnforeseenErrors,
        *,
        access: Access = OPEN,
    ) -> None:
        self.subsystem = subsystem
        self.unforeseen = unforeseen
        self.log = LimitedLog(logging.getLogger(__name__))
        self._listeners = listeners
        self._access = access
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._controllers: dict[int, _Attached] = {}
        self._nr_commands = 0
        self._nr_failed_authentications = 0
        self._waker = Waker()

    # -- life -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Accept connections until :meth:`stop`, then end them all."""
        poller = select.poll()
        for listener in self._listeners:
            listener.setblocking(False)  # noqa: FBT003  (its only form)
            poller.register(listener, select.POLLIN)
        poller.register(self._waker.fd, select.POLLIN)
        by_fd = {listener.fileno(): listener for listener in self._listeners}
        try:
            while True:
                for fd, _ in poller.poll():
                    if fd == self._waker.fd:
                        return
                    try:
                        self._accept(by_fd[fd])
                    except Exception as error:  # the boundary of a connection that is not there yet
                        self.unforeseen.contain("nvme", "a new connection", error)
        finally:
            self._end()

    def stop(self) -> None:
        """End :meth:`run`; called from any thread."""
        self._waker.wake()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError as error:  # the host went away again, or there are no descriptors left
            self.log.info("a connection could not be accepted: %s", error)
            return
        peer = f"host {address[0]}:{address[1]}"
        with self._lock:
            full = len(self._connections) >= CONNECTIONS_MAX
        if full:
            self.log.warning("%s: refused, because there are %d connections already", peer, CONNECTIONS_MAX)
            sock.close()
            return
        with contextlib.ExitStack() as failing:
            failing.callback(sock.close)
            connection = self._connection(sock, peer)
            failing.callback(connection.close)
            thread = threading.Thread(target=connection.run, name=f"nvme {peer}", daemon=True)
            with self._lock:
                self._connections[connection] = thread
            failing.callback(self.forget, connection)
            try:
                thread.start()
            except RuntimeError as error:  # the host gives this process no more threads
                self.log.warning("%s: refused: %s", peer, error)
                return
            failing.pop_all()

    def _connection(self, sock: socket.socket, peer: str) -> Connection:
        if not self._access.needs_tls:
            return Connection(self, Stream(sock), peer, None)
        tls = PskFinder({self.subsystem.nqn, DISCOVERY_NQN}, self._access.tls_key_of)
        return Connection(self, TlsStream(sock, tls), peer, tls)

    def _end(self) -> None:
        for listener in self._listeners:
            listener.close()
        with self._lock:
            threads = list(self._connections.items())
        for connection, _ in threads:
            connection.stop()
        # A thread that waits for the host's disk may take longer; the daemon ends without it.
        deadline = time.monotonic() + JOIN_S
        for _, thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._waker.close()  # a stop may still come

    def forget(self, connection: Connection) -> None:
        """Note that *connection* has ended. With an admin queue, its controller and all queues of that end."""
        queues: list[Connection] = []
        with self._lock:
            self._connections.pop(connection, None)
            self._nr_commands += connection.nr_commands
            connect, controller = connection.connect, connection.controller
            if connect is None or controller is None:
                return
            attached = self._controllers.get(controller.identity.cntlid)
            if attached is None or attached.queues.get(connect.qid) is not connection:
                return
            del attached.queues[connect.qid]
            if connect.qid == 0:
                del self._controllers[controller.identity.cntlid]
                queues = list(attached.queues.values())
        if connect.qid == 0:
            controller.close()
            for queue in queues:
                queue.stop()
            self.subsystem.give_back_cntlid(controller.identity.cntlid)

    def statistics(self) -> dict[str, int]:
        """Return the counters of the front-end."""
        with self._lock:
            names = [attached.connect.subsystem_nqn for attached in self._controllers.values()]
            return {
                "hosts": len(names) - names.count(DISCOVERY_NQN),
                "queues": len(self._connections),
                "commands": self._nr_commands + sum(each.nr_commands for each in self._connections),
                "failed_authentications": self._nr_failed_authentications,
            }

    # -- connecting -------------------------------------------------------------------------------------------

    def admit(self, connection: Connection, connect: Connect) -> Answer:
        """Make *connection* the queue that its host requests; return the answer, which may be a refusal."""
        if connect.record_format:
            return Answer(NvmeStatus.CONNECT_INCOMPATIBLE_FORMAT)
        if connect.subsystem_nqn not in {self.subsystem.nqn, DISCOVERY_NQN}:
            return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_NQN)
        if not 0 < connect.sq_size <= QUEUE_ENTRIES_MAX:
            return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_SQ_SIZE)
        if not self._access.admits(connect.host_nqn):
            self.log.warning(
                "%s: %r may not connect; see --allow-host and --host-key", connection.peer, connect.host_nqn
            )
            return Answer(NvmeStatus.CONNECT_INVALID_HOST)
        refused = self._refuse_other_names(connection, connect)
        if refused is not None:
            return refused
        return self._admit_queue(connection, connect) if connect.qid else self._admit_admin(connection, connect)

    def _refuse_other_names(self, connection: Connection, connect: Connect) -> Answer | None:
        """Return the refusal of a host that has proved other names by TLS than those that it connects by."""
        if connection.tls is None:
            return None
        identity = connection.tls.identity
        assert identity is not None
        if connect.host_nqn != identity.host_nqn:
            self.log.warning("%s: %r may not connect as %r", connection.peer, identity.host_nqn, connect.host_nqn)
            return Answer(NvmeStatus.CONNECT_INVALID_HOST)
        if connect.subsystem_nqn != identity.subsystem_nqn:
            return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_NQN)
        return None

    def authentication_of(self, connect: Connect) -> Authentication | None:
        """Return how the host of a queue proves its name; None if it need not.

        The discovery service is open to all hosts that may connect: it says no more than the name and the address that
        a host has found already, and ``nvme discover`` is used without a key.
        """
        key = self._access.key_of(connect.host_nqn)
        if key is None or connect.subsystem_nqn == DISCOVERY_NQN:
            return None
        return Authentication(connect.host_nqn, connect.subsystem_nqn, key, self._access.controller_key)

    def note_failed_authentication(self, connection: Connection, why: str) -> None:
        """Log and count that the host of *connection* has not proved its name."""
        name = connection.connect.host_nqn if connection.connect else ""
        self.log.warning("%s: %s has not proved its name: %s", connection.peer, name, why)
        with self._lock:
            self._nr_failed_authentications += 1

    def note_failed_handshake(self, connection: Connection, error: HandshakeError) -> None:
        """Log and count that the host of *connection* has not begun a TLS connection."""
        if error.is_plain:
            self.log.warning("%s: %s, which --tls-key requires: see nvme connect --tls", connection.peer, error)
        else:
            assert connection.tls is not None
            why = connection.tls.failure(str(error))
            self.log.warning("%s: the TLS handshake has failed: %s", connection.peer, why)
        with self._lock:
            self._nr_failed_authentications += 1

    def _admit_admin(self, connection: Connection, connect: Connect) -> Answer:
        if connect.cntlid != DYNAMIC:
            return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_CNTLID)
        is_discovery = connect.subsystem_nqn == DISCOVERY_NQN
        cntlid = self.subsystem.take_cntlid(is_discovery=is_discovery)
        if cntlid is None:
            return Answer(NvmeStatus.CONTROLLER_BUSY)
        identity = ControllerIdentity(
            serial=self.subsystem.serial,
            firmware=FIRMWARE,
            nqn=connect.subsystem_nqn,
            cntlid=cntlid,
            max_nsid=0 if is_discovery else len(self.subsystem.devices),
            is_discovery=is_discovery,
            fabrics=Fabrics(capsule_bytes=IN_CAPSULE_MAX, max_commands=QUEUE_ENTRIES_MAX + 1),
        )
        discovered = (lambda: self._discovery_log(connection)) if is_discovery else None
        controller = Controller(self.subsystem, identity, admin=_ADMIN, discovered=discovered)
        controller.features[Feature.KEEP_ALIVE] = connect.keep_alive_ms
        attached = _Attached(controller, connect)
        attached.queues[0] = connection
        controller.on_disabled = lambda: self._drop_queues(attached)
        connection.controller = controller
        with self._lock:
            self._controllers[cntlid] = attached
        return Answer(NvmeStatus.SUCCESS, cntlid)

    def _admit_queue(self, connection: Connection, connect: Connect) -> Answer:
        with self._lock:
            attached = self._controllers.get(connect.cntlid)
            if attached is None or not _is_same_host(attached.connect, connect):
                return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_CNTLID)
            if not attached.controller.is_ready:
                return Answer(NvmeStatus.COMMAND_SEQUENCE_ERROR)
            is_free = 0 < connect.qid <= IO_QUEUES_MAX and connect.qid not in attached.queues
            if not is_free or connect.subsystem_nqn == DISCOVERY_NQN:
                return Answer(NvmeStatus.CONNECT_INVALID_PARAMETERS, _OF_QID)
            if self._access.key_of(connect.host_nqn) is None:
                attached.queues[connect.qid] = connection
            connection.controller = attached.controller
        return Answer(NvmeStatus.SUCCESS, connect.cntlid)

    def take_queue(self, connection: Connection) -> bool:
        """Make *connection*, whose host has proved its name, the queue that it has connected as, if it is not yet.

        False if another connection is, or its controller has ended. Not at Connect, of which every field is public: a
        stranger could keep a host from its queues.
        """
        connect, controller = connection.connect, connection.controller
        assert connect is not None
        assert controller is not None
        with self._lock:
            attached = self._controllers.get(controller.identity.cntlid)
            if attached is None or attached.controller is not controller:
                return False
            return attached.queues.setdefault(connect.qid, connection) is connection

    def _drop_queues(self, attached: _Attached) -> None:
        """End the I/O queues of a controller that its host resets or shuts down."""
        with self._lock:
            queues = [connection for qid, connection in attached.queues.items() if qid]
        for connection in queues:
            connection.stop()

    def _discovery_log(self, connection: Connection) -> bytes:
        """Return the discovery log for this host: the subsystem is at the address that the host has connected to."""
        address, port = connection.stream.local_address()
        record = DiscoveryRecord(
            nqn=self.subsystem.nqn, address=address, port=port, is_discovery=False, needs_tls=self._access.needs_tls
        )
        return discovery(0, [record])


def _is_same_host(one: Connect, other: Connect) -> bool:
    return (
        one.host_nqn == other.host_nqn
        and one.subsystem_nqn == other.subsystem_nqn
        and hmac.compare_digest(one.host_id, other.host_id)
    )


def listen(address: str, port: int) -> list[socket.socket]:
    """Return sockets that listen at every address that *address* resolves to. Port 0 lets the host choose one.

    Raises:
        UsageError: the address is not one of this host, or another process listens there.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in found:
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(place)
            sock.listen(_BACKLOG)
    except OSError as error:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.close()
        message = f"cannot listen at {address}, port {port}: {error.strerror or error}"
        raise UsageError(message, exit_code=1) from None
    return sockets
