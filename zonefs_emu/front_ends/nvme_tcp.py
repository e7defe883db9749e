"""An NVMe ZNS drive at TCP sockets, as a front-end of a session."""

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError, host_sentence
from zonefs_emu.front_ends.own_thread import run_until_stopped
from zonefs_emu.nvme.subsystem import Subsystem, require_nqn
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access, DhchapKey, parse_key
from zonefs_emu.nvme_tcp.server import DEFAULT_PORT, NvmeTcpServer, listen

_PORT_MAX: Final = 65535
#: Where a drive is offered if no address is given.
LOOPBACK: Final = f"127.0.0.1:{DEFAULT_PORT}"
#: The most bytes of a file that are read for a key.
_KEY_FILE_BYTES_MAX: Final = 4096
_KEY_BEGIN: Final = "DHHC-1:"
#: A name may contain "=", so the text after an "=" decides where the name ends. Messages repeat the name only, which
#: has no part of a key.
_HOST_KEY: Final = re.compile(rf"((?:(?!{_KEY_BEGIN}).)+?)=(@.+|{_KEY_BEGIN}.*)", re.DOTALL)


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
    """Return the address in *text*: HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.

    Raises:
        UsageError: it is not of that form.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        separator, port = rest[:1], rest[1:]
        is_good = bool(closed) and separator in {"", ":"}
    else:
        host, separator, port = text.partition(":")
        is_good = ":" not in port
    if not is_good or not host or (separator and not (port.isascii() and port.isdecimal() and int(port) <= _PORT_MAX)):
        message = f"{text!r} is not an address: give HOST, HOST:PORT or [IPV6]:PORT, such as 127.0.0.1:{DEFAULT_PORT}"
        raise UsageError(message)
    return Address(host, int(port) if separator else DEFAULT_PORT)


def safe_address(text: str, access: Access, *, insecure: bool) -> Address:
    """Return the address in *text* if only this machine can reach it, or if every host must prove its name.

    *insecure*: the user accepts hosts on other machines without proof. Nothing is encrypted in any case.

    Raises:
        UsageError: *text* is no address, or other machines can reach it and hosts need no key.
    """
    address = parse_address(text)
    if not address.is_loopback and not access.is_authenticated and not insecure:
        names = [nqn for nqn, key in access.hosts.items() if key is None]
        who = f"{names[0]} has" if names else "hosts have"
        message = (
            f"{address} can be reached from other machines, and {who} no key: give --host-key, serve at 127.0.0.1 or "
            "[::1], or give --insecure"
        )
        raise UsageError(message)
    return address


def make_access(hosts: Sequence[str], host_keys: Sequence[str], controller_key: str) -> Access:
    """Return the access rules: *hosts* need no key; those of *host_keys*, NQN=KEY or NQN=@FILE, need theirs.

    *controller_key*: KEY, @FILE or "".

    Raises:
        UsageError: a text is not of that form, a file cannot be read, or a key is invalid. No message has a part of a
        key.
    """
    found: dict[str, DhchapKey | None] = dict.fromkeys(hosts)
    for text in host_keys:
        parts = _HOST_KEY.fullmatch(text)
        if parts is None:
            message = "--host-key must be NQN=@FILE, where the first line of FILE has the key, or NQN=DHHC-1:…"
            raise UsageError(message)
        nqn = parts[1]
        require_nqn(nqn)
        if found.get(nqn) is not None:
            message = f"{nqn} has two keys: give one --host-key for each host"
            raise UsageError(message)
        found[nqn] = _key(parts[2], f"--host-key {nqn}")
    if controller_key and not host_keys:
        message = "--controller-key is for hosts that have a key themselves: give --host-key as well"
        raise UsageError(message)
    return Access(hosts=found, controller_key=_key(controller_key, "--controller-key") if controller_key else None)


def _key(text: str, option: str) -> DhchapKey:
    """Return the key *text*, or that in the file of @FILE. Errors name *option*."""
    try:
        if text.startswith(f"@{_KEY_BEGIN}"):
            message = "the text after @ must be the name of a file, but it looks like a key: leave out the @"
            raise UsageError(message)
        if text.startswith("@"):
            with Path(text[1:]).open("rb") as file:
                text = file.read(_KEY_FILE_BYTES_MAX).decode("ascii", "replace").partition("\n")[0]
        return parse_key(text)
    except OSError as error:
        message = f"{option}: {host_sentence(error)}"
    except UsageError as error:
        message = f"{option}: {error}"
    raise UsageError(message)


class NvmeTcpFrontEnd:
    """The front-end of a session that serves its devices as namespaces of one NVMe ZNS drive at *address*."""

    def __init__(self, address: Address, *, nqn: str = "", serial: str = "", access: Access = OPEN) -> None:
        """*nqn* and *serial* are those of the image by default; *access* says which hosts may connect."""
        self.address = address
        self._nqn = nqn
        self._serial = serial
        self._access = access
        #: The name of the subsystem, known after the start.
        self.nqn = nqn

    def host_commands(self) -> list[list[str]]:
        """Return the commands with which a Linux host discovers the drive and connects to it; after the start.

        A host with a key has a line of its own, with the word KEY in place of the key.
        """
        place = ["-t", "tcp", "-a", self.address.host, "-s", str(self.address.port)]
        with_key = [
            ["--hostnqn", host, "--dhchap-secret", "KEY"] for host, key in self._access.hosts.items() if key is not None
        ]
        connect = ["nvme", "connect", *place]
        return [["nvme", "discover", *place], *([*connect, *each, "-n", self.nqn] for each in with_key or [[]])]

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        subsystem = Subsystem([session.device, *session.others], nqn=self._nqn, serial=self._serial)
        self.nqn = subsystem.nqn
        sockets = listen(self.address.host, self.address.port)
        self.address = self.address._replace(port=sockets[0].getsockname()[1])
        server = NvmeTcpServer(subsystem, sockets, session.device.unforeseen, access=self._access)
        with session.register("nvme-tcp", str(self.address), server.statistics):
            await run_until_stopped(server.run, server.stop, task_status.started)
