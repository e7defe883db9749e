"""Admin commands of one controller, as Linux asks them and as it does not."""

import errno
import json
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nvme.conftest import BLOCK, CAPACITY, NR_ZONES, ZONE, command, new_device
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.front_ends.answers import EXPLAINER
from zonefs_emu.model.transitions import VIRTIO, Operation
from zonefs_emu.model.zone import Condition
from zonefs_emu.nvme.answer import Answer, RefusedError
from zonefs_emu.nvme.command import AdminOpcode, Command
from zonefs_emu.nvme.controller import CAPABILITIES, IO_QUEUES_MAX, AdminHandler, Controller, Feature, Register
from zonefs_emu.nvme.identify import Cns, ControllerIdentity
from zonefs_emu.nvme.logs import Log
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import NvmeStatus
from zonefs_emu.nvme.subsystem import Subsystem

ADMIN = (
    AdminOpcode.GET_LOG_PAGE, AdminOpcode.IDENTIFY, AdminOpcode.ABORT, AdminOpcode.SET_FEATURES,
    AdminOpcode.GET_FEATURES, AdminOpcode.ASYNC_EVENT, AdminOpcode.KEEP_ALIVE,
)  # fmt: skip
ENABLE = 0x460061
NAMESPACE_EVENTS = 1 << 8
EVENTS = 1 << 27 | NAMESPACE_EVENTS


@pytest.fixture
def block_bytes() -> int:
    return 4096


@pytest.fixture
def controller(subsystem: Subsystem) -> Iterator[Controller]:
    identity = ControllerIdentity(serial="S", firmware="2.0", nqn=subsystem.nqn, cntlid=3, max_nsid=1)
    controller = Controller(subsystem, identity, admin=ADMIN)
    controller.write_register(Register.CC, ENABLE)
    yield controller
    controller.close()


def ask(controller: Controller, opcode: int, *cdws: int, nsid: int = 0, data: bytes = b"", cid: int = 7) -> Answer:
    answer = controller.execute(command(opcode, nsid=nsid, cid=cid, cdws=cdws), data)
    assert answer is not None
    return answer


def identify(controller: Controller, cns: int, *, nsid: int = 0, csi: int = 0) -> Answer:
    return ask(controller, AdminOpcode.IDENTIFY, cns, csi << 24, nsid=nsid)


def log(
    controller: Controller, page: int, *, room: int = 4096, nsid: int = 0xFFFFFFFF, retain: bool = False, csi: int = 0
) -> bytes:
    answer = ask(
        controller,
        AdminOpcode.GET_LOG_PAGE,
        page | retain << 15 | (room // 4 - 1) << 16,
        room // 4 - 1 >> 16 | (page == Log.ENDURANCE_GROUP) << 16,
        0,
        0,
        csi << 24,
        nsid=nsid,
    )
    assert answer.status is NvmeStatus.SUCCESS
    assert len(answer.data) == room
    return bytes(answer.data)


def test_what_linux_asks_at_the_start_is_answered_and_nothing_is_refused(controller: Controller) -> None:
    """The order of Linux 6.12 and 7.2; each answer has a part without which Linux refuses the drive."""
    assert controller.read_register(Register.CAP) == CAPABILITIES
    assert CAPABILITIES >> 43 & 1, "I/O command sets"
    assert identify(controller, Cns.CONTROLLER).data[77]
    assert log(controller, Log.EFFECTS)[1024 + 4 * 0x01]
    assert not log(controller, Log.EFFECTS)[1024 + 4 * 0x7D], "not of the NVM command set"
    assert log(controller, Log.SMART, room=512)[1:3] != b"\0\0"
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.NR_QUEUES, 0x10001).result == 0x10001
    assert identify(controller, Cns.SET_CONTROLLER, csi=0).status == 0
    assert struct.unpack_from("<2I", identify(controller, Cns.ACTIVE_NAMESPACES).data) == (1, 0)
    assert b"\x04\x01\0\0\x02" in bytes(identify(controller, Cns.DESCRIPTORS, nsid=1).data)
    assert identify(controller, Cns.INDEPENDENT_NAMESPACE, nsid=1).data[14] == 1
    assert identify(controller, Cns.NAMESPACE, nsid=1).data[:8] == struct.pack("<Q", NR_ZONES * ZONE)
    assert identify(controller, Cns.SET_NAMESPACE, nsid=1, csi=0).status == 0
    assert all(log(controller, Log.EFFECTS, csi=2)[1024 + 4 * opcode] for opcode in (0x01, 0x79, 0x7D))
    assert identify(controller, Cns.SET_CONTROLLER, csi=2).data[0] == 5
    assert identify(controller, Cns.SET_NAMESPACE, nsid=1, csi=2).data[2816:2824] == struct.pack("<Q", ZONE)
    assert identify(controller, Cns.SET_ACTIVE_NAMESPACES, csi=2).data[0] == 1
    assert identify(controller, Cns.SET_ACTIVE_NAMESPACES, csi=0).data[0] == 0
    assert identify(controller, Cns.COMMAND_SETS).data[0] == 0b101
    assert identify(controller, Cns.ENDURANCE_GROUPS).data[0] == 1
    capacity = int.from_bytes(log(controller, Log.ENDURANCE_GROUP, room=512)[160:176], "little")
    assert capacity == NR_ZONES * CAPACITY * BLOCK
    assert ask(controller, AdminOpcode.KEEP_ALIVE).status == 0
    assert controller.namespaces[1].device.refusals.last(5) == []


