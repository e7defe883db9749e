"""Adding devices to the vdpa bus and removing them, as ``vdpa dev add`` and ``vdpa dev del`` of iproute2 do.

The tool is not used, because few machines have it and two messages are enough.

Source: include/uapi/linux/{netlink,genetlink,vdpa}.h.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

_NETLINK_GENERIC: Final = 16
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_GENERIC: Final = struct.Struct("=BBH")  # command, version, reserved
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_F_REQUEST: Final = 1
_F_ACK: Final = 4
_ERROR: Final = 2
_CONTROL_FAMILY: Final = 16
_CONTROL_GET_FAMILY: Final = 3
_CONTROL_ATTR_FAMILY_ID: Final = 1
_CONTROL_ATTR_FAMILY_NAME: Final = 2
_VDPA_DEV_NEW: Final = 3
_VDPA_DEV_DEL: Final = 4
_VDPA_ATTR_MGMT_NAME: Final = 2
_VDPA_ATTR_DEV_NAME: Final = 4
_RECEIVE_BYTES: Final = 65536


def add(name: str) -> None:
    """Put the VDUSE device *name* on the vdpa bus; return when a driver has bound to it, or at once without a driver.

    Raises:
        OSError: ENOENT if the kernel has no vdpa bus (module vdpa), or the kernel refuses the device.
    """
    _call("vdpa", _VDPA_DEV_NEW, text(_VDPA_ATTR_MGMT_NAME, "vduse") + text(_VDPA_ATTR_DEV_NAME, name))


def remove(name: str) -> None:
    """Remove the device *name* from the vdpa bus; return when its driver has released it.

    Raises:
        OSError: ENODEV if there is no such device, or the kernel refuses.
    """
    _call("vdpa", _VDPA_DEV_DEL, text(_VDPA_ATTR_DEV_NAME, name))


def text(kind: int, value: str) -> bytes:
    """Return an attribute of type *kind* with the text *value*, padded to a multiple of 4 bytes."""
    data = value.encode() + b"\0"
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, value) of each attribute in *data*, up to the first malformed one."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4


def _call(family: str, command: int, payload: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC) as netlink:
        netlink.bind((0, 0))
        reply = _exchange(netlink, _CONTROL_FAMILY, _CONTROL_GET_FAMILY, text(_CONTROL_ATTR_FAMILY_NAME, family))
        numbers = [value for kind, value in attributes(reply[_GENERIC.size :]) if kind == _CONTROL_ATTR_FAMILY_ID]
        _exchange(netlink, int.from_bytes(numbers[0][:2], sys.byteorder), command, payload)


def _exchange(netlink: socket.socket, family: int, command: int, payload: bytes) -> bytes:
    """Send a command, wait for the kernel's acknowledgement, and return the last answer before it.

    Raises:
        OSError: the kernel acknowledges the command with an error.
    """
    body = _GENERIC.pack(command, 1, 0) + payload
    netlink.send(_HEADER.pack(_HEADER.size + len(body), family, _F_REQUEST | _F_ACK, 1, 0) + body)
    answer = b""
    while True:
        data = netlink.recv(_RECEIVE_BYTES)
        while data:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            message, data = data[_HEADER.size : length], data[-(-length // 4) * 4 :]
            if kind != _ERROR:
                answer = message
                continue
            code = -int.from_bytes(message[:4], sys.byteorder, signed=True)
            if code:
                raise OSError(code, os.strerror(code))
            return answer
