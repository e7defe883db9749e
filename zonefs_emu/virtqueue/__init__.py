"""Virtio devices that are served, on any transport: the loop, queues, records of requests in flight, what may wait."""