@pytest.mark.parametrize(
    ("opcode", "cdws", "nsid", "status"),
    [
        (AdminOpcode.IDENTIFY, (0x55,), 0, 0x002),
        (AdminOpcode.IDENTIFY, (Cns.SET_CONTROLLER, 1 << 24), 0, 0x002),
        (AdminOpcode.IDENTIFY, (Cns.SET_NAMESPACE, 1 << 24), 1, 0x002),
        (AdminOpcode.IDENTIFY, (Cns.NAMESPACE,), 0, 0x00B),
        (AdminOpcode.IDENTIFY, (Cns.NAMESPACE,), 2, 0x00B),
        (AdminOpcode.IDENTIFY, (Cns.NAMESPACE,), 0xFFFFFFFF, 0x00B),
        (AdminOpcode.GET_LOG_PAGE, (0xC0 | 15 << 16,), 0, 0x109),
        (AdminOpcode.GET_LOG_PAGE, (Log.DISCOVERY | 15 << 16,), 0, 0x109),
        (AdminOpcode.GET_LOG_PAGE, (Log.SMART | 15 << 16, 0, 2), 0, 0x002),
        (AdminOpcode.GET_LOG_PAGE, (Log.EFFECTS | 15 << 16, 0, 0, 0, 1 << 24), 0, 0x002),
        (AdminOpcode.GET_LOG_PAGE, (Log.ENDURANCE_GROUP | 15 << 16, 2 << 16), 0, 0x002),
        (AdminOpcode.GET_LOG_PAGE, (Log.SMART | 15 << 16, 0, 516), 0, 0x002),
        (AdminOpcode.GET_LOG_PAGE, (Log.SMART | 15 << 16, 0xFFFF), 0, 0x002),
        (AdminOpcode.GET_LOG_PAGE, (Log.CHANGED_ZONES | 15 << 16,), 9, 0x00B),
        (AdminOpcode.SET_FEATURES, (0xC0,), 0, 0x002),
        (AdminOpcode.SET_FEATURES, (Feature.NR_QUEUES, 0xFFFF), 0, 0x002),
        (AdminOpcode.SET_FEATURES, (Feature.COMMAND_SET_PROFILE, 1), 0, 0x12B),
        (AdminOpcode.SET_FEATURES, (Feature.WRITE_CACHE | 1 << 31, 1), 0, 0x10D),
        (AdminOpcode.GET_FEATURES, (0xC0,), 0, 0x002),
        (AdminOpcode.GET_FEATURES, (Feature.WRITE_CACHE | 5 << 8,), 0, 0x002),
        (AdminOpcode.CREATE_SQ, (), 0, 0x001),
        (0xC5, (), 0, 0x001),
    ],
)
def test_what_is_refused(controller: Controller, opcode: int, cdws: tuple[int, ...], nsid: int, status: int) -> None:
    assert ask(controller, opcode, *cdws, nsid=nsid).status == status
    refusal = controller.namespaces[1].device.refusals.last(1)[0]
    assert EXPLAINER.answers(refusal)["nvme"].startswith(f"{status:03X}h")
    entry = log(controller, Log.ERROR)
    assert struct.unpack_from("<QHHH", entry) == (1, 0, 7, (status | 0x4000) << 1)


