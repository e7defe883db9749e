"""The vhost-user back-end: virtio devices for a front-end (QEMU, libblkio, crosvm) at a Unix socket."""
