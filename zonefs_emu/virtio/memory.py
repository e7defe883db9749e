"""Guest memory: from guest addresses to bytes of this process.

May not know: the origin of the bytes, and their use. Addresses and lengths come from the guest, and each is checked.

Invariants: regions do not overlap, and every returned slice is in one of them. An object never loses or moves a region;
a subclass may add regions. When the guest's memory changes, a new GuestMemory replaces the object, and code that still
has the old object continues with the old memory.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from zonefs_emu.errors import PeerError

_ADDRESS_END: Final = 1 << 64


class BadAddressError(PeerError):
    """A range of addresses of the guest is empty, or not all of it is memory."""


class Region(NamedTuple):
    """A run of *size* bytes of guest memory at *guest_address*, mapped here as *view*.

    *user_address* is its address in the address space of the front-end.
    """

    guest_address: int
    size: int
    user_address: int
    view: memoryview


class GuestMemory:
    """A set of regions.

    *hot_start*, *hot_end* and *hot_view* are start, end and memory of the largest region. Rings look there first,
    without a call.
    """

    __slots__ = ("_starts", "hot_end", "hot_start", "hot_view", "regions")

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        """Take *regions*, in any order.

        Raises:
            PeerError: two regions overlap, or one is empty or reaches beyond 64-bit addresses.
        """
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_address))
        end = 0
        for region in self.regions:
            if region.size <= 0 or region.guest_address < end or region.guest_address + region.size > _ADDRESS_END:
                message = (
                    f"memory region of {region.size} bytes at {region.guest_address:#x} is empty, overlaps another one "
                    "or does not end within 64 bits"
                )
                raise PeerError(message)
            if len(region.view) != region.size:
                raise AssertionError(region)
            end = region.guest_address + region.size
        self._starts = [region.guest_address for region in self.regions]
        hot = max(self.regions, key=lambda region: region.size, default=Region(0, 0, 0, memoryview(b"")))
        self.hot_start = hot.guest_address
        self.hot_end = hot.guest_address + hot.size
        self.hot_view = hot.view

    def slices(self, address: int, length: int) -> list[memoryview]:
        """Return the memory at guest *address*, *length* bytes: one slice, or several if it spans regions.

        Raises:
            BadAddressError: not all of it is memory, or *length* is not positive.
        """
        if length <= 0:
            message = f"a buffer has {length} bytes at {address:#x}, but it must have at least one"
            raise BadAddressError(message)
        found: list[memoryview] = []
        index = bisect_right(self._starts, address) - 1
        while length:
            region = self.regions[index] if 0 <= index < len(self.regions) else None
            if region is None or not region.guest_address <= address < region.guest_address + region.size:
                message = f"guest address {address:#x} is not in the guest's memory"
                raise BadAddressError(message)
            offset = address - region.guest_address
            part = min(length, region.size - offset)
            found.append(region.view[offset : offset + part])
            address += part
            length -= part
            index += 1
        return found

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of *length* bytes at guest *address*.

        Raises:
            BadAddressError: as :meth:`slices`.
        """
        slices = self.slices(address, length)
        return bytes(slices[0]) if len(slices) == 1 else b"".join(slices)

    def at_user_address(self, address: int, length: int) -> memoryview:
        """Return the *length* bytes that the front-end has at *address* of its own address space, where rings are.

        Raises:
            BadAddressError: they do not lie in one region.
        """
        region = self._region_of_user(address, length)
        offset = address - region.user_address
        return region.view[offset : offset + length]

    def guest_address_of_user(self, address: int, length: int) -> int:
        """Return the guest address of the *length* bytes that the front-end has at *address* of its own address space.

        Raises:
            BadAddressError: they do not lie in one region.
        """
        region = self._region_of_user(address, length)
        return region.guest_address + address - region.user_address

    def _region_of_user(self, address: int, length: int) -> Region:
        for region in self.regions:
            if region.user_address <= address and address + length <= region.user_address + region.size:
                return region
        message = f"{length} bytes at user address {address:#x} do not lie in one memory region"
        raise BadAddressError(message)