def test_a_log_page_can_be_read_in_parts(controller: Controller) -> None:
    whole = log(controller, Log.EFFECTS)
    parts = b""
    for offset in range(0, 4096, 1024):
        answer = ask(controller, AdminOpcode.GET_LOG_PAGE, Log.EFFECTS | 255 << 16, 0, offset, 0)
        parts += bytes(answer.data)
    assert parts == whole
    assert log(controller, Log.SMART, room=1024)[512:] == bytes(512), "zeros fill what was asked for"
    assert [page for page in Log if log(controller, Log.SUPPORTED, room=1024)[4 * page]] == [
        page for page in Log if page is not Log.DISCOVERY
    ]
    for page in (Log.FIRMWARE, Log.CHANGED_NAMESPACES):
        assert len(log(controller, page, room=512)) == 512


def test_registers(controller: Controller) -> None:
    assert controller.read_register(Register.VS) == 0x20000
    assert controller.read_register(Register.CSTS) == 1
    assert controller.read_register(Register.CC) == ENABLE
    assert controller.read_register(Register.CRTO) is not None
    assert controller.read_register(0x500) is None
    assert not controller.write_register(Register.CSTS, 1)


def test_shutting_down_and_resetting_drop_the_queues(controller: Controller) -> None:
    dropped: list[str] = []
    controller.on_disabled = lambda: dropped.append("dropped")
    controller.write_register(Register.CC, ENABLE | 1 << 14)
    assert (controller.csts, controller.is_ready, dropped) == (0b1001, False, ["dropped"])
    controller.write_register(Register.CC, 0)
    assert (controller.csts, dropped) == (0, ["dropped"] * 2)
    controller.write_register(Register.CC, ENABLE)
    assert controller.is_ready


def test_features(controller: Controller) -> None:
    def get(feature: int, select: int = 0) -> Answer:
        return ask(controller, AdminOpcode.GET_FEATURES, feature | select << 8)

    assert (
        ask(controller, AdminOpcode.SET_FEATURES, Feature.NR_QUEUES, 200 << 16 | 1).result
        == (IO_QUEUES_MAX - 1) << 16 | 1
    )
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.KEEP_ALIVE, 1500).status == 0
    assert (get(Feature.KEEP_ALIVE).result, controller.keep_alive_ns) == (1500, 1_500_000_000)
    assert (get(Feature.KEEP_ALIVE, 1).result, get(Feature.KEEP_ALIVE, 3).result) == (0, 0b100)
    behaviour = bytes(range(256)) * 2
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.HOST_BEHAVIOUR, data=behaviour).status == 0
    assert get(Feature.HOST_BEHAVIOUR).data == behaviour
    assert len(get(Feature.HOST_BEHAVIOUR).data) == 512
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.COMMAND_SET_PROFILE, 0).status == 0
    controller.write_register(Register.CC, 0)
    assert get(Feature.KEEP_ALIVE).result == 0, "a reset brings the defaults back"


def test_the_write_cache_of_all_queues_is_switched(controller: Controller) -> None:
    early = controller.namespaces_of_queue()
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.WRITE_CACHE, 0).status == 0
    late = controller.namespaces_of_queue()
    assert [queue[1].caches_writes for queue in (early, late)] == [False, False]
    controller.write_register(Register.CC, 0)
    assert [queue[1].caches_writes for queue in (early, late)] == [True, True]


