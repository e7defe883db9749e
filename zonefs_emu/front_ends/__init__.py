"""Front-ends: each module joins one protocol to a session.

    zonefs        the image as a mounted directory, by FUSE
    ublk, vduse   the image as a block device of this host's kernel
    nvme_host     the image as an NVMe drive of this host, over the loopback interface
    kernel_device, block_device, attached
                  what ublk, vduse and nvme_host share; the choice of one; listing and ending devices
    vhost_user    the image as a disk of virtual machines, at vhost-user sockets
    nvme_tcp      the image as an NVMe ZNS drive, at TCP sockets
    vfio_user     the image as an NVMe ZNS drive of virtual machines, at vfio-user sockets
    own_thread    what vhost_user, nvme_tcp and vfio_user share: a server that blocks, on a thread of its own
    answers       the rules of all front-ends, joined for ``why``
    mkfs          the verb that formats an image with zonefs
    session_process
                  a session in a process of its own, for Python programs
    ways_in       which front-ends work on this machine
    known         opening images, and running sessions, with the rules and verbs of all these modules

:class:`zonefs_emu.daemon.session.FrontEnd` is the common interface of front-ends.
:class:`zonefs_emu.daemon.extensions.Extensions` is the interface for the rules and verbs that they add.
"""
