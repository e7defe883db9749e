"""The vhost-user back-end: serves a virtio device to a front-end (QEMU, libblkio, crosvm) at a Unix socket."""
