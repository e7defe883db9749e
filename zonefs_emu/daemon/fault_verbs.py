"""The verbs that break things on purpose: injected faults and the power-cut lab.

Requests come from outside; :mod:`zonefs_emu.daemon.verbs` says what a verb is.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from zonefs_emu.daemon import fields
from zonefs_emu.daemon.fields import Request, Verb
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.device.cut_images import Moment, Plan
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault, UnknownFault
from zonefs_emu.device.powercut import PowerCutLab
from zonefs_emu.errors import ImageError, UsageError, host_sentence

NR_IMAGES_MAX: Final = 10_000
#: Images in one reply: their paths may have 4096 bytes each, and a byte may take six in the reply.
_IMAGES_PER_REPLY: Final = 32
_MOMENTS: Final = {moment.value: moment for moment in Moment}


class FaultVerbs:
    """The verbs of one opened *device*; each yields its replies."""

    def __init__(self, device: ZonedDevice) -> None:
        self._device = device
        self._lab: PowerCutLab | None = None
        #: Whether the lab stays when its jobs are done, for a power cut that may be requested later.
        self._watching = False
        # All clients share the lab. Without the lock, of two that begin at once one would leave a lab that watches on.
        self._using = threading.Lock()
        self.verbs: Mapping[str, Verb] = {
            "inject": self._inject,
            "faults": self._faults,
            "remove-fault": self._remove_fault,
            "crash": self._crash,
            "crash-watch": self._crash_watch,
            "crash-results": self._crash_results,
            "crash-end": self._crash_end,
        }

    # -- faults -----------------------------------------------------------------------------------------------

    def _inject(self, request: Request, _payload: bytes) -> Iterator[Message]:
        wanted = request.get("fault")
        if not isinstance(wanted, dict):
            message = "'fault' must be an object"
            raise UsageError(message)
        made = Fault.from_dict({name: value for name, value in wanted.items() if name not in ("id", "seen")})
        nr_zones = self._device.geometry.nr_zones
        if made.first_zone + made.nr_zones > nr_zones:
            message = (
                f"there are no zones up to {made.first_zone + made.nr_zones - 1}: the device has 0 to {nr_zones - 1}"
            )
            raise UsageError(message, exit_code=1)
        granularity = self._device.geometry.write_granularity
        if made.effect is Effect.PARTIAL and made.nr_sectors % granularity:
            message = f"{made.nr_sectors} sectors are not a multiple of the write granularity of {granularity} sectors"
            raise UsageError(message, exit_code=1)
        with _sentences():
            fault = _json(self._device.inject(made))
        yield {"fault": fault}, b""

    def _faults(self, _request: Request, _payload: bytes) -> Iterator[Message]:
        faults: list[Json] = [_json(entry) for entry in self._device.faults.entries]
        yield {"faults": faults}, b""

    def _remove_fault(self, request: Request, _payload: bytes) -> Iterator[Message]:
        fault_id = request.get("id")
        if not isinstance(fault_id, int):
            message = "'id' must be a number"
            raise UsageError(message)
        with _sentences():
            self._device.remove_fault(fault_id)
        yield {}, b""

    # -- power cuts -------------------------------------------------------------------------------------------

    def _crash(self, request: Request, _payload: bytes) -> Iterator[Message]:
        """Begin to write the images that a power cut could leave; ``crash-results`` lists those that were written."""
        plan = _plan(request)
        with self._using:
            self._require_idle()
            self._end_lab()
            with _sentences():
                self._lab = self._lab or PowerCutLab(self._device)
                self._lab.begin(plan)
            results = self._results(0)
        yield results, b""

    def _crash_watch(self, request: Request, _payload: bytes) -> Iterator[Message]:
        """Begin or end the recording of writes, from which a later ``crash`` makes its images."""
        watching = _flag(request, "on")
        with self._using:
            self._require_idle()
            with _sentences():
                if watching:
                    self._lab = self._lab or PowerCutLab(self._device)
            self._watching = watching
            self._end_lab()
        yield {}, b""

    def _require_idle(self) -> None:
        if self._lab is not None and not self._lab.is_done:
            message = "another 'crash' is writing images of this device: wait until it has ended, or interrupt it"
            raise UsageError(message, exit_code=1)

    def _crash_results(self, request: Request, _payload: bytes) -> Iterator[Message]:
        """List images that were written, from number *after* on, as many as fit into a reply."""
        first = fields.number(request, "after", default=0)
        with self._using:
            results = self._results(first)
        yield results, b""

    def _results(self, first: int) -> dict[str, Json]:
        lab = self._lab
        if lab is None:
            message = "no power-cut lab is running on this image"
            raise UsageError(message, exit_code=1)
        is_done = lab.is_done  # asked first: after that no image is written, and nothing fails
        if lab.failure:
            failure = lab.failure
            self._end_lab()
            raise UsageError(failure, exit_code=1)
        images: list[Json] = [
            {"path": str(image.path), "writes": image.nr_writes, "kept": image.nr_kept, "torn": image.torn_sectors}
            for image in lab.images[first : first + _IMAGES_PER_REPLY]
        ]
        is_last = first + len(images) >= len(lab.images)
        return {"images": images, "done": is_done and is_last, "writes_seen": lab.nr_seen}

    def _crash_end(self, _request: Request, _payload: bytes) -> Iterator[Message]:
        with self._using:
            self._end_lab()
        yield {}, b""

    def close(self) -> None:
        """End the lab, so that no image of it stays half written."""
        with self._using:
            self._watching = False
            self._end_lab()

    def _end_lab(self) -> None:
        if self._lab is not None and self._watching:
            self._lab.give_up()
        elif self._lab is not None:
            self._lab.close()
            self._lab = None


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn an error of the host into a sentence for the client."""
    try:
        yield
    except ImageError as error:
        raise UsageError(str(error), exit_code=1) from None
    except OSError as error:
        raise UsageError(host_sentence(error), exit_code=1) from None


def _json(entry: Fault | UnknownFault) -> dict[str, Json]:
    plain = entry.as_dict()
    assert all(isinstance(value, (int, str, list)) for value in plain.values())
    return plain  # type: ignore[return-value]  # as the assertion says


def _plan(request: Request) -> Plan:
    directory, at = fields.path(request, "directory"), request.get("at")
    if not isinstance(at, str) or at not in _MOMENTS:
        message = f"'at' must be one of {', '.join(_MOMENTS)}"
        raise UsageError(message)
    count = _number(request, "count", 1)
    if not 1 <= count <= NR_IMAGES_MAX:
        message = f"'count' must lie between 1 and {NR_IMAGES_MAX}"
        raise UsageError(message, exit_code=1)
    return Plan(
        directory=directory,
        at=_MOMENTS[at],
        count=count,
        seed=_number(request, "seed", 0),
        nr_writes=_number(request, "nr_writes", 1),
        torn=_flag(request, "torn"),
        reorder=_flag(request, "reorder"),
        every=_flag(request, "every"),
    )


def _number(request: Request, name: str, default: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        message = f"'{name}' must be a number from 0 on, not {value!r}"
        raise UsageError(message)
    return value


def _flag(request: Request, name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        message = f"'{name}' must be true or false, not {value!r}"
        raise UsageError(message)
    return value
