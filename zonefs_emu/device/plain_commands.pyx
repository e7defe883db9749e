"""The plain reads and writes of a port, compiled: what the compiled walkers of rings and queues execute, and a mount.

zonefs_emu/model/plain_rules.py says what a plain request is; the zone machine asks it as well. A request that is not
plain is not judged here: the walker leaves it to Python, and so do read() and write(), which take any request.

Invariants: write pointers move through Port.commit only, with the device's lock held. No bytes of the image are changed
before everything has been checked. One thread uses an object.

May not know: rings, where requests come from, statuses.
"""
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False

cimport cython
from cpython cimport array
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from zonefs_emu.device.raw_memory cimport ZONEFS_EMU_SOURCES, iovec, read_at, write_at
from zonefs_emu.model.compiled_plain_rules cimport is_plain_read, is_plain_write

#: The CRC of the sources that this module was built from.
SOURCES = ZONEFS_EMU_SOURCES

# Places of counters.
cdef int READS = -1, READ_SECTORS, WRITES, WRITTEN_SECTORS
cdef object OK


cdef int learn_numbers() except -1:
    """Import the numbers late, because ``zonefs-emu --version`` imports this module to see whether it is there."""
    global READS, READ_SECTORS, WRITES, WRITTEN_SECTORS, OK
    from zonefs_emu.device.counters import Counter
    from zonefs_emu.errors import Status

    OK = Status.OK
    READS, READ_SECTORS = Counter.READS, Counter.READ_SECTORS
    WRITES, WRITTEN_SECTORS = Counter.WRITES, Counter.WRITTEN_SECTORS
    return 0


