"""The features and the configuration space of the virtio block device.

Pure, except for the cache mode, which the driver can write.

Source: virtio 1.4, "Block Device", "Feature bits" and "Device configuration layout".
"""

import struct
from dataclasses import dataclass
from typing import Final

from zonefs_emu.model.geometry import Geometry
from zonefs_emu.units import SECTOR_SHIFT, to_bytes
from zonefs_emu.virtio import features as bits
from zonefs_emu.virtio.ring import TRANSFER_BYTES_MAX

DEVICE_ID: Final = 2

F_SIZE_MAX: Final = 1 << 1
F_SEG_MAX: Final = 1 << 2
F_RO: Final = 1 << 5
F_BLK_SIZE: Final = 1 << 6
F_FLUSH: Final = 1 << 9
F_TOPOLOGY: Final = 1 << 10
F_CONFIG_WCE: Final = 1 << 11
F_MQ: Final = 1 << 12
F_WRITE_ZEROES: Final = 1 << 14
F_ZONED: Final = 1 << 17

CONFIG_BYTES: Final = 96
CONFIG_WCE_OFFSET: Final = 32
_CONFIG: Final = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3xIIIIIIIIB3x")
assert _CONFIG.size == CONFIG_BYTES
MODEL_NONE: Final = 0
MODEL_HOST_MANAGED: Final = 1

WRITE_ZEROES_SECTORS_MAX: Final = 1 << 16
#: Sizes of segments are offered in multiples of this.
_SEGMENT_UNIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkOptions:
    """The options of a virtio block device.

    *serial*: the answer to GET_ID, of which up to 20 bytes are used. *seg_max*: the most data segments of a request.
    *write_zeroes*: offer WRITE_ZEROES, which obeys the rules of a write.
    """

    serial: str
    nr_queues: int = 1
    seg_max: int = 126
    write_zeroes: bool = False


class ConfigSpace:
    """The features and configuration space of a zoned block device.

    *offered* has the feature bits. *wce* is the cache mode, which the driver can set: True for a write-back cache.
    """

    def __init__(self, geometry: Geometry, options: BlkOptions, *, readonly: bool) -> None:
        self._geometry = geometry
        self._options = options
        #: Whether the device has sequential zones, which makes it host-managed.
        self.is_zoned = geometry.nr_conventional < geometry.nr_zones
        self.wce = True
        offered = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE | bits.TRANSPORT
        if options.nr_queues > 1:
            offered |= F_MQ
        if readonly:
            offered |= F_RO
        if self.is_zoned:
            # Never with DISCARD: "If the VIRTIO_BLK_F_ZONED feature is offered by the device with the VIRTIO_BLK_Z_HM
            # zone model, then the VIRTIO_BLK_F_DISCARD feature MUST NOT be offered".
            offered |= F_ZONED
        if options.write_zeroes:
            offered |= F_WRITE_ZEROES
        self.offered = offered

    def encode(self) -> bytes:
        """Return the configuration space: 96 bytes."""
        geometry, options = self._geometry, self._options
        block_bytes = geometry.block_size_bytes
        granularity_bytes = to_bytes(geometry.write_granularity)
        exponent = max((granularity_bytes // block_bytes).bit_length() - 1, 0)
        zeroes = options.write_zeroes
        zoned = self.is_zoned
        # A request of seg_max segments of size_max has no more data than a chain may have. The device also takes longer
        # segments, as long as the chain is not too long in total.
        size_max = max(TRANSFER_BYTES_MAX // options.seg_max & -_SEGMENT_UNIT_BYTES, _SEGMENT_UNIT_BYTES)
        # The standard on max_append_sectors: "The value of this field MUST NOT exceed the seg_max * size_max value."
        max_append = min(geometry.max_append, size_max * options.seg_max >> SECTOR_SHIFT)
        return _CONFIG.pack(
            geometry.size,
            size_max,
            options.seg_max,
            0, 0, 0,  # geometry: not offered
            block_bytes,
            exponent, 0, granularity_bytes // block_bytes, 0,  # topology, in logical blocks
            int(self.wce),
            options.nr_queues,
            0, 0, 0,  # discard: never offered
            WRITE_ZEROES_SECTORS_MAX if zeroes else 0, 1 if zeroes else 0, 0,
            0, 0, 0,  # secure erase: not offered
            geometry.zone_size if zoned else 0,
            geometry.max_open_zones if zoned else 0,
            geometry.max_active_zones if zoned else 0,
            max_append if zoned else 0,
            granularity_bytes if zoned else 0,
            MODEL_HOST_MANAGED if zoned else MODEL_NONE,
        )  # fmt: skip

    def take(self, offset: int, data: bytes) -> None:
        """Receive a write of *data* at *offset*: the field ``writeback`` is set, and all other bytes are ignored.

        Other bytes are no error, because some front-ends send the whole space for a change of one byte.
        """
        at = CONFIG_WCE_OFFSET - offset
        if 0 <= at < len(data):
            self.wce = bool(data[at])
