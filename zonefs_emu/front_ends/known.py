"""All front-ends of zonefs_emu, for sessions and for images that no process holds.

The command line, the devices of tests and other programs open images through this module and not through
:mod:`zonefs_emu.daemon`, so that ``why`` knows the rules of every front-end, and ``mkfs`` is a verb.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zonefs_emu.daemon import client
from zonefs_emu.daemon.client import Target
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.daemon.extensions import Extensions, MakeVerb

if TYPE_CHECKING:
    from zonefs_emu.daemon.session import FrontEnd


def _explainer() -> Explainer:
    # Loads the tables of all front-ends, which most verbs do not need.
    from zonefs_emu.front_ends.answers import EXPLAINER  # noqa: PLC0415

    return EXPLAINER


def _verbs() -> Mapping[str, MakeVerb]:
    from zonefs_emu.front_ends.mkfs import MkfsVerb  # noqa: PLC0415  (the same)

    return {"mkfs": MkfsVerb}


#: The rules and verbs of all front-ends.
EXTENSIONS: Final = Extensions(explainer=_explainer, verbs=_verbs)


def open_target(image: Path, *, readonly: bool = False) -> AbstractContextManager[Target]:
    """Open *image*; see :func:`zonefs_emu.daemon.client.open_target`."""
    return client.open_target(image, EXTENSIONS, readonly=readonly)


def run(
    path: Path,
    front_ends: Sequence["FrontEnd"],
    *,
    ready: Callable[[], None],
    owner: str,
    record_file: Path | None = None,
    readonly: bool = False,
    others: Sequence[Path] = (),
    timing: tuple[str, float] = ("none", 1.0),
) -> None:
    """Run *front_ends* on the image *path*; see :func:`zonefs_emu.daemon.session.run`."""
    # Loads the event loop, which an image without a daemon does not need.
    from zonefs_emu.daemon import session  # noqa: PLC0415

    session.run(
        path, front_ends, EXTENSIONS, ready=ready, owner=owner, record_file=record_file, readonly=readonly,
        others=others, timing=timing,
    )  # fmt: skip
