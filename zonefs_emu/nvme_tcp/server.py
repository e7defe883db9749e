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
from zonefs_emu.nvme.answer import Answer, RefusedError
from zonefs_emu.nvme.command import AdminOpcode, Command
from zonefs_emu.nvme.controller import FIRMWARE, IO_QUEUES_MAX, QUEUE_ENTRIES_MAX, Controller, Feature
from zonefs_emu.nvme.identify import ControllerIdentity, Fabrics
from zonefs_emu.nvme.logs import DiscoveryRecord, discovery
from zonefs_emu.nvme.rules import NvmeRule
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
        #: For refusals of hosts without a controller.
        self._namespace = subsystem.namespaces()[1]
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
        if not self._make_room():
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

    def _make_room(self) -> bool:
        """Return whether there may be one more connection; if there are too many, end one to make room.

        It is the oldest one whose host is not admitted yet. Otherwise a stranger who opens connections and says nothing
        could keep hosts out for as long as they may take for their Connect command. Rejected: a shorter time for that,
        which slow hosts would miss.
        """
        with self._lock:
            if len(self._connections) < CONNECTIONS_MAX:
                return True
            strangers = ((each, thread) for each, thread in self._connections.items() if not each.is_admitted)
            oldest, thread = next(strangers, (None, None))
        if oldest is None or thread is None:
            return False
        self.log.info("%s: ended to make room, because its host has not connected yet", oldest.peer)
        oldest.stop()
        # It carries out no commands, so it ends at once. Not waiting would allow more connections than the limit.
        thread.join(JOIN_S)
        return not thread.is_alive()

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

    def admit(self, connection: Connection, connect: Connect) -> int:
        """Make *connection* the queue that its host requests; return the number of its controller.

        Raises:
            RefusedError: a field names no queue that there can be (NVME_CONNECT_FORMAT, NVME_CONNECT_FIELD), the host
                may not connect (NVME_CONNECT_HOST), its controller is not ready (NVME_SEQUENCE), or there is no number
                left for one (NVME_CONNECT_BUSY).
        """
        if connect.record_format:
            raise RefusedError(NvmeRule.NVME_CONNECT_FORMAT, f"record format {connect.record_format}")
        if connect.subsystem_nqn not in {self.subsystem.nqn, DISCOVERY_NQN}:
            raise _wrong_field(_OF_NQN, f"subsystem {connect.subsystem_nqn!r}")
        if not 0 < connect.sq_size <= QUEUE_ENTRIES_MAX:
            raise _wrong_field(_OF_SQ_SIZE, f"a queue of {connect.sq_size + 1} entries")
        if not self._access.admits(connect.host_nqn):
            what = f"{connect.host_nqn!r} may not connect; see --allow-host and --host-key"
            raise RefusedError(NvmeRule.NVME_CONNECT_HOST, what)
        self._require_proved_names(connection, connect)
        return self._admit_queue(connection, connect) if connect.qid else self._admit_admin(connection, connect)

    @staticmethod
    def _require_proved_names(connection: Connection, connect: Connect) -> None:
        """Make sure that a host connects by the names that it has proved by TLS, if it has.

        Raises:
            RefusedError: these are others.
        """
        if connection.tls is None:
            return
        identity = connection.tls.identity
        assert identity is not None
        if connect.host_nqn != identity.host_nqn:
            what = f"{identity.host_nqn!r} may not connect as {connect.host_nqn!r}"
            raise RefusedError(NvmeRule.NVME_CONNECT_HOST, what)
        if connect.subsystem_nqn != identity.subsystem_nqn:
            raise _wrong_field(_OF_NQN, f"subsystem {connect.subsystem_nqn!r} with a key for another one")

    def refuse_connect(self, connection: Connection, command: Command, refused: RefusedError) -> Answer:
        """Log that *command*, a Connect command, is refused, and return its answer.

        The image notes it, for ``why``, where every host may connect or has proved its name by TLS. Any other host
        could fill the image's log.
        """
        log = self.log.warning if refused.rule is NvmeRule.NVME_CONNECT_HOST else self.log.info
        log("%s: %s; its connect is refused", connection.peer, refused.what)
        if connection.tls is not None or not self._access.hosts:
            self._namespace.refuse(command, refused)
        return refused.answer

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

    def _admit_admin(self, connection: Connection, connect: Connect) -> int:
        if connect.cntlid != DYNAMIC:
            raise _wrong_field(_OF_CNTLID, f"controller {connect.cntlid}, which is not left to the drive")
        is_discovery = connect.subsystem_nqn == DISCOVERY_NQN
        cntlid = self.subsystem.take_cntlid(is_discovery=is_discovery)
        if cntlid is None:
            raise RefusedError(NvmeRule.NVME_CONNECT_BUSY, "no number is left for a controller")
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
        return cntlid

    def _admit_queue(self, connection: Connection, connect: Connect) -> int:
        with self._lock:
            attached = self._controllers.get(connect.cntlid)
            if attached is None or not _is_same_host(attached.connect, connect):
                raise _wrong_field(_OF_CNTLID, f"controller {connect.cntlid}, which the host does not have")
            if not attached.controller.is_ready:
                raise RefusedError(NvmeRule.NVME_SEQUENCE, "an I/O queue of a controller that is not ready")
            is_free = 0 < connect.qid <= IO_QUEUES_MAX and connect.qid not in attached.queues
            if not is_free or connect.subsystem_nqn == DISCOVERY_NQN:
                raise _wrong_field(_OF_QID, f"queue {connect.qid}")
            if self._access.key_of(connect.host_nqn) is None:
                attached.queues[connect.qid] = connection
            connection.controller = attached.controller
        return connect.cntlid

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


def _wrong_field(offset: int, what: str) -> RefusedError:
    """Return the refusal of a Connect command, with the *offset* of its wrong field for the host."""
    return RefusedError(NvmeRule.NVME_CONNECT_FIELD, what, result=offset)


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
