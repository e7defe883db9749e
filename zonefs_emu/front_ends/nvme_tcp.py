"""An NVMe ZNS drive at TCP sockets, as a front-end of a session."""

import contextlib
import ipaddress
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from zonefs_emu.daemon.session import Session
from zonefs_emu.errors import UsageError, host_sentence
from zonefs_emu.front_ends.own_thread import run_until_stopped
from zonefs_emu.nvme.subsystem import DISCOVERY_NQN, Subsystem, require_nqn
from zonefs_emu.nvme_tcp import host_keys, tls_keys
from zonefs_emu.nvme_tcp.host_keys import OPEN, Access, DhchapKey, parse_key
from zonefs_emu.nvme_tcp.server import DEFAULT_PORT, NvmeTcpServer, listen
from zonefs_emu.nvme_tcp.tls_keys import TlsKey, parse_tls_key
from zonefs_emu.nvme_tcp.tls_stream import missing_tls

_PORT_MAX: Final = 65535
#: Where a drive is offered if no address is given.
LOOPBACK: Final = f"127.0.0.1:{DEFAULT_PORT}"
#: Stores a TLS key in the keyring of the kernel.
_STORE_KEY: Final = ("nvme", "check-tls-key", "--insert", "--identity=1")
#: The most bytes of a file that are read for a key.
_KEY_FILE_BYTES_MAX: Final = 4096
#: A key of any kind where the name of its file belongs; messages have that name.
_KEY_AFTER_AT: Final = re.compile(rf"@\s*({host_keys.FORM.name}|{tls_keys.FORM.name}):", re.IGNORECASE)
_Key = TypeVar("_Key")


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

    *insecure*: the user accepts hosts on other machines without proof. Only TLS encrypts.

    Raises:
        UsageError: *text* is no address, or other machines can reach it and hosts need no key.
    """
    address = parse_address(text)
    if not address.is_loopback and not access.is_authenticated and not insecure:
        names = [nqn for nqn, key in access.hosts.items() if key is None]
        who = f"{names[0]} has" if names else "hosts have"
        message = (
            f"{address} can be reached from other machines, and {who} no key: give --host-key or --tls-key, serve at "
            "127.0.0.1 or [::1], or give --insecure"
        )
        raise UsageError(message)
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyOption(Generic[_Key]):
    """An option for keys. *begin*: of the text of a key; *parse*: returns the key in a text."""

    name: str
    begin: str
    parse: Callable[[str], _Key]

    def split(self, text: str) -> tuple[str, str]:
        """Return the name of the host in *text*, "" if there is none, and the text of its key or @FILE.

        A name may contain "=", so the text after an "=" decides where the name ends. Messages repeat the name only,
        which has no part of a key.

        Raises:
            UsageError: there is no key or file, or the name is not one of NVMe.
        """
        found = re.fullmatch(rf"(?:(?!@)((?:(?!{self.begin}).)+?)=)?(@.+|{self.begin}.*)", text, re.DOTALL)
        if found is None:
            message = f"{self.name} must be NQN=@FILE, where the first line of FILE has the key, or NQN={self.begin}…"
            raise UsageError(message)
        if found[1]:
            require_nqn(found[1])
        return found[1] or "", found[2]

    def key(self, text: str, host_nqn: str = "") -> _Key:
        """Return the key in *text*, or in the file of @FILE.

        Raises:
            UsageError: the file cannot be read, or there is no key; with the option and *host_nqn*.
        """
        try:
            if _KEY_AFTER_AT.match(text):
                message = "the text after @ must be the name of a file, but it looks like a key: leave out the @"
                raise UsageError(message)
            if text.startswith("@"):
                with Path(text[1:]).open("rb") as file:
                    text = file.read(_KEY_FILE_BYTES_MAX).decode("ascii", "replace").partition("\n")[0]
            return self.parse(text)
        except OSError as error:
            message = host_sentence(error)
        except UsageError as error:
            message = str(error)
        raise UsageError(f"{self.name} {host_nqn}".rstrip() + f": {message}")


_HOST_KEY: Final = _KeyOption(name="--host-key", begin=f"{host_keys.FORM.name}:", parse=parse_key)
_CONTROLLER_KEY: Final = _KeyOption(name="--controller-key", begin=f"{host_keys.FORM.name}:", parse=parse_key)
_TLS_KEY: Final = _KeyOption(name="--tls-key", begin=f"{tls_keys.FORM.name}:", parse=parse_tls_key)


def make_access(
    hosts: Sequence[str], host_key_texts: Sequence[str], controller_key: str, tls_key_texts: Sequence[str] = ()
) -> Access:
    """Return the access rules: *hosts* need no key; those of *host_key_texts*, NQN=KEY or NQN=@FILE, need theirs.

    *controller_key*: KEY, @FILE or "". *tls_key_texts*: as *host_key_texts*, for TLS; one without NQN= is for all hosts
    that have no other.

    Raises:
        UsageError: a text is not of that form, a file cannot be read, or a key is invalid; a host could never connect;
            this Python has no TLS with such keys. No message has a part of a key.
    """
    for nqn in hosts:
        require_nqn(nqn)
    found: dict[str, DhchapKey | None] = dict.fromkeys(hosts)
    for text in host_key_texts:
        nqn, key = _HOST_KEY.split(text)
        if not nqn:
            message = "--host-key must be NQN=@FILE: a key is for one host"
            raise UsageError(message)
        if found.get(nqn) is not None:
            message = f"{nqn} has two keys: give one --host-key for each host"
            raise UsageError(message)
        found[nqn] = _HOST_KEY.key(key, nqn)
    if controller_key and not host_key_texts:
        message = "--controller-key is for hosts that have a key themselves: give --host-key as well"
        raise UsageError(message)
    for_tls = _tls_keys(tls_key_texts)
    if for_tls and "" not in for_tls:
        lost = [nqn for nqn in found if nqn not in for_tls]
        if lost:
            message = f"{lost[0]} has no TLS key, without which it could never connect: give --tls-key for it as well"
            raise UsageError(message)
    if found or "" not in for_tls:
        found = dict.fromkeys(nqn for nqn in for_tls if nqn) | found
    drive = _CONTROLLER_KEY.key(controller_key) if controller_key else None
    return Access(hosts=found, controller_key=drive, tls_keys=for_tls)


def _tls_keys(texts: Sequence[str]) -> dict[str, TlsKey]:
    """Return the keys for TLS by the names of hosts, "" for all other hosts."""
    lack = missing_tls() if texts else ""
    if lack:
        message = f"--tls-key needs Python 3.13 or later: {lack}; use a newer Python, or --host-key and a tunnel"
        raise UsageError(message)
    found: dict[str, TlsKey] = {}
    for text in texts:
        nqn, key = _TLS_KEY.split(text)
        if nqn in found:
            message = f"{nqn or 'any other host'} has two keys: give one --tls-key for each host"
            raise UsageError(message)
        found[nqn] = _TLS_KEY.key(key, nqn)
    return found


def exposed_key_files(
    host_key_texts: Sequence[str], controller_key: str, tls_key_texts: Sequence[str] = ()
) -> list[Path]:
    """Return the files with keys that every user of this machine may read; the arguments are those of make_access.

    They are used all the same: a refusal, as of ssh, would break set-ups in which the directory protects the file. A
    group that may read a file is meant to. A pipe (``@<(…)``) is not such a file.
    """
    texts = [_HOST_KEY.split(text)[1] for text in host_key_texts]
    texts += [controller_key, *(_TLS_KEY.split(text)[1] for text in tls_key_texts)]
    paths = dict.fromkeys(Path(text[1:]) for text in texts if text.startswith("@"))
    modes = [(path, path.stat().st_mode) for path in paths]
    return [path for path, mode in modes if stat.S_ISREG(mode) and mode & stat.S_IROTH]


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

        A host with a key has lines of its own, with the words KEY and TLS-KEY in place of its keys. ``nvme discover``
        takes a TLS key from the keyring of the kernel alone (seen with nvme-cli 2.16), where ``nvme check-tls-key``
        stores it.
        """
        place = ["-t", "tcp", "-a", self.address.host, "-s", str(self.address.port)]
        access = self._access
        names = [nqn for nqn in {**access.hosts, **access.tls_keys} if nqn]
        discovering, connecting = [], []
        for nqn in [*names, ""] if "" in access.tls_keys and not access.hosts else names:
            name = ["--hostnqn", nqn] if nqn else []
            tls = ["--tls", "--tls-key", "TLS-KEY"] if access.needs_tls else []
            proof = ["--dhchap-secret", "KEY"] if access.key_of(nqn) else []
            if tls or proof:
                connecting.append([*name, *tls, *proof])
            if tls:
                store = [*_STORE_KEY, *name, "--subsysnqn", DISCOVERY_NQN, "--keydata", "TLS-KEY"]
                discovering += [store, ["nvme", "discover", *place, *name, "--tls"]]
        return [
            *(discovering or [["nvme", "discover", *place]]),
            *(["nvme", "connect", *place, *options, "-n", self.nqn] for options in connecting or [[]]),
        ]

    async def __call__(self, session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        subsystem = Subsystem([session.device, *session.others], nqn=self._nqn, serial=self._serial)
        self.nqn = subsystem.nqn
        for host in self._access.tls_keys:
            # A host has an identity for the drive, and another one for the discovery service.
            longest = max(self.nqn, DISCOVERY_NQN, key=lambda name: len(name.encode()))
            if len(host.encode()) + len(longest.encode()) > tls_keys.NAMES_BYTES_MAX:
                message = (
                    f"{host or 'the name of any host'} and {longest} are too long for TLS, which takes "
                    f"{tls_keys.NAMES_BYTES_MAX} bytes of both together: give shorter names"
                )
                raise UsageError(message)
        sockets = listen(self.address.host, self.address.port)
        self.address = self.address._replace(port=sockets[0].getsockname()[1])
        server = NvmeTcpServer(subsystem, sockets, session.device.unforeseen, access=self._access)
        with session.register("nvme-tcp", str(self.address), server.statistics):
            await run_until_stopped(server.run, server.stop, task_status.started)
