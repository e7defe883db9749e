"""Extensions of the verbs by front-ends: rules that ``why`` explains, and verbs of their own.

No module of this package imports a front-end. A program that has front-ends makes an :class:`Extensions` and passes it
to :func:`zonefs_emu.daemon.session.run` and :func:`zonefs_emu.daemon.client.open_target`, so that an image answers in
the same way with a daemon and without. :mod:`zonefs_emu.front_ends.known` does so for the front-ends of zonefs_emu.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.daemon.fields import Verb
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.device import ZonedDevice


class MakeVerb(Protocol):
    """Makes a verb of a front-end."""

    def __call__(self, device: ZonedDevice, front_ends: Callable[[], list[Json]]) -> Verb:
        """Return the verb of the opened *device*, for all clients; *front_ends* returns those at work, as ``info``."""
        ...


def _no_verbs() -> Mapping[str, MakeVerb]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """The additions of front-ends; the default has the rules of the device and no further verbs.

    *explainer* returns the explainer of refusals, and *verbs* returns the verbs by name. They are functions because the
    modules of all front-ends take a while to load, and few verbs need them.
    """

    explainer: Callable[[], Explainer] = Explainer
    verbs: Callable[[], Mapping[str, MakeVerb]] = _no_verbs
