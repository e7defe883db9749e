"""Mount options: those of the kernel's zonefs, and some of FUSE and mount(8).

Pure.
"""

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError


class ErrorPolicy(Enum):
    """The effect of an I/O error on a mount: the option ``errors=``.

    Source: Linux Documentation/filesystems/zonefs.rst, "Mount options".
    """

    REMOUNT_RO = "remount-ro"
    ZONE_RO = "zone-ro"
    ZONE_OFFLINE = "zone-offline"
    REPAIR = "repair"


#: Options that the VFS handles. They are passed on to the kernel.
VFS_OPTIONS: Final = frozenset({
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "dirsync", "atime", "noatime",
})  # fmt: skip
#: Options without an effect here: those for mount(8) itself, which it passes on to helpers all the same, and those that
#: are the default. Source: mount(8), "Filesystem-independent mount options".
_FOR_MOUNT: Final = frozenset({
    "defaults", "auto", "noauto", "nofail", "_netdev", "nouser", "nousers", "noowner", "nogroup", "relatime",
    "nostrictatime", "nolazytime", "silent", "loud",
})  # fmt: skip
#: Comments in fstab, for mount(8) and for other programs.
_COMMENTS: Final = ("x-", "X-", "comment=")
#: Options that let ordinary users mount, and what each implies unless a later option says otherwise. Source: mount(8).
_BY_USERS: Final = MappingProxyType({
    "user": ("noexec", "nosuid", "nodev"), "users": ("noexec", "nosuid", "nodev"), "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
})  # fmt: skip
#: Options that libfuse handles.
_FUSE_OPTIONS: Final = frozenset({"auto_unmount", "allow_root"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How to mount.

    *errors*, *explicit_open* and *readonly* are the options of the kernel's zonefs. *allow_other*: users other than the
    mounting one can use the mount. *async_dio*: asynchronous direct I/O is queued. An asynchronous write across a
    file's capacity then fails with EIO instead of being short. Other FUSE file systems use the same name.
    *passed_on* are options of the VFS, for the kernel, and of libfuse: with allow_root, root can use the mount besides
    the mounting user; with auto_unmount, a process of its own unmounts when this one dies.
    *nodiratime*: no access to a directory is noted. The volume keeps these times, and libfuse 3.14 does not know the
    option, so it is not passed on.
    """

    errors: ErrorPolicy = ErrorPolicy.REMOUNT_RO
    explicit_open: bool = False
    readonly: bool = False
    allow_other: bool = False
    async_dio: bool = False
    nodiratime: bool = False
    passed_on: frozenset[str] = frozenset()


def parse_options(text: str) -> MountOptions:
    """Return the options in *text*, separated by commas as after ``mount -o``. Of opposites, the last one counts.

    Raises:
        UsageError: *text* has an option that neither zonefs nor mount(8) knows, an unknown policy of ``errors=``, or
            both allow_other and allow_root.

    Source: Linux fs/zonefs/super.c, zonefs_parse_param: an unknown option or policy is EINVAL.
    """
    errors = ErrorPolicy.REMOUNT_RO
    explicit_open = readonly = allow_other = async_dio = nodiratime = False
    passed_on: set[str] = set()
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name == "errors":
            try:
                errors = ErrorPolicy(value)
            except ValueError:
                known = ", ".join(policy.value for policy in ErrorPolicy)
                message = f"errors={value} is not known: there are {known}"
                raise UsageError(message) from None
        elif option == "explicit-open":
            explicit_open = True
        elif option in {"ro", "rw"}:
            readonly = option == "ro"
        elif option == "allow_other":
            allow_other = True
        elif option in {"async_dio", "no_async_dio"}:
            async_dio = option == "async_dio"
        elif option in {"diratime", "nodiratime"}:
            nodiratime = option == "nodiratime"
        elif option in VFS_OPTIONS:
            _replace(passed_on, option)
        elif option in _FUSE_OPTIONS:
            passed_on.add(option)
        elif option in _BY_USERS or name == "user":
            for implied in _BY_USERS[name]:
                _replace(passed_on, implied)
        elif option not in _FOR_MOUNT and not option.startswith(_COMMENTS):
            message = f"unknown mount option {option}"
            raise UsageError(message)
    if allow_other and "allow_root" in passed_on:
        message = "allow_other and allow_root exclude each other: allow_other lets all users in, allow_root only root"
        raise UsageError(message)
    return MountOptions(
        errors=errors,
        explicit_open=explicit_open,
        readonly=readonly,
        allow_other=allow_other,
        async_dio=async_dio,
        nodiratime=nodiratime,
        passed_on=frozenset(passed_on),
    )


def _replace(options: set[str], option: str) -> None:
    """Add *option*, and remove its opposite."""
    if option in {"sync", "async"}:
        options -= {"sync", "async"}
    options.discard(option.removeprefix("no"))
    options.discard("no" + option)
    options.add(option)
