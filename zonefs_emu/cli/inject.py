"""``inject``: failures on demand."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from zonefs_emu.cli.common import SIZE, image_argument, info_of, json_option, number_of, refuse_options_beside, say_json
from zonefs_emu.cli.conditions import COND_WORDS
from zonefs_emu.cli.durations import DURATION
from zonefs_emu.daemon.client import Target, call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.faults import FAULTY
from zonefs_emu.errors import Status, UsageError
from zonefs_emu.front_ends.known import open_target
from zonefs_emu.model.zone import Condition
from zonefs_emu.units import SECTOR_BYTES

_EFFECTS: Final = (
    "fail", "partial", "readonly", "offline", "excursion", "delay", "lie", "recommend-reset", "recommend-finish",
)  # fmt: skip
_FAILURES: Final = tuple(status.name.lower().replace("_", "-") for status in Status if status)
#: How many characters of an unknown entry are shown.
_TEXT_MAX: Final = 200
#: Effects that act at once without an operation.
_AT_ONCE: Final = frozenset(("readonly", "offline", "excursion"))
#: Parameters of single effects.
_OPTIONS_OF: Final[Mapping[str, tuple[str, ...]]] = defaultdict(
    tuple, {"fail": ("status",), "partial": ("status", "size"), "delay": ("delay_ns", "seed"), "lie": ("size", "back")}
)
_ON_REPORT: Final = ("lie", "recommend-reset", "recommend-finish")


@click.command()
@image_argument
@click.argument("effect", required=False, type=click.Choice(_EFFECTS), metavar="[EFFECT]")
@click.option(
    "--on", "operations", multiple=True, metavar="OPERATION",
    type=click.Choice([operation.name.lower() for operation in FAULTY]),
    help="Operation that meets the fault: read, write, append, open, close, finish, reset, flush. May be repeated.",
)  # fmt: skip
@click.option(
    "--zone", "zone_no", type=click.IntRange(min=0), metavar="N", help="First zone of the fault. [default: all zones]"
)
@click.option("--count", type=click.IntRange(min=1), default=1, metavar="N", help="Number of zones from --zone on.")
@click.option(
    "--nth", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Act on the nth match."
)
@click.option("--every", is_flag=True, help="Act on every match from that one on.")
@click.option(
    "--status", type=click.Choice(_FAILURES), default="io-error", show_default=True, metavar="STATUS",
    help="What a failed operation answers: io-error, no-space, zone-full, open-resource, ...",
)  # fmt: skip
@click.option(
    "--size", type=SIZE, metavar="SIZE", help="partial: what is written before the failure; lie: by how much."
)
@click.option("--back", is_flag=True, help="lie: show the write pointer too low instead of too high.")
@click.option("--delay", "delay_ns", type=DURATION, metavar="TIME[-TIME]", help="delay: 5ms, or 1ms-20ms at random.")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="delay: seed of the random times.")
@click.option("--remove", "fault_id", type=click.IntRange(min=1), metavar="ID", help="Remove this fault.")
@click.option("--clear", is_flag=True, help="Remove all faults.")
@click.option("--list", "_listing", is_flag=True, help="List the faults, as without EFFECT.")
@json_option
def inject(
    *,
    image: Path,
    effect: str | None,
    operations: tuple[str, ...],
    zone_no: int | None,
    count: int,
    nth: int,
    every: bool,
    status: str,
    size: int | None,
    back: bool,
    delay_ns: tuple[int, int] | None,
    seed: int,
    fault_id: int | None,
    clear: bool,
    _listing: bool,
    as_json: bool,
) -> None:
    """Make chosen operations on IMG fail in a chosen way. Without EFFECT, list the faults.

    \b
    Effects:
      fail              the operation answers --status, and nothing changes
      partial           a write moves its first --size and the write pointer, then fails
      readonly offline  the zone fails (at once, or with --on at the nth operation)
      excursion         the drive finishes the active zone by itself (likewise)
      delay             the operation takes --delay longer
      lie               reports show a write pointer --size too high (or too low, with --back)
      recommend-reset   reports say that the zone should be reset
      recommend-finish  reports over NVMe say that the zone, while active, should be finished

    \b
    Examples:
      zonefs-emu inject small.img fail --on write --zone 7 --nth 3
      zonefs-emu inject small.img fail --on flush --every --status no-space
      zonefs-emu inject small.img offline --zone 7
      zonefs-emu inject zns.img excursion --on write --zone 7 --nth 100
      zonefs-emu inject small.img --remove 1

    A fault lasts until it is removed, across mounts and restarts, and every front-end meets it. A fault that a later
    version of the program has stored is kept, and does nothing.
    """
    _refuse_ignored(effect, operations, zone_no, fault_id, clear=clear)
    with open_target(image) as target:
        if fault_id is not None:
            call(target, {"verb": "remove-fault", "id": fault_id})
        elif clear:
            # Each id once: entries of a later version may share an id, and are then removed together.
            for number in dict.fromkeys(number_of(fault, "id") for fault in _faults(target)):
                call(target, {"verb": "remove-fault", "id": number})
        elif effect in _AT_ONCE and not operations:
            _strike_now(target, effect, zone_no, count)
        elif effect is not None:
            fault = _fault(effect, operations, zone_no, count, nth=nth, every=every, status=status, seed=seed)
            _add_amount(fault, size, delay_ns, back=back)
            made, _ = call(target, {"verb": "inject", "fault": fault})
            found = made["fault"]
            assert isinstance(found, dict)
            if as_json:
                say_json(found)
            else:
                click.echo(_sentence(found))
        else:
            faults = _faults(target)
            if as_json:
                say_json({"faults": list(faults)})
            elif not faults:
                click.echo("no faults", err=True)
            else:
                for fault in faults:
                    click.echo(_sentence(fault))


def _refuse_ignored(
    effect: str | None, operations: tuple[str, ...], zone_no: int | None, fault_id: int | None, *, clear: bool
) -> None:
    if effect is not None and (fault_id is not None or clear):
        message = f"--remove and --clear remove faults, and '{effect}' would make one: give one of them"
        raise UsageError(message)
    if fault_id is not None:
        refuse_options_beside(("fault_id", "as_json"), "beside --remove")
    elif clear:
        refuse_options_beside(("clear", "as_json"), "beside --clear")
    elif effect is None:
        refuse_options_beside(("_listing", "as_json"), "without an EFFECT, which lists the faults")
    else:
        allowed = {"as_json", "zone_no", *(("count",) if zone_no is not None else ()), *_OPTIONS_OF[effect]}
        if operations or effect not in _AT_ONCE:
            allowed |= {"operations", "nth", "every"}
        refuse_options_beside(allowed, f"for '{effect}'{'' if zone_no is not None else ' without --zone'}")


def _faults(target: Target) -> list[dict[str, Json]]:
    faults = call(target, {"verb": "faults"})[0]["faults"]
    assert isinstance(faults, list)
    return [fault for fault in faults if isinstance(fault, dict)]


def _strike_now(target: Target, effect: str, zone_no: int | None, count: int) -> None:
    if zone_no is None:
        message = f"the zone of '{effect}' is missing: give --zone"
        raise UsageError(message)
    nr_zones = number_of(info_of(target), "nr_zones")
    if zone_no + count > nr_zones:
        message = f"there are no zones up to {zone_no + count - 1}: the device has 0 to {nr_zones - 1}"
        raise UsageError(message, exit_code=1)
    for number in range(zone_no, zone_no + count):
        if effect == "excursion":
            call(target, {"verb": "excursion", "zone_no": number})
        else:
            call(target, {"verb": "set-cond", "zone_no": number, "cond": int(Condition[effect.upper()])})


def _fault(
    effect: str, operations: tuple[str, ...], zone_no: int | None, count: int, *, nth: int, every: bool, status: str,
    seed: int,
) -> dict[str, Json]:  # fmt: skip
    fault: dict[str, Json] = {
        "effect": effect,
        "operations": list(operations),
        "first_zone": zone_no or 0,
        "nr_zones": count if zone_no is not None else 0,
        "nth": nth,
        "every": every,
        "seed": seed,
    }
    if effect in ("readonly", "offline"):
        fault |= {"effect": "cond", "cond": effect.upper()}
    if effect in ("fail", "partial"):
        fault["status"] = status.upper().replace("-", "_")
    return fault


def _add_amount(fault: dict[str, Json], size: int | None, delay_ns: tuple[int, int] | None, *, back: bool) -> None:
    effect = fault["effect"]
    if size is not None:
        if size % SECTOR_BYTES:
            message = f"--size must be whole sectors of {SECTOR_BYTES} bytes, not {size} bytes"
            raise UsageError(message)
        fault["nr_sectors"] = size // SECTOR_BYTES * (-1 if back else 1)
    elif effect == "lie":
        message = "the size of the lie is missing: give --size"
        raise UsageError(message)
    if delay_ns is not None:
        fault["delay_min_ns"], fault["delay_max_ns"] = delay_ns


def _sentence(fault: dict[str, Json]) -> str:
    """Return one line on *fault*, as :meth:`Fault.as_dict` or :meth:`UnknownFault.as_dict` gives it."""
    if "unknown" in fault:
        text = "".join(character if character.isprintable() else "?" for character in str(fault["unknown"]))
        text = text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."
        return f"{fault['id']}: not known to this version, does nothing: {text}"
    nr_zones, first = number_of(fault, "nr_zones"), number_of(fault, "first_zone")
    where = "in all zones" if not nr_zones else f"in zone {first}"
    if nr_zones > 1:
        where = f"in zones {first} to {first + nr_zones - 1}"
    effect = fault["effect"]
    if effect in _ON_REPORT:
        amount = f" by {fault['nr_sectors']} sectors" if effect == "lie" else ""
        return f"{fault['id']}: {effect}{amount} {where}"
    names = fault["operations"]
    assert isinstance(names, list)
    operations = " or ".join(map(str, names))
    nth = fault["nth"]
    when = f"each {operations} from number {nth} on" if fault["every"] else f"{operations} number {nth}"
    match effect:
        case "fail":
            what = f"answers {fault['status']}"
        case "partial":
            what = f"writes {fault['nr_sectors']} sectors and answers {fault['status']}"
        case "cond":
            what = f"finds its zone {COND_WORDS[Condition[str(fault['cond'])]]}"
        case "excursion":
            what = "finds its zone finished by the drive, if it was active"
        case _:
            low, high = number_of(fault, "delay_min_ns") / 1e6, number_of(fault, "delay_max_ns") / 1e6
            what = f"takes {low:g} ms longer" if low == high else f"takes {low:g} to {high:g} ms longer"
    return f"{fault['id']}: {when} {where} {what} ({fault['seen']} seen)"
