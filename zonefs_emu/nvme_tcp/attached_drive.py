"""A drive that this process serves to the kernel of the same host, over the loopback interface.

Every user of the machine can reach the socket, so host and drive prove their names by keys that are made for this
connection only. A process that takes over from a killed one reads the keys from the kernel.

Linux asks a target for proof only if the target asks for proof itself. So it would accept any process that listens at
the port of a killed one, and the port is therefore one at which only root may listen. Any free port was rejected:
another user could listen there after the end of the process, and would receive the data that is written.
"""

import contextlib
import secrets
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.nvme.subsystem import Subsystem, nqn_of
from zonefs_emu.nvme_tcp import kernel_host
from zonefs_emu.nvme_tcp.host_keys import Access, DhchapKey
from zonefs_emu.nvme_tcp.kernel_host import Credentials, KernelController
from zonefs_emu.nvme_tcp.server import NvmeTcpServer, listen

_ADDRESS: Final = "127.0.0.1"
#: Only root may listen at these ports. Lower ports belong to services, of which a host's list (/etc/services) may lack
#: some.
_PORTS: Final[Sequence[int]] = range(600, 1024)


class AttachedDrive:
    """The *device* as a disk of this kernel. *ended* is called on any thread when it cannot be served any more."""

    def __init__(self, device: ZonedDevice, *, nr_queues: int, ended: Callable[[], None]) -> None:
        """Listen at a free port, or at that of the killed process whose controller the kernel still has.

        Raises:
            UsageError: NVMe cannot express the geometry of *device*, or no port can be used.
        """
        self.failure: BaseException | None = None
        self._device = device
        self._nr_queues = nr_queues
        self._ended = ended
        self._subsystem = Subsystem([device])
        left = kernel_host.connected(self._subsystem.nqn)
        self._controller: KernelController | None = left[0] if left else None
        self._credentials = left[0].credentials if left else new_credentials()
        access = Access(
            hosts={self._credentials.host_nqn: self._credentials.host_key},
            controller_key=self._credentials.controller_key,
        )
        sockets = listen(_ADDRESS, left[0].port) if left else _listen()
        self._port: int = sockets[0].getsockname()[1]
        self._server = NvmeTcpServer(self._subsystem, sockets, device.unforeseen, access=access)
        self._thread = threading.Thread(target=self._serve, name="nvme-tcp")

    def start(self) -> Path:
        """Serve, and connect the kernel or wait until it has found this process; return the node of the disk.

        Raises:
            UsageError: the kernel does not connect, or makes no disk; the kernel is disconnected and the server ended
                then.
        """
        self._thread.start()
        nqn = self._subsystem.nqn
        try:
            if self._controller is None:
                self._controller = kernel_host.connect(nqn, self._port, self._credentials, nr_queues=self._nr_queues)
            return kernel_host.wait_for_disk(self._controller, nqn, str(self._device.uuid))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Disconnect the kernel, which first sends its pending requests, and end."""
        if self._controller is not None:
            with contextlib.suppress(OSError):  # it is gone
                kernel_host.disconnect(self._controller)
        if self._thread.is_alive():
            self._server.stop()
        self._thread.join()

    def statistics(self) -> Mapping[str, int]:
        """Return the counters of the server."""
        return self._server.statistics()

    def _serve(self) -> None:
        try:
            self._server.run()
        except Exception as error:  # the boundary of the front-end: the session ends with the reason
            self.failure = error
            self._ended()


def _listen() -> list[socket.socket]:
    """Return a socket that listens at a free port of :data:`_PORTS` that has no service.

    Raises:
        UsageError: there is none, or the process may not listen there.
    """
    failure: UsageError | None = None
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        if not _has_service(port):
            try:
                return listen(_ADDRESS, port)
            except UsageError as error:
                failure = error
    raise failure or UsageError(
        "no port below 1024 is free, and the drive must use one that only root may listen at", exit_code=1
    )


def _has_service(port: int) -> bool:
    try:
        socket.getservbyport(port, "tcp")
    except OSError:
        return False
    return True


def new_credentials() -> Credentials:
    """Return a name of this host and keys, which no other connection has."""
    keys = [DhchapKey(secret=secrets.token_bytes(32), hash_id=1) for _ in range(2)]
    return Credentials(host_nqn=nqn_of(uuid.uuid4()), host_key=keys[0], controller_key=keys[1])


def left_behind(image_uuid: str) -> list[str]:
    """Return the nodes of the disks that a killed process has left of the image *image_uuid*."""
    nqn = nqn_of(uuid.UUID(image_uuid))
    if not kernel_host.connected(nqn):
        return []
    node = kernel_host.disk(nqn, image_uuid)
    return [str(node)] if node else []
