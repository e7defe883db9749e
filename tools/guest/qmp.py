"""QEMU's control protocol: one JSON object a line over a socket.

Source: QEMU, docs/interop/qmp-spec.rst.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

_RECEIVE_BYTES: Final = 65536

Message = dict[str, object]


class QmpError(Exception):
    """QEMU refused a command, or has gone; the message is its own."""


class QmpClient:
    """One connection, used by one thread; events are kept until they are asked for."""

    def __init__(self, connection: socket.socket, *, timeout: float) -> None:
        """Greet QEMU over *connection*, which the caller closes in the end; *timeout* in seconds.

        Raises:
            QmpError: QEMU has gone, or does not answer for *timeout* seconds.
        """
        self._socket = connection
        self._received = b""
        self._events: list[Message] = []
        self._nr_executed = 0
        self._receive_until(lambda message: "QMP" in message, timeout)
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30) -> object:
        """Run *command*; what it returns.

        Raises:
            QmpError: QEMU refuses it, has gone, or does not answer for *timeout* seconds.
        """
        self._nr_executed += 1
        number = self._nr_executed
        request = {"execute": command, "arguments": dict(arguments or {}), "id": number}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            message = f"QEMU has gone before {command}"
            raise QmpError(message) from error
        # By number: the late answer to a command that was given up must not be taken for this one's.
        answer = self._receive_until(lambda message: message.get("id") == number, timeout)
        match answer:
            case {"error": {"desc": str(description)}}:
                text = f"{command}: {description}"
                raise QmpError(text)
            case _:
                return answer.get("return")

    def wait_event(self, name: str, data: Mapping[str, object], *, timeout: float) -> Message:
        """Wait for the event *name* whose data include *data*, or take it from those that came already.

        Raises:
            QmpError: it does not come within *timeout* seconds.
        """

        def wanted(message: Message) -> bool:
            found = message.get("data")
            return message.get("event") == name and isinstance(found, dict) and data.items() <= found.items()

        for event in self._events:
            if wanted(event):
                self._events.remove(event)
                return event
        return self._receive_until(wanted, timeout)

    def _receive_until(self, wanted: Callable[[Message], bool], timeout: float) -> Message:
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                message: Message = json.loads(line)
                if wanted(message):
                    return message
                if "event" in message:
                    self._events.append(message)
                continue
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError:
                text = f"QEMU said nothing fitting for {timeout:g} s"
                raise QmpError(text) from None
            except OSError:
                data = b""
            if not data:
                text = "QEMU has closed its control socket"
                raise QmpError(text)
            self._received += data
