"""Messages to the service manager that started a daemon: it is ready, it serves these front-ends, it ends.

The protocol is that of sd_notify(3): one datagram of lines NAME=VALUE to the socket that $NOTIFY_SOCKET names. The
manual page describes it so that programs need no library. The packages that speak it are unmaintained or need the C
library of systemd for these few lines.
"""

import logging
import os
import socket
from typing import Final

from zonefs_emu.errors import printable

log = logging.getLogger(__name__)

VARIABLE: Final = "NOTIFY_SOCKET"
#: The manager may be slow, but the daemon does not wait for it.
_SEND_S: Final = 1.0


def notify_ready(status: str) -> None:
    """Say that the service is ready and, in one line, what it does."""
    _notify("READY=1", f"STATUS={printable(status)}")


def notify_status(status: str) -> None:
    """Say in one line what the service does from now on."""
    _notify(f"STATUS={printable(status)}")


def notify_stopping() -> None:
    """Say that the service has begun to end."""
    _notify("STOPPING=1")


def _notify(*assignments: str) -> None:
    """Send *assignments*. If the manager cannot be reached, the log says so and the daemon goes on."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    # Source: sd_notify(3): "If the first character of $NOTIFY_SOCKET is '@', the string is understood as Linux
    # abstract namespace socket."
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_SEND_S)
            peer.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.info("the service manager at %s cannot be notified: %s", os.environ[VARIABLE], error)
