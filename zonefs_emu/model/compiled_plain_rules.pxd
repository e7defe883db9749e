# The types of zonefs_emu/model/plain_rules.py, compiled for the ring walker.

cdef bint is_plain_read(
    bint is_readable, long long wp, long long sector, long long offset, long long nr_sectors, long long block_mask
) noexcept nogil
cdef bint is_plain_write(
    bint keeps_open, long long wp, long long offset, long long nr_sectors, long long capacity, long long granularity
) noexcept nogil
