"""The tables from refusals to errno are total and say what Linux says."""

import errno

from zonefs_emu.errors import Status
from zonefs_emu.fs.errnos import ERRNO_OF, FS_RULES, FileError
from zonefs_emu.fs.rules import ZonefsRule


def test_every_status_has_an_errno() -> None:
    assert set(ERRNO_OF) == set(Status)
    assert all(ERRNO_OF[status] for status in Status if status)
    assert {status: number for status, number in ERRNO_OF.items() if number not in {0, errno.EIO}} == {
        Status.OPEN_RESOURCE: errno.ETOOMANYREFS,
        Status.ACTIVE_RESOURCE: errno.EOVERFLOW,
        Status.NO_SPACE: errno.ENOSPC,
        Status.UNSUPPORTED: errno.EOPNOTSUPP,
    }


def test_every_rule_of_zonefs_says_its_errno() -> None:
    assert set(FS_RULES) == set(ZonefsRule)
    for rule, (status, number) in FS_RULES.items():
        assert status
        assert rule.sentence.startswith(errno.errorcode[number] + ", ")


def test_the_error_names_its_errno() -> None:
    assert str(FileError(errno.EINVAL)) == "(22, 'EINVAL')"
