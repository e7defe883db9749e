"""The verb ``mkfs``: makes a zonefs as mkzonefs does.

:mod:`zonefs_emu.daemon.verbs` says what a verb is.
"""

import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

from zonefs_emu.daemon import fields
from zonefs_emu.daemon.fields import Request
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.device.port import Port
from zonefs_emu.errors import UsageError
from zonefs_emu.fs.mkfs import examine, format_device, parse_features, report_lines
from zonefs_emu.fs.signature import find_signature


class Formatter:
    """Makes file systems on one device, for one client at a time: two would mix theirs."""

    def __init__(self) -> None:
        self._formatting = threading.Lock()

    def mkfs(self, request: Request, port: Port, front_ends: Callable[[], list[Json]]) -> Iterator[Message]:
        """Format through *port*, with mkzonefs' checks in its order; the first reply has its lines.

        *front_ends* returns those at work on the device, as ``info`` shows them.
        """
        features, label, name = (fields.text(request, key) for key in ("features", "label", "name"))
        super_block = parse_features(features, uuid=uuid4(), label=label)
        if not self._formatting.acquire(blocking=False):
            msg = f"{name} is being formatted by another client"
            raise UsageError(msg, exit_code=1)
        try:
            found = None if request.get("force") is True else find_signature(port)
            if found:
                msg = f"{name} appears to contain {found}: use the option '-f' to overwrite"
                raise UsageError(msg, exit_code=1)
            for front_end in front_ends():
                # A virtual machine may be using the disk as well, and its caches would not know.
                assert isinstance(front_end, dict)
                msg = f"{name} is in use ({front_end['name']} at {front_end['where']})"
                raise UsageError(msg, exit_code=1)
            facts = examine(port)
            lines: list[Json] = list(report_lines(facts, super_block, name))
            yield {"more": True, "lines": lines}, b""
            format_device(port, super_block)
        finally:
            self._formatting.release()
        yield {}, b""
