"""zonefs_emu: zoned storage without the hardware.

One sparse file behaves, command for command, like a host-managed zoned device. General layout, bottom to top:

    errors, units     the exception tree, Status, and the only unit conversions
    compiled_modules  whether the optional compiled modules are used
    polling           how long a loop looks for the next request before it sleeps
    descriptor_socket bytes and file descriptors on a UNIX socket
    model             the zoned device as mathematics: no files, no clock, no event loop
    fitting           parameters of the timing model from measurements of a drive
    persist           the image file: codec, backing, image
    device            ZonedDevice = model + image; Port = one front-end's access to it
    inflight          records of requests in flight, for the process that takes over
    scsi, nvme, virtio
                      protocols without transports
    virtqueue         serving virtqueues, for every transport
    fs, vhost_user, vfio_user, nvme_tcp, vduse, ublk
                      transports: zonefs over FUSE, virtual machines, NVMe hosts, the host kernel
    daemon            one process per image: sessions and the control socket
    front_ends        the front-ends, each of which joins a transport to a session
    cli, testing      the verbs; doubles and fixtures for tests
"""

from typing import Final

#: The version, which pyproject.toml reads from here. Reading the metadata of the installation instead would take longer
#: than the rest of ``zonefs-emu --version``.
__version__: Final = "0.1.0"
