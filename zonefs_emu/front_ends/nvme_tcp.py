"""An NVMe ZNS drive at TCP sockets, as a front-end of a session."""

import contextlib
import ipaddress
from typing import Final, NamedTuple

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.own_thread import run_until_stopped
from zonefs_emu.nvme.subsystem import Subsystem
from zonefs_emu.nvme_tcp.server import DEFAULT_PORT, NvmeTcpServer, listen

_PORT_MAX: Final = 65535
#: Where a drive is offered if no address is given.
LOOPBACK: Final = f"127.0.0.1:{DEFAULT_PORT}"


class Address(NamedTuple):
    """Where hosts connect. *host*: a name, an IPv4 or an IPv6 address."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only processes of this machine can connect."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Return the address that *text* says: HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.

    Raises:
        UsageError: it says none.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        separator, port = rest[:1], rest[1:]
        is_good = bool(closed) and separator in {"", ":"}
    else:
        host, separator, port = text.partition(":")
        is_good = ":" not in port
    if not is_good or not host or (separator and not (port.isascii() and port.isdecimal() and int(port) <= _PORT_MAX)):
        message = f"{text!r} is no address: give HOST, HOST:PORT or [IPV6]:PORT, such as 127.0.0.1:{DEFAULT_PORT}"
        raise UsageError(message)
    return Address(host, int(port) if separator else DEFAULT_PORT)


def safe_address(text: str, *, insecure: bool) -> Address:
    """Return the address that *text* says, if only this machine can reach it or the user accepts others (*insecure*).

    Hosts are known by the names that they give themselves, and nothing is encrypted.

    Raises:
        UsageError: *text* is no address, or other machines can reach it.
    """
    address = parse_address(text)
    if not address.is_loopback and not insecure:
        message = (
            f"{address} can be reached from other machines, and hosts are neither authenticated nor encrypted: "
            "serve at 127.0.0.1 or [::1], or say --insecure"
        )
        raise UsageError(message)
    return address


class NvmeTcpFrontEnd:
    """The front-end of a session that offers its devices as an NVMe ZNS drive at *address*, a namespace each."""

    def __init__(
        self, address: Address, *, nqn: str = "", serial: str = "", allowed_hosts: frozenset[str] = frozenset()
    ) -> None:
        """*nqn* and *serial* are those of the image by default; without *allowed_hosts* every host may connect."""
        self.address = address
        self._nqn = nqn
        self._serial = serial
        self._allowed_hosts = allowed_hosts
        #: Of the subsystem, once it is served.
        self.nqn = nqn

    def host_commands(self) -> list[list[str]]:
        """Return the commands with which a Linux host finds the drive and connects to it; once it is served."""
        place = ["-t", "tcp", "-a", self.address.host, "-s", str(self.address.port)]
        return [["nvme", "discover", *place], ["nvme", "connect", *place, "-n", self.nqn]]

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        subsystem = Subsystem([session.device, *session.others], nqn=self._nqn, serial=self._serial)
        self.nqn = subsystem.nqn
        sockets = listen(self.address.host, self.address.port)
        self.address = self.address._replace(port=sockets[0].getsockname()[1])
        server = NvmeTcpServer(subsystem, sockets, session.device.unforeseen, allowed_hosts=self._allowed_hosts)
        with session.register("nvme-tcp", str(self.address), server.statistics):
            await run_until_stopped(server.run, server.stop, task_status.started)
