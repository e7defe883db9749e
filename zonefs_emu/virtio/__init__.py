"""Virtio devices without a transport: guest memory, rings, block and SCSI requests. Pure but for the device port."""
