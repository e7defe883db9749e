"""Feature bits of rings and transports, which all device types have, and the bits of the device status.

Source: virtio 1.4, "Reserved Feature Bits" and "Device Status Field"; vhost-user.rst.
"""

from typing import Final

NOTIFY_ON_EMPTY: Final = 1 << 24
LOG_ALL: Final = 1 << 26  # vhost: the back-end logs the pages that it writes
ANY_LAYOUT: Final = 1 << 27
INDIRECT_DESC: Final = 1 << 28
EVENT_IDX: Final = 1 << 29
PROTOCOL_FEATURES: Final = 1 << 30  # vhost-user: there are protocol features
VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33
RING_PACKED: Final = 1 << 34

#: The features that every device offers.
TRANSPORT: Final = VERSION_1 | INDIRECT_DESC | EVENT_IDX | RING_PACKED

#: Bits of the device status.
STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128
