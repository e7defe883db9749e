"""The verb for two clients at once and for a device in use; tests/cli/test_mkfs.py has what it prints."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from zonefs_emu.daemon.fields import Request
from zonefs_emu.daemon.framing import Json
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.errors import UsageError
from zonefs_emu.front_ends.mkfs import MkfsVerb
from zonefs_emu.fs.mkfs import is_formatted
from zonefs_emu.model.transitions import VIRTIO

REQUEST: Request = {"verb": "mkfs", "features": "", "label": "", "name": "it"}


@pytest.fixture
def device(image: Path) -> Iterator[ZonedDevice]:
    device = ZonedDevice.open(image)
    yield device
    device.close()


def formatted(device: ZonedDevice) -> bool:
    return is_formatted(device.port("test", VIRTIO))


def test_the_lines_come_before_the_device_is_changed(device: ZonedDevice) -> None:
    replies = MkfsVerb(device, list)(REQUEST, b"")
    (first, _) = next(replies)
    assert first["more"] is True
    assert isinstance(first["lines"], list)
    assert first["lines"][-1] == "Writing super block"
    assert not formatted(device)
    assert list(replies) == [({}, b"")]
    assert formatted(device)


def test_of_two_clients_at_once_one_formats(device: ZonedDevice) -> None:
    verb = MkfsVerb(device, list)
    first = verb(REQUEST, b"")
    next(first)
    with pytest.raises(UsageError, match="it is being formatted by another client"):
        list(verb(REQUEST, b""))
    list(first)
    with pytest.raises(UsageError, match="it appears to contain an existing filesystem"):
        list(verb(REQUEST, b""))
    list(verb({**REQUEST, "force": True}, b""))


def test_a_client_that_goes_lets_others_format(device: ZonedDevice) -> None:
    verb = MkfsVerb(device, list)
    first = verb(REQUEST, b"")
    next(first)
    first.close()  # type: ignore[attr-defined]  # a generator
    list(verb(REQUEST, b""))
    assert formatted(device)


def test_a_device_in_use_is_not_formatted(device: ZonedDevice) -> None:
    def front_ends() -> list[Json]:
        return [{"name": "vhost-user-blk", "where": "/run/socket", "statistics": {}}]

    with pytest.raises(UsageError, match=r"it is in use \(vhost-user-blk at /run/socket\)"):
        list(MkfsVerb(device, front_ends)(REQUEST, b""))
    assert not formatted(device)
