from contextlib import closing
from pathlib import Path

import trio

from zonefs_emu.daemon.client import call
from zonefs_emu.daemon.framing import Json
from zonefs_emu.daemon.session import Session
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import Status
from zonefs_emu.front_ends.known import open_target, run
from zonefs_emu.fs.rules import ZonefsRule
from zonefs_emu.model.transitions import VIRTIO


def asked(image: Path) -> Json:
    """Format *image* and return the rule that the last refusal is by."""
    with open_target(image) as target:
        list(target.stream({"verb": "mkfs", "features": "", "label": "", "name": "it", "force": True}))
        refusals = call(target, {"verb": "why"})[0]["refusals"]
    assert isinstance(refusals, list)
    (said,) = refusals
    assert isinstance(said, dict)
    return said["rule"]


def test_rules_and_verbs_are_the_same_with_a_daemon_and_without(image: Path) -> None:
    with closing(ZonedDevice.open(image)) as device:
        device.port("zonefs", VIRTIO).refusals.refuse(
            ZonefsRule.FS_CREATE, None, Status.UNSUPPORTED, request="create of x"
        )
    assert asked(image) == "FS_CREATE"
    said = []

    async def front_end(session: Session, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        said.append(await trio.to_thread.run_sync(asked, image))

    run(image, [front_end], ready=lambda: None, owner="a test")
    assert said == ["FS_CREATE"]
