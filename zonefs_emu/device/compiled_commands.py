"""Which ports have compiled commands (plain_commands.pyx): those that neither record nor time commands.

May not know: rings, where requests come from.
"""

from typing import TYPE_CHECKING

from zonefs_emu.compiled_modules import is_usable
from zonefs_emu.device.faulty_port import FaultyPort
from zonefs_emu.device.image_access import LONG_WRITE_SECTORS
from zonefs_emu.device.port import Port
from zonefs_emu.persist.backing import FileBacking

if TYPE_CHECKING:
    from zonefs_emu.device.plain_commands import PlainCommands


def compiled_commands(port: Port, *, run_sectors_max: int = 0) -> "PlainCommands | None":
    """Return the plain commands of *port* for one thread; None if Python must carry out all requests.

    That is so for a port that records commands, holds their answers or changes them, for an image that is closed or
    lost, and for an image that is no file of the host. *run_sectors_max*: the most sectors of consecutive writes that
    are carried out as one; no matter to who has single commands only.
    """
    if not is_usable("zonefs_emu.device.plain_commands"):
        return None
    from zonefs_emu.device.plain_commands import PlainCommands  # noqa: PLC0415  (optional)

    core = port.device
    backing = core.image.backing
    if (
        type(port) is not FaultyPort
        or type(backing) is not FileBacking
        or core.access.check_read != core.machine.check_read
        or core.access.preadv is not backing.preadv
    ):
        return None
    return PlainCommands(
        port=port, descriptor=backing.descriptor, write_sectors_max=LONG_WRITE_SECTORS,
        run_sectors_max=run_sectors_max,
    )  # fmt: skip
