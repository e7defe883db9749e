"""Commands on the states of all zones at once: save them, load them, and cycle the power.

A migration loads the states of another device of the same geometry.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from zonefs_emu.device.core import DeviceCore
from zonefs_emu.device.counters import Counter
from zonefs_emu.model.machine import PORTION_ZONES
from zonefs_emu.model.zone import ACTIVE_CONDITIONS, OPEN_CONDITIONS, Condition
from zonefs_emu.persist.codec.words import ZoneStates, check_words, pack_words, unpack_states
from zonefs_emu.persist.image import Image

#: The order in which many zones are published: zones that release resources come first.
_PUBLISHING_ORDER: Final = {
    cond: 2 if cond in OPEN_CONDITIONS else 1 if cond in ACTIVE_CONDITIONS else 0 for cond in Condition
}


def power_cycle(device: DeviceCore) -> None:
    """Cut and restore the power after a flush: open zones come back closed, or empty if they hold no data.

    Raises:
        PoisonedError: the host failed to write. NoSpaceError: it is full.
    """
    device.image.flush()
    with device.holding_all():
        for _, changes in device.each_under_lock(device.machine.begin_power_cycle()):
            device.publish(changes)
        with device.lock:
            device.listeners.notify_all(device.geometry.nr_zones)
    device.counters.device[Counter.POWER_CYCLES] += 1
    device.image.flush()


def save_zones(device: DeviceCore) -> bytes:
    """Return the state of all zones at one instant: the words of the image format, 8 bytes each."""
    states = ZoneStates.blank(device.geometry.nr_zones)
    with device.lock:
        states.fill(device.image.states)
    return pack_words(*states)


def load_zones(device: DeviceCore, words: bytes) -> None:
    """Put all zones into the states that :func:`save_zones` returned for a device of the same geometry.

    For other commands that is one change. Waits for a checkpoint and for commands that are under way.

    Raises:
        CorruptImageError: a state is impossible in this geometry; nothing has changed.
        CommandError: more zones are open or active than may be; nothing has changed.
        PoisonedError: the image takes no changes.
    """
    states = unpack_states(device.geometry, words)
    # No checkpoint runs meanwhile: at its end it frees the space of zones that were reset when it began, and loading
    # may give such zones data.
    with device.image.between_checkpoints(), device.holding_all():
        load_states(device, states)


def load_states(device: DeviceCore, states: ZoneStates) -> None:
    """Do what :func:`load_zones` does, for a caller that holds off checkpoints and commands."""
    check_words(device.geometry, *states, what="zone states to load", offset=0)
    machine = device.machine
    loaded = machine.loaded(*states)
    # No command changes zones meanwhile, so they are read without the lock.
    changed = [
        zone_no
        for zone_no, (cond, wp, bits) in enumerate(zip(*states, strict=True))
        if (machine.conds[zone_no], machine.wps[zone_no], machine.attributes[zone_no]) != (cond, wp, bits)
    ]
    # In this order, a kill in the middle leaves no more zones open or active than the limits allow.
    changed.sort(key=lambda zone_no: _PUBLISHING_ORDER[Condition(states.conds[zone_no])])
    with device.lock, device.changing():
        machine.take_over(loaded)
    for _ in device.each_under_lock(_publishing(device.image, changed)):
        pass
    with device.lock:
        device.listeners.notify_all(device.geometry.nr_zones)


def _publishing(image: Image, zone_numbers: Sequence[int]) -> Iterator[int]:
    """Publish in portions; yield how many zones are published after each."""
    for first in range(0, len(zone_numbers), PORTION_ZONES):
        image.publish_all(zone_numbers[first : first + PORTION_ZONES])
        yield first
