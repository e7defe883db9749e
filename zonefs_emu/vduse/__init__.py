"""Transport to the host kernel: a virtio device whose driver is the host's own, or a virtual machine's, over VDUSE."""
