"""A front-end of another program: its rules and its verb, without a change to this package."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio

from zonefs_emu.daemon.client import call, open_target
from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.daemon.extensions import Extensions
from zonefs_emu.daemon.fields import Request, text
from zonefs_emu.daemon.framing import Json, Message
from zonefs_emu.daemon.session import Session, run
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.rules import FrontEndAnswers, Rule
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.answers import ANSWERS
from zonefs_emu.model.transitions import VIRTIO


class ToyRule(Rule):
    TOY_COLOUR = 60000, "a toy has three colours", "the toy's manual"


TOY: Final = FrontEndAnswers(
    name="toy",
    of_status=lambda status, _operation: f"TOY_{status.name}",
    of_rule={ToyRule.TOY_COLOUR: "TOY_SORRY"},
)


class Paint:
    """A verb: the device's label in a colour, and how many front-ends are at work."""

    def __init__(self, device: ZonedDevice, front_ends: Callable[[], list[Json]]) -> None:
        self._device = device
        self._front_ends = front_ends

    def __call__(self, request: Request, _payload: bytes) -> Iterator[Message]:
        yield {"painted": f"{text(request, 'colour')} {self._device.label}", "at_work": len(self._front_ends())}, b""


EXTENSIONS: Final = Extensions(explainer=lambda: Explainer([*ANSWERS, TOY]), verbs=lambda: {"paint": Paint})


def why(image: Path) -> tuple[Json, Json, Json]:
    """Return rule, answers and sentence of the last refusal on *image*."""
    with open_target(image, EXTENSIONS) as target:
        refusals = call(target, {"verb": "why"})[0]["refusals"]
    assert isinstance(refusals, list)
    (said,) = refusals
    assert isinstance(said, dict)
    return said["rule"], said["answers"], said["sentence"]


def test_a_front_end_brings_its_rules_and_no_layer_below_changes(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = []

    async def toy(session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        port = session.device.port("toy", VIRTIO)
        task_status.started()
        port.refusals.refuse(ToyRule.TOY_COLOUR, None, Status.UNSUPPORTED, request="paint it green")
        said.append(await trio.to_thread.run_sync(why, image))

    run(image, [toy], EXTENSIONS, ready=lambda: None, owner="a toy")
    expected = (
        "toy: paint it green was refused (UNSUPPORTED): a toy has three colours [the toy's manual]; "
        "answered as TOY_SORRY (toy)"
    )
    assert expected in caplog.messages
    assert said == [("TOY_COLOUR", {"toy": "TOY_SORRY"}, expected)]


def paint(image: Path) -> dict[str, Json]:
    with open_target(image, EXTENSIONS) as target:
        return call(target, {"verb": "paint", "colour": "green"})[0]


def test_a_front_end_brings_a_verb(image: Path) -> None:
    said = []

    async def toy(session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        with session.register("toy", "the shelf", dict):
            task_status.started()
            said.append(await trio.to_thread.run_sync(paint, image))

    run(image, [toy], EXTENSIONS, ready=lambda: None, owner="a toy")
    assert said == [{"painted": "green test", "at_work": 1}]
    assert paint(image) == {"painted": "green test", "at_work": 0}
