"""The implementation of every verb: a request (JSON object + payload) in, replies (JSON object + payload) out.

Used by the control socket and by the command line on an image that no process holds. A request comes from outside: each
field is checked before use, and an error becomes a reply, never an exception.

A reply with ``error`` (one sentence) and ``exit_code`` (1 refused, 2 wrong usage) is the last one. A reply with
``more`` is followed by another.
"""

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from zonefs_emu.daemon import fields
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.daemon.extensions import Extensions
from zonefs_emu.daemon.fields import PORT_NAME, Request, Verb
from zonefs_emu.daemon.framing import PAYLOAD_BYTES_MAX, Json, Message, pack_zones
from zonefs_emu.device.counters import Counter
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.dump import dump
from zonefs_emu.device.port import Port
from zonefs_emu.device.refusals import Refusal
from zonefs_emu.device.rewind import rewind
from zonefs_emu.device.timing import SLOWEST_MAX
from zonefs_emu.errors import Status, UsageError, ZonedError, host_sentence
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.units import SECTOR_BYTES, Sector, to_bytes, to_sectors

if TYPE_CHECKING:
    from zonefs_emu.daemon.fault_verbs import FaultVerbs

#: Zones in one reply of a report: the device is locked for one portion.
ZONES_PER_REPLY: Final = 4096
REFUSALS_MAX: Final = 1000
TOP_MAX: Final = 1000
#: The longest read or write in one request; a client splits longer ones.
TRANSFER_BYTES_MAX: Final = PAYLOAD_BYTES_MAX
#: The most characters of a sentence that refuses a request. Two of the longest paths fit, and so does the sentence into
#: a reply, in which a character takes up to 12 bytes.
_SENTENCE_MAX: Final = 10_000
_OPERATIONS: Final = MappingProxyType(
    {
        operation.name.lower(): operation
        for operation in (Operation.OPEN, Operation.CLOSE, Operation.FINISH, Operation.RESET)
    }
)


class _Parts:
    """Objects that some verbs need besides the *device*, made when the first is used; shared by all clients.

    The imports are local: these modules have the rules of every front-end and the power-cut lab. ``info`` and
    ``report`` need none of that, and would otherwise spend most of their time on the imports.
    """

    def __init__(self, device: ZonedDevice, extensions: Extensions, front_ends: Callable[[], list[Json]]) -> None:
        self._device = device
        self._extensions = extensions
        self._front_ends = front_ends

    @cached_property
    def explainer(self) -> Explainer:
        """The explainer of refusals."""
        return self._extensions.explainer()

    @cached_property
    def verbs(self) -> Mapping[str, Verb]:
        """The verbs that break things on purpose, and those of front-ends."""
        of_front_ends = self._extensions.verbs()
        return {
            **self._fault_verbs.verbs,
            **{name: make(self._device, self._front_ends) for name, make in of_front_ends.items()},
        }

    @cached_property
    def _fault_verbs(self) -> "FaultVerbs":
        from zonefs_emu.daemon.fault_verbs import FaultVerbs  # noqa: PLC0415

        return FaultVerbs(self._device)

    def close(self) -> None:
        """End what the verbs have begun and did not finish."""
        self._fault_verbs.close()

    def make_all(self) -> None:
        """Make all parts now."""
        _ = self.explainer, self.verbs


