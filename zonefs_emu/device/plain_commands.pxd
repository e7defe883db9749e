# What the compiled walkers call; plain_commands.pyx says what each does.

from cpython cimport array
from libc.stdint cimport int64_t, uint32_t, uint64_t

from zonefs_emu.device.raw_memory cimport iovec


cdef class PlainCommands:
    cdef readonly object port
    cdef readonly object lock
    #: The descriptor of the image's file.
    cdef readonly int fd
    cdef readonly int block_shift
    cdef readonly uint64_t nr_sectors
    cdef uint64_t _zone_size
    cdef object _image, _access, _held, _rows, _load_row, _on_write, _faults
    cdef object _check_read, _preadv, _pwritev, _has_pending_reset
    cdef bytearray _conds
    cdef array.array _wps, _old_extents
    cdef int64_t _last_zone, _capacity, _granularity, _block_mask, _write_max, _run_max
    cdef uint32_t _readable, _keeps_open
    # The run of writes that is looked at.
    cdef int64_t _run_zone, _run_begin, _run_end
    cdef bint _run_keeps_open

    cdef bint is_armed(self) except -1
    cdef bint may_read(self) except -1
    cdef bint is_read(self, uint64_t sector, int64_t nr_sectors) noexcept
    cdef int count_reads(self, uint64_t sector, int nr_reads, int64_t nr_sectors) except -1
    cdef bint same_zone(self, uint64_t sector, uint64_t other) noexcept
    cdef bint begin_run(self, uint64_t sector, int64_t nr_sectors) except -1
    cdef bint continues_run(self, uint64_t sector, int64_t nr_sectors) noexcept
    cdef bint write_run(self, iovec *segments, int nr_segments) except -1
    cdef int commit_run(self) except -1
    cdef bint count_run(self, int nr_writes) except -1
    cdef int _count(self, int64_t zone_no, int counter, int number, int sectors_counter, int64_t nr_sectors) except -1
    cdef bint _is_single(self, int64_t sector, tuple buffers) except -1
    cdef bint _write_single(self, int64_t sector, int64_t nr_sectors, iovec *segment) except -1
