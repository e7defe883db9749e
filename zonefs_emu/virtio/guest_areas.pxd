# Guest memory for the compiled walkers, from guest addresses to pointers. The functions are inline C, so there is no
# module of this name.

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint64_t

from zonefs_emu.device.raw_memory cimport address_of


cdef struct Area:
    # A region of guest memory: size bytes from guest address start on are at pointer at.
    uint64_t start
    uint64_t size
    uint8_t *at
    bint is_writable


cdef struct GuestAreas:
    # All regions. The structure must begin as zeros. hot: the region of the address that was found last.
    Area *areas
    Area *hot
    int nr_areas


cdef inline int learn_areas(GuestAreas *known, object regions) except -1:
    """Replace the *known* regions by *regions*, whose memory the caller must keep.

    Raises:
        MemoryError: there is no memory for the list.
        ValueError, BufferError: as address_of; *known* is then empty.
    """
    cdef Area *areas = <Area *>PyMem_Malloc(sizeof(Area) * max(len(regions), 1))
    cdef int count = 0
    if areas is NULL:
        raise MemoryError
    forget_areas(known)
    known.areas = known.hot = areas
    for region in regions:
        is_writable = not region.view.readonly
        areas[count].start = region.guest_address
        areas[count].size = region.size
        areas[count].at = address_of(region.view, region.size, 1, is_writable)
        areas[count].is_writable = is_writable
        count += 1
    known.nr_areas = count
    return 0


cdef inline void forget_areas(GuestAreas *known) noexcept:
    PyMem_Free(known.areas)
    known.areas = known.hot = NULL
    known.nr_areas = 0


cdef inline uint8_t *find_address(GuestAreas *known, uint64_t address, uint64_t length, bint writable) noexcept:
    """Return where the *length* bytes at guest *address* are.

    Returns NULL if they are not all in one region, or if they are to be *writable* and the region is not.
    """
    cdef Area *area = known.hot
    cdef int index
    if not known.nr_areas:
        return NULL
    if address < area.start or address - area.start >= area.size:
        for index in range(known.nr_areas):
            area = known.areas + index
            if address >= area.start and address - area.start < area.size:
                break
        else:
            return NULL
        known.hot = area
    if length > area.size - (address - area.start) or (writable and not area.is_writable):
        return NULL
    return area.at + (address - area.start)