class Verbs:
    """The verbs of one opened *device*, for one client, which sends one request at a time; see :meth:`for_client`.

    *front_ends* returns the running front-ends as ``info`` and ``stats`` show them, and *ended_front_ends* those that
    have ended. *pid* is that of the daemon, if there is one, and *path* is its image. *extensions* are the rules and
    verbs of front-ends.
    """

    def __init__(
        self,
        device: ZonedDevice,
        front_ends: Callable[[], list[Json]] = list,
        *,
        ended_front_ends: Callable[[], list[Json]] = list,
        pid: int | None = None,
        path: Path | None = None,
        extensions: Extensions = Extensions(),  # noqa: B008  (it cannot be changed)
    ) -> None:
        self._device = device
        self._parts = _Parts(device, extensions, front_ends)
        self._geometry = device.geometry
        self._front_ends = front_ends
        self._ended_front_ends = ended_front_ends
        self._pid = pid
        self._path = path
        # One lock for all clients: two writers at the write pointer must not use the same one.
        self._placing = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        # Each client has a port of its own, because its refusals are read after the command and must be its own.
        self._port: Port = self._device.port(PORT_NAME, VIRTIO)
        self._verbs: Mapping[str, Verb] = {
            "info": self._info,
            "report": self._report,
            "manage": self._manage,
            "read": self._read,
            "write": self._write,
            "append": self._append,
            "set-cond": self._set_cond,
            "excursion": self._excursion,
            "stats": self._stats,
            "why": self._why,
            "flush": self._flush,
            "dump": self._dump,
            "rewind": self._rewind,
            "power-cycle": self._power_cycle,
        }

    def import_all(self) -> None:
        """Import what the verbs need besides the device.

        A daemon does that when it starts, because later an upgrade may replace the files of its modules.
        """
        self._parts.make_all()

    def for_client(self) -> "Verbs":
        """Return the same verbs for another client; the two may be used by two threads.

        So no client waits for a command of another client, which an injected delay or the host's disk can make long.
        """
        # The parts are made now, so that two threads do not make them at once.
        self.import_all()
        other = copy.copy(self)
        other._begin()  # noqa: SLF001  (of the same class)
        return other

    def close(self) -> None:
        """End what a verb has begun and goes on after its reply, because the device is about to be closed."""
        self._parts.close()

    def contain(self, where: str, error: Exception) -> Message:
        """Note the unforeseen *error*, met in *where* (``verb read``); return the reply."""
        self._device.unforeseen.contain(PORT_NAME, where, error)
        sentence = f"internal error: {type(error).__name__}: {error}; the daemon's log has the traceback"
        return _refusal(sentence, 1)

    def execute(self, request: Request, payload: bytes) -> Generator[Message]:
        """Yield the replies to *request*; a caller that needs no more of them closes the generator."""
        try:
            name = request.get("verb")
            verb = self._verbs.get(name) if isinstance(name, str) else None
            if verb is None:
                verb = self._further_verb(name)
            yield from verb(request, payload)
        except UsageError as error:
            yield _refusal(str(error), error.exit_code)
        except ZonedError as error:
            yield _refusal(str(error), 1)
        except OSError as error:
            # An error of the host ends this request, and not the daemon.
            yield _refusal(host_sentence(error), 1)

    def _further_verb(self, name: Json) -> Verb:
        verbs = self._parts.verbs
        if not isinstance(name, str) or name not in verbs:
            message = f"there is no verb {name!r}: there are {', '.join((*self._verbs, *verbs))}"
            raise UsageError(message)
        return verbs[name]

    # -- looking ----------------------------------------------------------------------------------------------

    def _info(self, _request: Request, _payload: bytes) -> Iterator[Message]:
        geometry, device = self._geometry, self._device
        conventional: list[Json] = [[first, count] for first, count in geometry.conventional]
        info: dict[str, Json] = {
            "uuid": str(device.uuid),
            "label": device.label,
            "sector_bytes": SECTOR_BYTES,
            "size": geometry.size,
            "nr_zones": geometry.nr_zones,
            "zone_size": geometry.zone_size,
            "zone_capacity": geometry.zone_capacity,
            "nr_conventional": geometry.nr_conventional,
            "conventional": conventional,
            "block_size_bytes": geometry.block_size_bytes,
            "write_granularity": geometry.write_granularity,
            "max_open_zones": geometry.max_open_zones,
            "max_active_zones": geometry.max_active_zones,
            "max_append": geometry.max_append,
            "extension_bytes": geometry.extension_bytes,
            "zrwa_size": geometry.zrwa_size,
            "zrwa_granularity": geometry.zrwa_granularity,
            "max_zrwa": geometry.max_zrwa,
            "active_excursions": geometry.active_excursions,
            "nr_open": device.nr_open,
            "nr_active": device.nr_active,
            "recovery": device.image.recovery,
            "poison": device.image.poison,
            "observers_off": {**device.unforeseen.observers_off},
            "pid": self._pid,
            "path": None if self._path is None else str(self._path),
            "front_ends": self._front_ends(),
            "ended_front_ends": self._ended_front_ends(),
        }
        yield info, b""

    def _report(self, request: Request, _payload: bytes) -> Iterator[Message]:
        nr_zones = self._geometry.nr_zones
        first = fields.number(request, "zone_no", maximum=nr_zones, default=0)
        left = min(fields.number(request, "count", default=nr_zones), nr_zones)
        conds = fields.conditions(request)
        while left:
            zones = self._port.report(first, min(left, ZONES_PER_REPLY), conds)
            if not zones:
                break
            left -= len(zones)
            first = zones[-1].zone_no + 1
            yield {"more": True}, pack_zones(zones)
        yield {}, b""

    def _stats(self, request: Request, _payload: bytes) -> Iterator[Message]:
        device = self._device
        if "zone_no" in request:
            zone_no = self._zone_no(request)
            zone: dict[str, Json] = {**device.counters.zone(zone_no)}
            self._require_counters()
            yield {"zone_no": zone_no, "zone": zone}, b""
            return
        reply: dict[str, Json] = {"device": {**device.statistics()}, "front_ends": self._front_ends()}
        reply["observers_off"] = {**device.unforeseen.observers_off}
        if device.timing is not None:
            reply["timing"] = cast("Json", device.timing.statistics())
        if "top" in request:
            name = request.get("by", "resets")
            if not isinstance(name, str) or name.upper() not in Counter.__members__:
                message = (
                    f"there is no counter {name!r}: there are {', '.join(member.name.lower() for member in Counter)}"
                )
                raise UsageError(message)
            count = fields.number(request, "top", minimum=1, maximum=TOP_MAX)
            reply["top"] = [
                {"zone_no": zone_no, name: number}
                for zone_no, number in device.counters.top(Counter[name.upper()], count)
            ]
            self._require_counters()
        yield reply, b""

    def _require_counters(self) -> None:
        """Raise UsageError if the counters are switched off and have no numbers."""
        if self._device.counters.switch.error is not None:
            reason = self._device.unforeseen.observers_off["the counters"]
            message = f"there are no counters: they are switched off ({reason})"
            raise UsageError(message, exit_code=1)

    def _why(self, request: Request, _payload: bytes) -> Iterator[Message]:
        if "slow" in request:
            yield {"slow": self._slowest(fields.number(request, "slow", minimum=1, maximum=SLOWEST_MAX))}, b""
            return
        count = fields.number(request, "count", minimum=1, maximum=REFUSALS_MAX, default=1)
        after = fields.number(request, "after", default=0)
        last = self._device.refusals.last(count, after=after)
        refusals: list[Json] = [self._refusal_record(refusal) for refusal in last]
        yield {"refusals": refusals}, b""

    def _slowest(self, count: int) -> list[Json]:
        timing = self._device.timing
        if timing is None:
            message = "commands of this image are not timed: mount, serve or attach it with --timing"
            raise UsageError(message, exit_code=1)
        return [
            {
                "operation": done.operation.name.lower(),
                "zone_no": done.zone_no,
                "nr_sectors": done.nr_sectors,
                "begin_ns": done.begin_ns,
                "latency_ns": done.latency_ns,
                "waited_for": done.waited_for.value,
                "waited_ns": done.waited_ns,
                "sentence": str(done),
            }
            for done in timing.slowest(count)
        ]

    def _refusal_record(self, refusal: Refusal) -> dict[str, Json]:
        holders: list[Json] = list(refusal.holders)
        codes: dict[str, Json] = {**self._parts.explainer.answers(refusal)}
        operation = refusal.operation
        has_zone = refusal.zone_no >= 0
        return {
            "seq": refusal.seq,
            "time": datetime.fromtimestamp(refusal.time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
            "front_end": refusal.front_end,
            "operation": None if operation is None else operation.name.lower(),
            "request": refusal.request or None,
            "status": refusal.status.name,
            "rule": self._parts.explainer.name(refusal),
            "zone_no": refusal.zone_no if has_zone else None,
            "cond": refusal.cond.name if has_zone else None,
            "wp": refusal.wp if has_zone else None,
            "sector": None if operation is None else refusal.sector,
            "nr_sectors": None if operation is None else refusal.nr_sectors,
            "nr_open": refusal.nr_open,
            "nr_active": refusal.nr_active,
            "holders": holders,
            "answers": codes,
            "sentence": self._parts.explainer.explain_all(refusal, self._geometry),
        }

    # -- data -------------------------------------------------------------------------------------------------

    def _read(self, request: Request, _payload: bytes) -> Iterator[Message]:
        sector = fields.number(request, "sector")
        nr_sectors = fields.number(request, "nr_sectors", minimum=1, maximum=to_sectors(TRANSFER_BYTES_MAX))
        data = bytearray(to_bytes(nr_sectors))
        self._ask(lambda: self._port.read(sector, nr_sectors, [data]))
        yield {}, bytes(data)

    def _write(self, request: Request, payload: bytes) -> Iterator[Message]:
        nr_sectors = self._whole_blocks(payload)
        if "sector" in request:
            sector = fields.number(request, "sector")
            self._ask(lambda: self._port.write(sector, nr_sectors, [payload]))
        else:
            sector = self._write_at_wp(self._zone_no(request), nr_sectors, payload)
        yield {"sector": sector, "nr_sectors": nr_sectors}, b""

    def _write_at_wp(self, zone_no: int, nr_sectors: int, payload: bytes) -> Sector:
        """Write at the write pointer of *zone_no*; return the first sector of the data."""
        delays_ns: list[int] = []
        with self._port.refusals.collect() as refused, self._placing:
            # An injected delay defers this answer only, and not the requests that wait for the lock.
            self._port.defer = delays_ns.append
            try:
                sector = self._port.zone(zone_no).wp
                status = self._port.write(sector, nr_sectors, [payload])
            finally:
                self._port.defer = None
        for delay_ns in delays_ns:
            self._device.sleep_ns(delay_ns)
        self._require(status, refused)
        return sector

    def _append(self, request: Request, payload: bytes) -> Iterator[Message]:
        nr_sectors = self._whole_blocks(payload)
        start = self._geometry.zone_start(self._zone_no(request))
        with self._port.refusals.collect() as refused:
            status, append_sector = self._port.append(start, nr_sectors, [payload])
        self._require(status, refused)
        yield {"append_sector": append_sector, "nr_sectors": nr_sectors}, b""

    def _flush(self, _request: Request, _payload: bytes) -> Iterator[Message]:
        self._ask(self._port.flush)
        yield {}, b""

    def _dump(self, request: Request, _payload: bytes) -> Iterator[Message]:
        """Copy the image; all replies but the last one report the progress."""
        path = fields.path(request, "path")
        with closing(dump(self._device, path)) as progress:
            for nr_bytes in progress:
                yield {"more": True, "done": to_sectors(nr_bytes)}, b""
        yield {}, b""

    def _rewind(self, request: Request, _payload: bytes) -> Iterator[Message]:
        rewind(self._device, fields.path(request, "path"))
        yield {}, b""

    # -- zones ------------------------------------------------------------------------------------------------

    def _manage(self, request: Request, _payload: bytes) -> Iterator[Message]:
        name = request.get("operation")
        operation = _OPERATIONS.get(name) if isinstance(name, str) else None
        if operation is None:
            message = f"there is no zone operation {name!r}: there are {', '.join(_OPERATIONS)}"
            raise UsageError(message)
        if request.get("all") is True:
            self._ask(lambda: self._port.manage_all(operation))
        else:
            zone_no = self._zone_no(request)
            count = fields.number(request, "count", minimum=1, default=1)
            nr_zones = self._geometry.nr_zones
            if zone_no + count > nr_zones:
                message = (
                    f"there are no zones {zone_no} to {zone_no + count - 1}: the device has zones 0 to {nr_zones - 1}"
                )
                raise UsageError(message, exit_code=1)
            self._ask(lambda: self._port.manage(operation, self._geometry.zone_start(zone_no), count))
        yield {}, b""

    def _set_cond(self, request: Request, _payload: bytes) -> Iterator[Message]:
        zone_no = self._zone_no(request)
        cond = fields.condition(request.get("cond"))
        self._ask(lambda: self._port.set_cond(zone_no, cond))
        yield {}, b""

    def _excursion(self, request: Request, _payload: bytes) -> Iterator[Message]:
        zone_no = self._zone_no(request)
        self._ask(lambda: self._port.finish_by_controller(zone_no))
        yield {}, b""

    def _power_cycle(self, _request: Request, _payload: bytes) -> Iterator[Message]:
        self._port.power_cycle()
        yield {}, b""

    # -- what verbs share -------------------------------------------------------------------------------------

    def _ask(self, command: Callable[[], Status]) -> None:
        """Carry out *command*, one of the port's.

        Raises:
            UsageError: it was refused, with the device's own sentence.
        """
        with self._port.refusals.collect() as refused:
            status = command()
        self._require(status, refused)

    def _require(self, status: Status, refused: Sequence[Refusal]) -> None:
        """Raise UsageError with the device's own sentence if *status* is a refusal, the last of *refused*."""
        if not status:
            return
        refusal = refused[-1]
        # The prefix would name the command line as the front-end.
        sentence = self._parts.explainer.explain(refusal, self._geometry)
        raise UsageError(sentence.removeprefix(f"{refusal.front_end}: "), exit_code=1)

    def _zone_no(self, request: Request) -> int:
        nr_zones = self._geometry.nr_zones
        zone_no = fields.number(request, "zone_no")
        if zone_no >= nr_zones:
            message = f"there is no zone {zone_no}: the device has zones 0 to {nr_zones - 1}"
            raise UsageError(message, exit_code=1)
        return zone_no

    def _whole_blocks(self, payload: bytes) -> int:
        """Return the number of sectors in *payload*; raise UsageError if that is not a whole number of blocks."""
        block = self._geometry.block_size_bytes
        if not payload or len(payload) % block:
            message = f"{len(payload)} bytes are not a whole number of blocks of {block} bytes"
            raise UsageError(message, exit_code=1)
        return to_sectors(len(payload))


def _refusal(sentence: str, exit_code: int) -> Message:
    """Return the reply that refuses a request. A sentence with a value of the request in it may have any length."""
    if len(sentence) > _SENTENCE_MAX:
        sentence = f"{sentence[:_SENTENCE_MAX]}..."
    return {"error": sentence, "exit_code": exit_code}, b""