@cython.final
cdef class PlainCommands:
    """The plain commands of *port*; *descriptor*: of the image's file.

    *write_sectors_max*: the longest write that moves its bytes with the lock held. *run_sectors_max*: of a run of more
    than one write.
    """

    def __init__(self, *, port, int descriptor, int64_t write_sectors_max, int64_t run_sectors_max):
        if READS < 0:
            learn_numbers()
        geometry, core, path, dialect = port.geometry, port.device, port.device.hot_path, port.dialect
        self.port, self.lock, self.fd = port, path.lock, descriptor
        self._image, self._access, self._faults = core.image, core.access, core.faults.faults
        self._held, self._rows, self._load_row = path.held, path.rows, path.load_row
        self._on_write, self._has_pending_reset = dialect.on_write, core.image.has_pending_reset
        self._check_read, self._preadv, self._pwritev = core.access.check_read, core.access.preadv, core.access.pwritev
        self._conds, self._wps, self._old_extents = core.machine.conds, core.machine.wps, path.old_extents
        self.nr_sectors, self._zone_size = geometry.size, geometry.zone_size
        self._last_zone, self._capacity = geometry.nr_zones - 1, geometry.zone_capacity
        self._granularity, self._block_mask = geometry.write_granularity, geometry.block_sectors - 1
        self.block_shift = geometry.block_sectors.bit_length() - 1
        self._write_max, self._run_max = write_sectors_max, run_sectors_max
        self._readable = sum(1 << cond for cond in dialect.readable)
        self._keeps_open = sum(1 << cond for cond in dialect.on_write.keeps_open)
        if not len(self._conds) == len(self._wps) == len(self._old_extents) == geometry.nr_zones:
            raise AssertionError("zone states that do not fit the geometry")

    cdef bint is_armed(self) except -1:
        """Say whether a fault is injected, so that Python must execute every request."""
        return bool(self._faults)

    cdef bint same_zone(self, uint64_t sector, uint64_t other) noexcept:
        return sector // self._zone_size == other // self._zone_size

    # -- reading ------------------------------------------------------------------------------------------------------

    cdef bint may_read(self) except -1:
        """Say whether reads go from the image's file, as long as the image is not let go."""
        return self._access.check_read is self._check_read and self._access.preadv is self._preadv

    cdef bint is_read(self, uint64_t sector, int64_t nr_sectors) noexcept:
        """Say whether a read is plain; *sector* is on the device."""
        cdef int64_t zone_no = sector // self._zone_size
        return is_plain_read(
            self._readable >> <uint8_t>PyByteArray_AS_STRING(self._conds)[zone_no] & 1,
            self._wps.data.as_ulonglongs[zone_no], sector, sector - zone_no * self._zone_size, nr_sectors,
            self._block_mask,
        )

    cdef int count_reads(self, uint64_t sector, int nr_reads, int64_t nr_sectors) except -1:
        """Count reads of the zone of *sector*."""
        return self._count(sector // self._zone_size, READS, nr_reads, READ_SECTORS, nr_sectors)

    cdef int _count(self, int64_t zone_no, int counter, int number, int sectors_counter, int64_t nr_sectors) except -1:
        cdef list row = self._rows.get(zone_no) or self._load_row(zone_no)
        row[counter] += number
        row[sectors_counter] += nr_sectors
        return 0

    # -- writing: begin_run, continues_run for each write, write_run, commit_run with the lock held; then count_run ---

    cdef bint begin_run(self, uint64_t sector, int64_t nr_sectors) except -1:
        """Say whether the zone of *sector* takes plain writes, of which the first has *nr_sectors*."""
        cdef int64_t zone_no = sector // self._zone_size
        if (
            zone_no >= self._last_zone
            or self._held
            or self._image.poison is not None
            or self._access.pwritev is not self._pwritev
            or nr_sectors > self._write_max
            or (self._old_extents.data.as_ulonglongs[zone_no] and self._has_pending_reset(zone_no))
        ):
            return False
        self._run_zone = zone_no
        self._run_begin = self._run_end = self._wps.data.as_ulonglongs[zone_no]
        self._run_keeps_open = self._keeps_open >> <uint8_t>PyByteArray_AS_STRING(self._conds)[zone_no] & 1
        return True

    cdef bint continues_run(self, uint64_t sector, int64_t nr_sectors) noexcept:
        """Say whether a write is plain behind those of the run; it belongs to the run then. *sector*: on the device."""
        if <int64_t>(sector // self._zone_size) != self._run_zone or not is_plain_write(
            self._run_keeps_open, self._run_end, sector - self._run_zone * self._zone_size, nr_sectors, self._capacity,
            self._granularity,
        ):
            return False
        if self._run_end != self._run_begin and self._run_end + nr_sectors > self._run_begin + self._run_max:
            return False
        self._run_end += nr_sectors
        return True

    cdef bint write_run(self, iovec *segments, int nr_segments) except -1:
        """Write the bytes of the run; False if the host did not take them all, of which none counts then."""
        cdef uint64_t offset = (self._run_zone * self._zone_size + self._run_begin) << 9
        cdef int64_t done
        with nogil:
            done = write_at(self.fd, segments, nr_segments, offset)
        return done == (self._run_end - self._run_begin) << 9

    cdef int commit_run(self) except -1:
        """Move wp over the run."""
        self.port.commit(self._on_write, self._run_zone, self._run_end - self._run_begin)
        return 0

    cdef bint count_run(self, int nr_writes) except -1:
        """Count the run as *nr_writes* commands; False if the image was lost meanwhile, so that Python must refuse."""
        if self._image.is_lost:
            return False
        self._count(self._run_zone, WRITES, nr_writes, WRITTEN_SECTORS, self._run_end - self._run_begin)
        return True

    # -- single requests, for front-ends without a walker; the port has no record of requests in flight -----------------

    def read(self, int64_t sector, int64_t nr_sectors, tuple buffers):
        """Do what Port.read does."""
        cdef Py_buffer view
        cdef iovec segment
        cdef int64_t done = -1
        if (
            self._is_single(sector, buffers)
            and self.may_read()
            and self.is_read(sector, nr_sectors)
        ):
            PyObject_GetBuffer(buffers[0], &view, PyBUF_WRITABLE)
            segment.iov_base, segment.iov_len = view.buf, view.len
            if view.len == nr_sectors << 9:
                with nogil:
                    done = read_at(self.fd, &segment, 1, <uint64_t>sector << 9)
            PyBuffer_Release(&view)
            if done == nr_sectors << 9:
                self.count_reads(sector, 1, nr_sectors)
                return OK
        return self.port.read(sector, nr_sectors, buffers)

    def write(self, int64_t sector, int64_t nr_sectors, tuple buffers):
        """Do what Port.write does."""
        cdef Py_buffer view
        cdef iovec segment
        cdef bint is_written = False
        if self._is_single(sector, buffers):
            PyObject_GetBuffer(buffers[0], &view, PyBUF_SIMPLE)
            segment.iov_base, segment.iov_len = view.buf, view.len
            try:
                is_written = view.len == nr_sectors << 9 and self._write_single(sector, nr_sectors, &segment)
            finally:
                PyBuffer_Release(&view)
            if is_written and self.count_run(1):
                return OK
        return self.port.write(sector, nr_sectors, buffers)

    cdef bint _is_single(self, int64_t sector, tuple buffers) except -1:
        """Say whether a request is on the device and has one buffer, and no fault is injected."""
        return 0 <= sector < <int64_t>self.nr_sectors and len(buffers) == 1 and not self.is_armed()

    cdef bint _write_single(self, int64_t sector, int64_t nr_sectors, iovec *segment) except -1:
        """Write *segment* and move wp; False if the write is not plain or the host did not take it."""
        self.lock.acquire()
        try:
            if not (
                self.begin_run(sector, nr_sectors)
                and self.continues_run(sector, nr_sectors)
                and self.write_run(segment, 1)
            ):
                return False
            self.commit_run()
        finally:
            self.lock.release()
        return True
