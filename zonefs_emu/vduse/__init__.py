"""Transport to the host kernel over VDUSE: a virtio device for a driver of the host, or of a virtual machine."""
