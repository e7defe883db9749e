"""Serving virtio devices on any transport: the loop, the queues, the worker, and the two devices."""
