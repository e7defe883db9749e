"""The verb ``mkfs``: formats an image with zonefs, as mkzonefs does. It works with a daemon and without."""

import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

from zonefs_emu.daemon.fields import PORT_NAME, Request, text
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.mkfs import examine, format_device, parse_features, report_lines
from zonefs_emu.fs.signature import find_signature
from zonefs_emu.model.transitions import VIRTIO


class MkfsVerb:
    """The verb of one opened *device*. *front_ends* returns the running ones: a device in use is not formatted."""

    def __init__(self, device: ZonedDevice, front_ends: Callable[[], list[Json]]) -> None:
        self._device = device
        self._front_ends = front_ends
        # Without the lock, of two clients at once each would overwrite the file system of the other.
        self._formatting = threading.Lock()

    def __call__(self, request: Request, _payload: bytes) -> Iterator[Message]:
        """Format, with the checks of mkzonefs in their order; the first reply has the lines that mkzonefs prints.

        Raises:
            UsageError: the device has a file system or partition table and ``force`` is not set, a front-end or another
                client uses it, the options are wrong, or a command of formatting was refused.
        """
        features, label, name = (text(request, key) for key in ("features", "label", "name"))
        super_block = parse_features(features, uuid=uuid4(), label=label)
        if not self._formatting.acquire(blocking=False):
            message = f"{name} is being formatted by another client"
            raise UsageError(message, exit_code=1)
        port = self._device.port(PORT_NAME, VIRTIO)
        try:
            found = None if request.get("force") is True else find_signature(port)
            if found:
                message = f"{name} appears to contain {found}: use the option '-f' to overwrite"
                raise UsageError(message, exit_code=1)
            for front_end in self._front_ends():
                # A front-end of a virtual machine counts as well: the machine has caches of the disk.
                assert isinstance(front_end, dict)
                message = f"{name} is in use ({front_end['name']} at {front_end['where']})"
                raise UsageError(message, exit_code=1)
            facts = examine(port)
            lines: list[Json] = list(report_lines(facts, super_block, name))
            yield {"more": True, "lines": lines}, b""
            format_device(port, super_block)
        finally:
            self._formatting.release()
        yield {}, b""
