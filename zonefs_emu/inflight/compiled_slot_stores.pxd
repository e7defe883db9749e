# The types of zonefs_emu/inflight/slot_stores.py, compiled for the ring walker.

cdef extern from *:
    """
    #include <stdint.h>
    typedef volatile uint64_t zonefs_word;
    """
    ctypedef unsigned long long word "zonefs_word"

cdef void store_intent(
    word *words, long long at, unsigned long long number, unsigned long long sector,
    unsigned long long nr_sectors_and_kind, unsigned long long ordinal
) noexcept nogil
