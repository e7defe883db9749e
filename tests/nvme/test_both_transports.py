"""The drive describes itself alike over both transports, but for the fields that belong to a transport.

The guest compares the drive over TCP with those of QEMU and of the kernel (test_nvme_peers.py). So this holds for the
drive over vfio-user as well.
"""

from pathlib import Path
from typing import Final

from tests.lacking_drive import Page
from tests.nvme.test_what_linux_insists_on import connected
from zonefs_emu.nvme.command import AdminOpcode
from zonefs_emu.nvme.identify import Cns, CommandSet
from zonefs_emu.nvme.logs import Log

#: The error log is left out: each host has errors of its own.
PAGES: Final = (
    *(Page(opcode=AdminOpcode.IDENTIFY, number=cns, command_set=each) for cns in range(0x20) for each in CommandSet),
    *(
        Page(opcode=AdminOpcode.GET_LOG_PAGE, number=number, command_set=each)
        for number in (0, *range(2, 0x20), Log.CHANGED_ZONES)
        for each in CommandSet
    ),
)
#: The first and the last byte of each field that differs, and its bytes over TCP and over vfio-user.
OF_CONTROLLER: Final = {
    "OACS: Doorbell Buffer Config": (257, 257, "00", "01"),
    "MAXCMD": (514, 515, "8000", "0000"),
    "SGLS": (536, 539, "01001000", "00000000"),
    "IOCCSZ": (1792, 1795, "04200000", "00000000"),
    "IORCSZ": (1796, 1799, "01000000", "00000000"),
    "MSDBD": (1803, 1803, "01", "00"),
}
#: Commands supported, of which each has 4 bytes: those that create and delete queues, and Doorbell Buffer Config.
OF_EFFECTS: Final = {
    opcode.name: (4 * opcode, 4 * opcode, "00", "01")
    for opcode in (
        AdminOpcode.DELETE_SQ, AdminOpcode.CREATE_SQ, AdminOpcode.DELETE_CQ, AdminOpcode.CREATE_CQ,
        AdminOpcode.DOORBELL_BUFFER,
    )
}  # fmt: skip


def test_only_fields_of_a_transport_differ(tmp_path: Path) -> None:
    found = []
    for way in ("tcp", "vfio-user"):
        (tmp_path / way).mkdir()
        with connected(tmp_path / way, way) as (host, _, _):
            found.append([page.ask(host) for page in PAGES])
    assert sum(data is not None for data in found[0]) >= 30
    for page, by_tcp, by_pci in zip(PAGES, *found, strict=True):
        expected = {}
        if (page.opcode, page.number) == (AdminOpcode.IDENTIFY, Cns.CONTROLLER):
            expected = OF_CONTROLLER
        elif (page.opcode, page.number) == (AdminOpcode.GET_LOG_PAGE, Log.EFFECTS):
            expected = OF_EFFECTS
        assert (by_tcp is None) == (by_pci is None), page
        if by_tcp is None or by_pci is None:
            continue
        for name, (first, last, tcp, pci) in expected.items():
            assert (by_tcp[first : last + 1].hex(), by_pci[first : last + 1].hex()) == (tcp, pci), name
        own = {at for first, last, _, _ in expected.values() for at in range(first, last + 1)}
        pairs = enumerate(zip(by_tcp, by_pci, strict=True))
        assert [at for at, (left, right) in pairs if left != right and at not in own] == [], page
