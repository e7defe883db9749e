"""What joins a protocol to a session: each module makes front-ends of one kind.

    zonefs        the image as a mounted directory, by FUSE
    block_device  the image as a block device of this host's kernel, by ublk or by VDUSE
    vhost_user    the image as a disk of virtual machines, at vhost-user sockets

:class:`zonefs_emu.daemon.session.FrontEnd` is their common interface.
"""