def test_queues_connect_at_the_same_time(controller: Controller) -> None:
    """Each queue has a thread of its own, which goes through the namespaces of all queues."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            queues = list(threads.map(lambda _: controller.namespaces_of_queue(), range(400)))
    finally:
        sys.setswitchinterval(interval)
    ask(controller, AdminOpcode.SET_FEATURES, Feature.WRITE_CACHE, 0)
    assert not any(namespace.caches_writes for namespaces in queues for namespace in namespaces.values())


def test_nothing_is_aborted(controller: Controller) -> None:
    assert ask(controller, AdminOpcode.ABORT, 7 << 16).result == 1


def test_a_zone_that_the_drive_loses_is_an_event_and_in_the_log(controller: Controller, device: ZonedDevice) -> None:
    woken: list[int] = []
    controller.wake = lambda: woken.append(1)
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
    assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=50)) is None
    other = device.port("other", VIRTIO)
    other.manage(Operation.FINISH, 5 * other.geometry.zone_size)
    assert list(controller.due_events()) == [], "what another host or front-end asked for is no event"
    woken.clear()
    other.set_cond(2, Condition.READONLY)
    other.set_cond(4, Condition.OFFLINE)
    assert woken
    # Dword 0: a notice (2), Zone Descriptor Changed (EFh), log page BFh. Dword 1: the namespace.
    assert list(controller.due_events()) == [(50, Answer(NvmeStatus.SUCCESS, 1 << 32 | 0xBFEF02))]
    assert list(controller.due_events()) == []
    page = log(controller, Log.CHANGED_ZONES, nsid=1, retain=True)
    assert struct.unpack_from("<H6x2Q", page) == (2, 2 * ZONE, 4 * ZONE)
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1)) == (2,)
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1)) == (0,)


def test_an_event_waits_for_a_request_and_a_host_that_did_not_ask_gets_none(
    controller: Controller, device: ZonedDevice
) -> None:
    other = device.port("other", VIRTIO)
    other.set_cond(1, Condition.READONLY)
    assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=1)) is None
    assert list(controller.due_events()) == []
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
    other.set_cond(2, Condition.READONLY)
    other.set_cond(3, Condition.READONLY)
    assert [cid for cid, _ in controller.due_events()] == [1]
    other.set_cond(4, Condition.READONLY)
    assert list(controller.due_events()) == []
    assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=2)) is None
    assert list(controller.due_events()) == [], "masked until the host reads the log page"
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1, retain=True)) == (4,)
    other.set_cond(5, Condition.READONLY)
    assert list(controller.due_events()) == [], "it retains the event"
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1)) == (5,)
    assert list(controller.due_events()) == [], "it has read of zone 5 as well"
    other.set_cond(6, Condition.READONLY)
    assert [cid for cid, _ in controller.due_events()] == [2]
    controller.reset()
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1)) == (1,)


@pytest.mark.parametrize("ending", ["reset", "switched off"])
def test_events_that_wait_are_none_for_a_host_that_has_not_asked(
    controller: Controller, device: ZonedDevice, ending: str
) -> None:
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
    device.port("other", VIRTIO).set_cond(2, Condition.READONLY)
    assert list(controller.due_events()) == [], "no request yet"
    if ending == "reset":
        controller.reset()
        controller.write_register(Register.CC, 1)
    else:
        ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, 0)
    assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=2)) is None
    assert list(controller.due_events()) == []
    woken: list[int] = []
    controller.wake = lambda: woken.append(1)
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
    assert woken
    assert [cid for cid, _ in controller.due_events()] == ([] if ending == "reset" else [2])
    assert struct.unpack_from("<H", log(controller, Log.CHANGED_ZONES, nsid=1)) == (1,)


def fail(device: ZonedDevice) -> None:
    """Have the host of *device* fail."""
    device.image.fail(OSError(errno.EIO, "Input/output error"), "the image could not be written")


def test_a_namespace_that_is_write_protected_from_now_on_is_an_event(
    controller: Controller, device: ZonedDevice
) -> None:
    """Linux enables this event only, and makes its block device read-only."""
    woken: list[int] = []
    controller.wake = lambda: woken.append(1)
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, NAMESPACE_EVENTS)
    for cid in (50, 51):
        assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=cid)) is None
    assert identify(controller, Cns.NAMESPACE, nsid=1).data[99] == 0
    device.port("other", VIRTIO).set_cond(2, Condition.READONLY)
    assert list(controller.due_events()) == [], "an event of zones, which are not asked for"
    woken.clear()
    fail(device)
    assert woken
    # Dword 0: a notice (2), Namespace Attribute Changed (00h), log page 04h.
    assert list(controller.due_events()) == [(50, Answer(NvmeStatus.SUCCESS, 0x040002))]
    assert identify(controller, Cns.NAMESPACE, nsid=1).data[99] == 1
    assert identify(controller, Cns.INDEPENDENT_NAMESPACE, nsid=1).data[8] == 1
    fail(device)
    assert list(controller.due_events()) == [], "it is known already"
    assert struct.unpack_from("<2I", log(controller, Log.CHANGED_NAMESPACES, retain=True)) == (1, 0)
    assert struct.unpack_from("<2I", log(controller, Log.CHANGED_NAMESPACES)) == (1, 0)
    assert struct.unpack_from("<2I", log(controller, Log.CHANGED_NAMESPACES)) == (0, 0)
    assert list(controller.due_events()) == []


def test_events_of_both_kinds_come_as_the_host_asks_for_them(controller: Controller, device: ZonedDevice) -> None:
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
    for cid in (1, 2):
        assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=cid)) is None
    device.port("other", VIRTIO).set_cond(2, Condition.READONLY)
    assert [answer.result & 0xFFFFFF for _, answer in controller.due_events()] == [0xBFEF02]
    fail(device)
    assert list(controller.due_events()) == [], "notices are masked until the host reads the log page"
    log(controller, Log.CHANGED_ZONES, nsid=1)
    assert [answer.result for _, answer in controller.due_events()] == [0x040002]


def test_a_namespace_that_can_be_written_to_again_after_a_restart_is_an_event(
    controller: Controller, subsystem: Subsystem, device: ZonedDevice, tmp_path: Path
) -> None:
    """The guest of a drive stays, and the image is opened anew."""
    ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, NAMESPACE_EVENTS)
    for cid in (1, 2):
        assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=cid)) is None
    healthy = controller.state()
    fail(device)
    assert len(list(controller.due_events())) == 1
    log(controller, Log.CHANGED_NAMESPACES)
    failed = controller.state()
    assert (healthy["protected"], failed["protected"]) == ([], [1])
    (tmp_path / "again").mkdir()
    with new_device(tmp_path / "again") as again:
        for state, expected in ((failed, [2]), (healthy, [])):
            other = Controller(Subsystem([again]), controller.identity, admin=ADMIN)
            other.restore(state)
            assert [cid for cid, _ in other.due_events()] == expected
            other.close()


def test_only_so_many_event_requests(controller: Controller) -> None:
    for cid in range(4):
        assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=cid)) is None
    assert ask(controller, AdminOpcode.ASYNC_EVENT).status == 0x105


def test_a_discovery_controller_has_its_log_only(subsystem: Subsystem) -> None:
    identity = ControllerIdentity(serial="S", firmware="2.0", nqn="d", cntlid=3, max_nsid=0, is_discovery=True)
    controller = Controller(subsystem, identity, admin=ADMIN, discovered=lambda: b"found".ljust(1024, b"\0"))
    assert log(controller, Log.DISCOVERY, room=1024)[:5] == b"found"
    answer = ask(controller, AdminOpcode.GET_LOG_PAGE, Log.SMART | 15 << 16)
    assert answer.status is NvmeStatus.INVALID_LOG_PAGE
    assert bytes(identify(controller, Cns.ACTIVE_NAMESPACES).data) == bytes(4096)
    assert controller.namespaces_of_queue() == {}
    controller.close()


def test_a_transport_carries_out_its_own_commands(subsystem: Subsystem) -> None:
    def create(asked: Command, data: bytes | memoryview) -> Answer:
        if asked.cdw10:
            raise RefusedError(NvmeRule.NVME_QUEUE_ID, "queue 1")
        return Answer(NvmeStatus.SUCCESS, len(data))

    identity = ControllerIdentity(serial="S", firmware="2.0", nqn=subsystem.nqn, cntlid=3, max_nsid=1)
    handlers: dict[int, AdminHandler] = {AdminOpcode.CREATE_SQ: create}
    controller = Controller(subsystem, identity, admin=(*ADMIN, AdminOpcode.CREATE_SQ), transport_handlers=handlers)
    assert ask(controller, AdminOpcode.CREATE_SQ, data=b"four").result == 4
    assert ask(controller, AdminOpcode.CREATE_SQ, 1).status == NvmeStatus.INVALID_QUEUE_ID
    controller.close()


def test_events_of_two_namespaces_come_one_after_the_other(device: ZonedDevice, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with new_device(tmp_path / "second") as second:
        subsystem = Subsystem([device, second])
        identity = ControllerIdentity(serial="S", firmware="2.0", nqn=subsystem.nqn, cntlid=3, max_nsid=2)
        controller = Controller(subsystem, identity, admin=ADMIN)
        woken: list[int] = []
        controller.wake = lambda: woken.append(1)
        ask(controller, AdminOpcode.SET_FEATURES, Feature.ASYNC_EVENTS, EVENTS)
        for cid in (1, 2):
            assert controller.execute(command(AdminOpcode.ASYNC_EVENT, cid=cid)) is None
        for each in (second, device):
            each.port("other", VIRTIO).set_cond(0, Condition.READONLY)
        assert list(controller.due_events()) == [(1, Answer(NvmeStatus.SUCCESS, 1 << 32 | 0xBFEF02))]
        woken.clear()
        log(controller, Log.CHANGED_ZONES, nsid=1)
        assert woken
        assert list(controller.due_events()) == [(2, Answer(NvmeStatus.SUCCESS, 2 << 32 | 0xBFEF02))]
        controller.close()


def test_the_timestamp_goes_on_and_a_reset_clears_it(device: ZonedDevice) -> None:
    device.clock_ns = lambda: now_ns
    now_ns = 7_000_000_000
    subsystem = Subsystem([device])
    identity = ControllerIdentity(serial="S", firmware="2.0", nqn=subsystem.nqn, cntlid=3, max_nsid=1)
    controller = Controller(subsystem, identity, admin=ADMIN)
    assert identify(controller, Cns.CONTROLLER).data[520] & 0x40, "ONCS: Timestamp; Linux sets none without it"
    data = bytes.fromhex("c0be10779301 0000")
    assert ask(controller, AdminOpcode.SET_FEATURES, Feature.TIMESTAMP, data=data) == Answer(NvmeStatus.SUCCESS)
    now_ns += 16_000_000
    assert ask(controller, AdminOpcode.GET_FEATURES, Feature.TIMESTAMP).data == bytes.fromhex("d0be10779301 0200")
    following = Controller(subsystem, identity, admin=ADMIN)
    following.restore(json.loads(json.dumps(controller.state())))
    assert ask(following, AdminOpcode.GET_FEATURES, Feature.TIMESTAMP).data == bytes.fromhex("d0be10779301 0200")
    controller.reset()
    assert ask(controller, AdminOpcode.GET_FEATURES, Feature.TIMESTAMP).data == bytes(8)
    controller.close()
    following.close()


def test_controller_lists(controller: Controller, subsystem: Subsystem) -> None:
    """CNS 13h: of the subsystem; 12h: those that a namespace is attached to. CDW10 31:16: the first number."""
    for is_discovery in (False, True, False):
        subsystem.take_cntlid(is_discovery=is_discovery)
    assert identify(controller, Cns.CONTROLLERS).data[:8] == bytes.fromhex("0200 0100 0300 0000")
    assert identify(controller, Cns.CONTROLLERS | 2 << 16).data[:6] == bytes.fromhex("0100 0300 0000")
    assert identify(controller, Cns.NAMESPACE_CONTROLLERS, nsid=1).data[:6] == bytes.fromhex("0200 0100 0300")
    assert identify(controller, Cns.NAMESPACE_CONTROLLERS, nsid=2).status == 0x00B
    assert identify(controller, Cns.NAMESPACE_CONTROLLERS, nsid=0xFFFFFFFF).status == 0x00B
