"""What listeners are told of: changes by other ports, in runs, and failures of the host."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from tests.device.sectors import CLOSE, FINISH, OPEN, RESET, Maker, cond, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status
from zonefs_emu.model.geometry import Geometry
from zonefs_emu.model.transitions import VIRTIO
from zonefs_emu.model.zone import Condition


def test_listeners_hear_of_a_failure_of_the_host(device: ZonedDevice, expect_warning: Callable[[str], None]) -> None:
    expect_warning("a listener for failures of the image")
    notified: list[str | None] = []

    def hear() -> None:
        notified.append(device.image.poison)

    def raise_an_error() -> None:
        raise ZeroDivisionError

    for listener in (raise_an_error, hear):
        device.listeners.subscribe_failure(listener)
    device.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")
    assert notified == [device.image.poison]
    assert notified[0] is not None
    device.listeners.unsubscribe_failure(hear)
    device.listeners.notify_failure()
    assert len(notified) == 1


def test_listeners_hear_of_the_loss_of_the_file(
    device: ZonedDevice, tmp_path: Path, expect_warning: Callable[[str], None]
) -> None:
    expect_warning("cut or overwritten by another program")
    notified: list[str | None] = []
    device.listeners.subscribe_failure(lambda: notified.append(device.image.poison))
    os.truncate(tmp_path / "a.img", (tmp_path / "a.img").stat().st_size - 4096)
    device.look_after_image()
    assert notified == [device.image.poison]


def test_listeners_hear_of_what_other_ports_change(device: ZonedDevice, port: Port) -> None:
    other = device.port("other", VIRTIO)
    notified: dict[str, list[tuple[int, int]]] = {"port": [], "anyone": []}
    device.subscribe(lambda *zones: notified["port"].append((zones[0], zones[1])), port=port)
    device.subscribe(anyone := lambda *zones: notified["anyone"].append((zones[0], zones[1])))

    write(port, 128, 1)
    assert notified == {"port": [], "anyone": [(2, 1)]}
    write(other, 129, 1)
    write(other, 0, 1)
    assert notified["port"] == [(2, 1), (0, 1)]
    write(other, 130, 200)
    other.manage(CLOSE, 320)
    assert notified["port"] == [(2, 1), (0, 1)], "nothing is said of refused commands"
    late = device.port("late", VIRTIO)
    late.manage(FINISH, 320, 2)
    assert notified["port"][2:] == [(5, 2)]
    late.set_cond(7, Condition.READONLY)
    late.manage_all(RESET)
    assert notified["port"][3:] == [(7, 1), (2, 1), (5, 2)]
    late.manage_all(RESET)
    late.set_cond(7, Condition.READONLY)
    assert len(notified["port"]) == 6, "nothing is said of commands without effect"
    device.unsubscribe(anyone)
    nr_notified = len(notified["anyone"])
    write(late, 128, 1)
    assert (len(notified["port"]), len(notified["anyone"])) == (7, nr_notified)


def test_an_implicit_close_is_told_of(device: ZonedDevice, port: Port) -> None:
    other = device.port("other", VIRTIO)
    notified: list[tuple[int, int]] = []
    device.subscribe(lambda first, count: notified.append((first, count)), port=port)
    for zone_no in (7, 5, 2):
        write(other, zone_no * 64, 1)
    assert notified == [(7, 1), (5, 1), (2, 1), (7, 1)]
    assert cond(port, 7) == Condition.CLOSED
    assert device.statistics()["implicit_closes"] == 1


def test_many_runs_of_changed_zones_are_told_of_as_one(make_device: Maker) -> None:
    device = make_device(Geometry(size=400, zone_size=2, zone_capacity=2))
    port = device.port("test", VIRTIO)
    notified: list[tuple[int, int]] = []
    for zone_no in range(10, 138, 2):
        write(port, zone_no * 2, 1)
    device.subscribe(lambda first, count: notified.append((first, count)))
    port.manage_all(CLOSE)
    assert notified == [(zone_no, 1) for zone_no in range(10, 138, 2)]
    write(port, 0, 1)
    notified.clear()
    port.manage_all(RESET)
    assert notified == [(0, 137)]


def test_ports_that_nobody_holds_are_forgotten(device: ZonedDevice, port: Port) -> None:
    notified: list[int] = []
    device.subscribe(lambda first, _: notified.append(first), port=port)
    for _ in range(100):
        assert device.port("one request", VIRTIO).manage(OPEN, 128) == Status.OK
        assert port.manage(RESET, 128) == Status.OK
    assert notified == 100 * [2]
    assert len(device.listeners._audiences) == 1
