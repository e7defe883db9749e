"""A refusal comes with its status to the caller that collects it, and to no other."""

import threading

from tests.device.sectors import FINISH, RESET, Maker, write
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.device.faults import Effect, Fault
from zonefs_emu.device.port import Port
from zonefs_emu.device.rules import DeviceRule
from zonefs_emu.errors import Status
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition


def test_what_is_refused_in_the_context_is_collected(device: ZonedDevice, port: Port) -> None:
    write(port, 200, 1)
    with port.refusals.collect() as refused:
        assert write(port, 128, 4) is Status.OK
        assert not refused
        assert write(port, 128, 4) is Status.UNALIGNED_WP
        assert port.manage(FINISH, 0) is Status.CONVENTIONAL
    write(port, 200, 1)
    assert [(refusal.operation, refusal.status) for refusal in refused] == [
        (Operation.WRITE, Status.UNALIGNED_WP),
        (Operation.FINISH, Status.CONVENTIONAL),
    ]
    assert [refusal.seq for refusal in device.refusals.last(9)][1:3] == [refusal.seq for refusal in refused]


def test_what_has_no_length_or_place_is_refused_with_zeros(device: ZonedDevice, port: Port) -> None:
    """``why`` would show anything else as what the host has asked for."""
    with port.refusals.collect() as refused:
        assert port.manage(FINISH, 0)
        assert port.manage(FINISH, 1)
        assert port.set_cond(0, Condition.FULL)
        assert port.set_extension(128, bytes(64))
        device.image.fail(OSError(5, "a test"), "a test")
        assert port.manage_all(RESET)
        assert port.flush()
        port.refusals.refuse(DeviceRule.OUT_OF_RANGE, None, Status.OUT_OF_RANGE)
    noted = [(refusal.sector, refusal.nr_sectors, refusal.zone_no) for refusal in refused]
    assert noted == [(0, 0, 0), (1, 0, 0), (0, 0, 0), (128, 0, 2), *[(0, 0, -1)] * 3]


def test_contexts_in_each_other(port: Port) -> None:
    with port.refusals.collect() as outer:
        with port.refusals.collect() as inner:
            port.manage(FINISH, 0)
        port.manage(RESET, 0)
    assert [refusal.operation for refusal in inner] == [Operation.FINISH]
    assert [refusal.operation for refusal in outer] == [Operation.RESET]


def test_the_last_refusal_is_that_of_the_status(device: ZonedDevice, port: Port) -> None:
    """A fault that writes a part of a full zone is refused in between."""
    device.inject(
        Fault(effect=Effect.PARTIAL, operations=frozenset((Operation.WRITE,)), nr_sectors=1, status=Status.NO_SPACE)
    )
    with port.refusals.collect() as refused:
        assert write(port, 200, 4) is Status.NO_SPACE
    assert [refusal.rule for refusal in refused] == [DeviceRule.UNALIGNED_WP, DeviceRule.INJECTED]


def test_other_threads_and_other_ports_are_refused_elsewhere(device: ZonedDevice, port: Port) -> None:
    other = device.port("other", VIRTIO)
    with port.refusals.collect() as refused:
        thread = threading.Thread(target=port.manage, args=(FINISH, 0))
        thread.start()
        thread.join()
        other.manage(FINISH, 0)
    assert not refused
    assert len(device.refusals.last(9)) == 2


def test_a_refusal_of_a_device_that_notes_none_is_collected(make_device: Maker) -> None:
    make_device().close()
    device = make_device(readonly=True)
    port = device.port("reader", VIRTIO)
    with port.refusals.collect() as refused:
        port.manage(RESET, 128)
        device.close()
        port.manage(RESET, 128)
    assert [refusal.status for refusal in refused] == [Status.POISONED, Status.POISONED]
    assert not make_device().refusals.last(9)
