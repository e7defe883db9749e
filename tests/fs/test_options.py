"""Mount options."""

import pytest

from zonefs_emu.errors import UsageError
from zonefs_emu.fs.options import ErrorPolicy, MountOptions, parse_options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", MountOptions()),
        ("defaults", MountOptions(errors=ErrorPolicy.REMOUNT_RO)),
        ("errors=remount-ro", MountOptions()),
        ("errors=zone-ro", MountOptions(errors=ErrorPolicy.ZONE_RO)),
        ("errors=zone-offline", MountOptions(errors=ErrorPolicy.ZONE_OFFLINE)),
        ("errors=zone-ro,errors=repair", MountOptions(errors=ErrorPolicy.REPAIR)),
        ("explicit-open,allow_other", MountOptions(explicit_open=True, allow_other=True)),
        ("async_dio", MountOptions(async_dio=True)),
        ("async_dio,no_async_dio", MountOptions()),
        ("defaults,auto,noauto,nofail,_netdev,relatime,nouser,x-a.b=c,X-mount.mkdir,comment=d", MountOptions()),
        ("user", MountOptions(passed_on=frozenset({"noexec", "nosuid", "nodev"}))),
        ("user=alice,exec", MountOptions(passed_on=frozenset({"exec", "nosuid", "nodev"}))),
        ("dev,owner", MountOptions(passed_on=frozenset({"nosuid", "nodev"}))),
        ("auto_unmount,allow_root", MountOptions(passed_on=frozenset({"auto_unmount", "allow_root"}))),
        ("ro", MountOptions(readonly=True)),
        ("ro,rw", MountOptions()),
        ("noatime,exec", MountOptions(passed_on=frozenset({"noatime", "exec"}))),
        ("nodiratime", MountOptions(nodiratime=True)),
        ("nodiratime,diratime", MountOptions()),
        ("noexec,exec", MountOptions(passed_on=frozenset({"exec"}))),
        ("exec,noexec", MountOptions(passed_on=frozenset({"noexec"}))),
        ("sync,async", MountOptions(passed_on=frozenset({"async"}))),
        ("async,dirsync,sync", MountOptions(passed_on=frozenset({"sync", "dirsync"}))),
    ],
)
def test_options(text: str, options: MountOptions) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize(
    "text",
    [
        "foo=bar",
        "errors",
        "errors=",
        "errors=continue",
        "explicit-open=1",
        "ro=1",
        "uid=0",
        "nofail=1",
        "x",
        "userx",
        "fsname=a",
        "subtype=b",
        "loop",
        "remount",
        "strictatime",
    ],
)
def test_unknown_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse_options(text)
