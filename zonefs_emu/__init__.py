"""zonefs_emu: zoned storage without the hardware.

One sparse file behaves, command for command, like a host-managed zoned device. General layout, bottom to top:

    errors, units     the exception tree, Status, and the only unit conversions
    model             the zoned device as mathematics: no files, no time, no event loop
    persist           the image file: codec, backing, image
    device            ZonedDevice = model + image; Port = what one front-end holds of it
    scsi, virtio      protocols without transports
    virtqueue         serving virtqueues, for every transport
    fs, vhost_user, vduse, ublk
                      front-ends: zonefs over FUSE, virtual machines, the host kernel
    daemon, cli       one process per image; the verbs
"""

from typing import Final

#: The one place of the version: pyproject.toml reads it from here. What an installation notes of it would take longer
#: to find than ``zonefs-emu --version`` takes altogether.
__version__: Final = "0.1.0"
