"""Mount options, as the kernel's zonefs takes them, and the few of FUSE that matter.

Pure.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from zonefs_emu.errors import UsageError


class ErrorPolicy(Enum):
    """What an I/O error does. Source: Linux Documentation/filesystems/zonefs.rst, "Mount options"."""

    REMOUNT_RO = "remount-ro"
    ZONE_RO = "zone-ro"
    ZONE_OFFLINE = "zone-offline"
    REPAIR = "repair"


#: Options that the VFS handles and that need no more from us than being passed on.
VFS_OPTIONS: Final = frozenset({
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "dirsync", "atime", "noatime", "nodiratime",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How to mount.

    *passed_on* are options of the VFS, for the kernel. *allow_other* lets users other than the mounting one in.
    *async_dio*: queued asynchronous direct I/O, at the price that such a write across a file's capacity is EIO and not
    short; the names are those that other FUSE file systems have for it.
    """

    errors: ErrorPolicy = ErrorPolicy.REMOUNT_RO
    explicit_open: bool = False
    readonly: bool = False
    allow_other: bool = False
    async_dio: bool = False
    passed_on: frozenset[str] = frozenset()


def parse_options(text: str) -> MountOptions:
    """Return the options in *text*, separated by commas as after ``mount -o``; the last of contradicting ones counts.

    Raises:
        UsageError: an option that zonefs does not know.

    Source: Linux fs/zonefs/super.c, zonefs_parse_param: an unknown option or policy is EINVAL.
    """
    errors = ErrorPolicy.REMOUNT_RO
    explicit_open = readonly = allow_other = async_dio = False
    passed_on: set[str] = set()
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name == "errors":
            try:
                errors = ErrorPolicy(value)
            except ValueError:
                known = ", ".join(policy.value for policy in ErrorPolicy)
                msg = f"errors={value} is no policy of zonefs: it has {known}"
                raise UsageError(msg) from None
        elif option == "explicit-open":
            explicit_open = True
        elif option in {"ro", "rw"}:
            readonly = option == "ro"
        elif option == "allow_other":
            allow_other = True
        elif option in {"async_dio", "no_async_dio"}:
            async_dio = option == "async_dio"
        elif option in VFS_OPTIONS:
            passed_on.discard(option.removeprefix("no"))
            passed_on.discard("no" + option)
            passed_on.add(option)
        elif option != "defaults":
            msg = f"unknown mount option {option}"
            raise UsageError(msg)
    return MountOptions(
        errors=errors,
        explicit_open=explicit_open,
        readonly=readonly,
        allow_other=allow_other,
        async_dio=async_dio,
        passed_on=frozenset(passed_on),
    )
