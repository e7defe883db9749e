"""The compiled ring walker: executes the plain reads and writes at the head of a ring, and gives them back.

It takes a run of plain reads, or one run of plain writes that continue one another. zonefs_emu/model/plain_rules.py
says what a plain request is; the zone machine asks it as well. zonefs_emu/device/plain_commands.pyx executes it. The
walker stops at any other request and leaves it in the ring, so that the queue executes it in Python, as it does with
all requests where this module is not built.

Invariants:

* Guest memory changes at any time. Each index, descriptor and header is copied once, and the copy is checked and used.
  Each address is translated, with its length, right before it is used for the first time, and lies in *memory* then.
* Nothing is stored to guest memory, and no bytes of the image are changed, before everything has been checked.
* Pointers are kept beside the Python objects that own the memory. No Py_buffer is held: it would keep the garbage
  collector from freeing a queue that is not used any more.

May not know: notifications, statuses other than success, how a request is refused.
"""
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from zonefs_emu.device.plain_commands cimport PlainCommands
from zonefs_emu.device.raw_memory cimport (
    ZONEFS_EMU_SOURCES, address_of, copy_in, iovec, load_u16, load_u64, memset, read_at, store_u16, store_u32, store_u64
)
from zonefs_emu.inflight.compiled_slot_stores cimport store_intent, word
from zonefs_emu.virtio.guest_areas cimport GuestAreas, find_address, forget_areas, learn_areas

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t big_endian(const uint8_t *at, int length)
    {
        uint64_t value = 0;
        for (int i = 0; i < length; i++)
            value = value << 8 | at[i];
        return value;
    }
    """
    uint64_t big_endian(const uint8_t *at, int length) noexcept nogil

#: The CRC of the sources that this module was built from.
SOURCES = ZONEFS_EMU_SOURCES

cdef enum:
    NEXT = 1
    WRITABLE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15
    # The most requests that are taken at once, as many as Virtqueue takes, and segments of all of them (IOV_MAX).
    REQUESTS_MAX = 64
    SEGMENTS_MAX = 1024
    # The most descriptors of one chain: 128 pages of data, a header and an answer.
    CHAIN_MAX = 130
    BLK_HEADER_BYTES = 16
    SCSI_HEADER_BYTES = 51
    SCSI_ANSWER_BYTES = 108
    # The byte offset of the CDB in the header, and the bytes of the answer GOOD that are stored.
    SCSI_CDB_AT = 19
    SCSI_GOOD_BYTES = 12
    SCSI_DPO = 0x10

cdef enum Kind:
    NONE
    READ
    WRITE

# Numbers of other modules: the words of a record's header and of a slot, and the kind of a write in a slot.
cdef int RECORD_HEADER, RECORD_SLOT
cdef uint64_t WRITE_KIND
cdef object position_of = None


cdef int learn_numbers() except -1:
    """Set the numbers of other modules.

    They are imported late, because ``zonefs-emu --version`` imports this module to see whether it is usable.
    """
    global RECORD_HEADER, RECORD_SLOT, WRITE_KIND, position_of
    from zonefs_emu.inflight.ring_record import HEADER_WORDS, SLOT_WORDS
    from zonefs_emu.inflight.slot import OPERATION_SHIFT
    from zonefs_emu.model.transitions import Operation
    from zonefs_emu.virtio import packed

    RECORD_HEADER, RECORD_SLOT = HEADER_WORDS, SLOT_WORDS
    WRITE_KIND = Operation.WRITE << OPERATION_SHIFT
    position_of = packed.position_of
    return 0


cdef struct Request:
    # A request that was found plain so far. The data are nr_segments of Walker._segments from first on.
    uint64_t sector
    int64_t nr_sectors
    int first
    int nr_segments
    uint8_t *answer
    # To give the request back: the head or buffer id, the slots of a packed ring, and the bytes written into it.
    uint32_t token
    uint32_t nr_slots
    uint32_t length


@cython.final
cdef class Walker:
    """The walker of one ring. All methods belong to the thread that serves the ring.

    *desc*, *driver*, *device*: the memory of *ring*. *memory*: that of the guest. *record* and *record_memory*: of the
    requests in flight, or None. *lun*: the LUN field of SCSI requests (*is_scsi*). Reads may be taken while *may_read*
    (None: always) returns True, and writes while *may_write* does too. *sectors_max*: the longest request.

    Raises:
        ValueError, BufferError: the ring or the record is too short, not aligned or not writable.
    """

    # State that is shared with Python, and the memory of the ring.
    cdef object _ring, _record, _may_read, _may_write
    cdef object _desc_view, _driver_view, _device_view, _record_view
    cdef uint8_t *_desc
    cdef uint8_t *_driver
    cdef uint8_t *_device
    cdef word *_words
    cdef bint _is_packed, _is_settled, _is_scsi
    cdef uint32_t _size
    # The guest's memory.
    cdef object _memory, _regions
    cdef GuestAreas _areas
    # The device.
    cdef PlainCommands _commands
    cdef int64_t _sectors_max
    cdef uint64_t _lun
    # The chains that are being taken: the place behind the last one, and the end of those that the driver has shown.
    cdef uint64_t _place, _end
    cdef Request _requests[REQUESTS_MAX]
    cdef iovec _segments[SEGMENTS_MAX]
    cdef int _nr_segments
    #: Requests given back since the walker was made.
    cdef readonly uint64_t nr_taken

    def __dealloc__(self):
        forget_areas(&self._areas)

    def __init__(
        self, *, ring, bint is_packed, desc, driver, device, memory, record, record_memory, PlainCommands commands,
        bint is_scsi, bytes lun, may_read, may_write, int64_t sectors_max,
    ):
        if position_of is None:
            learn_numbers()
        self._ring, self._is_packed, self._size = ring, is_packed, ring.size
        self._desc_view, self._driver_view, self._device_view = desc, driver, device
        self._desc = address_of(desc, 16 * self._size, 8, True)
        self._driver = address_of(driver, 4 if is_packed else 4 + 2 * self._size, 2, False)
        self._device = address_of(device, 4 if is_packed else 4 + 8 * self._size, 4, True)
        self._memory, self._regions = memory, None
        self._record, self._record_view = record, record_memory
        self._words = NULL
        self._is_settled = record is None
        if record is not None:
            self._words = <word *>address_of(record_memory, 8 * (RECORD_HEADER + RECORD_SLOT * self._size), 8, True)
        self._is_scsi, self._may_read, self._may_write = is_scsi, may_read, may_write
        self._lun = int.from_bytes(lun, "little")
        self._commands, self._sectors_max = commands, sectors_max

    def take(self):
        """Execute the plain requests at the head of the ring, and give them back.

        Returns their number: 0 if the first request is left to Python, -1 if the ring is empty.

        Raises:
            Exception: that of Port.commit. The requests that were written are still in the ring.
        """
        cdef int count = self._begin()
        if count <= 0:
            return count
        cdef Kind kind = self._next(&self._requests[0])
        if kind == READ:
            count = self._reads()
        elif kind == WRITE:
            count = self._writes()
        else:
            return 0
        self.nr_taken += count
        return count

    # -- the ring -----------------------------------------------------------------------------------------------------

    cdef int _begin(self) except -2:
        """Return 1 if the walker may take the next request, otherwise what :meth:`take` is to return."""
        cdef uint32_t count
        if self._is_packed:
            self._place = self._ring.next_place
            self._end = <uint64_t>self._ring.used_place + self._size
            if not self._is_available(self._place):
                return -1
        else:
            self._place = self._ring.next_idx
            count = (load_u16(self._driver + 2) - self._place) & 0xFFFF
            if not count:
                return -1
            if count > self._size:
                return 0
            self._end = self._place + count
        if not self._is_settled:
            if self._record.recovering:
                return 0
            self._is_settled = True
        if self._commands.is_armed() or (self._may_read is not None and not self._may_read()):
            return 0
        if self._memory.regions is not self._regions:
            # The driver's memory may grow (zonefs_emu/vduse/driver_memory.py).
            regions, self._regions = self._memory.regions, None
            learn_areas(&self._areas, regions)
            self._regions = regions
        self._nr_segments = 0
        return 1

    cdef bint _is_available(self, uint64_t place) noexcept:
        cdef uint64_t flags
        if place >= self._end:
            return False
        flags = load_u64(self._desc + 16 * (place % self._size) + 8) >> 48
        return self._is_drivers(flags, place)

    cdef bint _is_drivers(self, uint64_t flags, uint64_t place) noexcept:
        cdef bint wrap = not place // self._size & 1
        return <bint>(flags & AVAIL != 0) == wrap and <bint>(flags & USED != 0) != wrap

    cdef Kind _next(self, Request *request) noexcept:
        """Decode the next chain into *request*, and move behind it. If it is not plain, return NONE and do not move."""
        cdef iovec *chain = self._segments + self._nr_segments
        cdef int nr_readable = 0, nr_writable = 0
        cdef uint64_t place = self._place
        cdef Kind kind
        if self._nr_segments > SEGMENTS_MAX - CHAIN_MAX:
            return NONE
        if self._is_packed:
            if not self._packed_chain(request, chain, &nr_readable, &nr_writable):
                self._place = place
                return NONE
        elif not self._split_chain(request, chain, &nr_readable, &nr_writable):
            return NONE
        if not nr_readable or not nr_writable:
            kind = NONE
        elif self._is_scsi:
            kind = self._scsi(request, chain, nr_readable, nr_writable)
        else:
            kind = self._blk(request, chain, nr_readable, nr_writable)
        if kind == NONE or request.sector >= self._commands.nr_sectors:
            self._place = place
            return NONE
        if not self._is_packed:
            self._place = place + 1
        self._nr_segments += nr_readable + nr_writable
        return kind

    cdef bint _split_chain(self, Request *request, iovec *chain, int *nr_readable, int *nr_writable) noexcept:
        cdef uint64_t mask = self._size - 1
        cdef uint64_t descriptor[2]
        cdef uint8_t *table = self._desc
        cdef uint64_t at, nr_entries = self._size
        cdef uint32_t flags
        cdef int count
        if self._place >= self._end:
            return False
        at = load_u16(self._driver + 4 + 2 * (self._place & mask))
        request.token = at
        if at >= nr_entries:
            return False
        copy_in(descriptor, table + 16 * at, 16)
        flags = descriptor[1] >> 32 & 0xFFFF
        if flags & INDIRECT:
            nr_entries = (descriptor[1] & 0xFFFFFFFF) // 16
            if flags & NEXT or descriptor[1] & 15 or not 0 < nr_entries <= CHAIN_MAX:
                return False
            table = find_address(&self._areas, descriptor[0], 16 * nr_entries, False)
            if table is NULL:
                return False
            copy_in(descriptor, table, 16)
            flags = descriptor[1] >> 32 & 0xFFFF
        for count in range(CHAIN_MAX):
            if not self._add(chain, descriptor[0], descriptor[1] & 0xFFFFFFFF, flags, nr_readable, nr_writable):
                return False
            if not flags & NEXT:
                return True
            at = descriptor[1] >> 48
            if at >= nr_entries:
                return False
            copy_in(descriptor, table + 16 * at, 16)
            flags = descriptor[1] >> 32 & 0xFFFF
        return False

    cdef bint _packed_chain(self, Request *request, iovec *chain, int *nr_readable, int *nr_writable) noexcept:
        cdef uint64_t first = self._place
        cdef uint64_t descriptor[2]
        cdef uint8_t *at
        cdef uint8_t *table
        cdef uint32_t flags = NEXT
        cdef int index, nr_entries
        while flags & NEXT:
            if self._place >= self._end or self._place - first >= CHAIN_MAX:
                return False
            at = self._desc + 16 * (self._place % self._size)
            # The flags are read first, because they say whether the rest of the descriptor is valid.
            descriptor[1] = load_u64(at + 8)
            flags = descriptor[1] >> 48
            if self._place == first and not self._is_drivers(flags, first):
                return False
            descriptor[0] = load_u64(at)
            self._place += 1
            if flags & INDIRECT:
                nr_entries = (descriptor[1] & 0xFFFFFFFF) // 16
                if flags & NEXT or self._place - first > 1 or descriptor[1] & 15 or not 0 < nr_entries <= CHAIN_MAX:
                    return False
                table = find_address(&self._areas, descriptor[0], 16 * nr_entries, False)
                if table is NULL:
                    return False
                request.token = descriptor[1] >> 32 & 0xFFFF
                request.nr_slots = 1
                for index in range(nr_entries):
                    copy_in(descriptor, table + 16 * index, 16)
                    flags = descriptor[1] >> 48
                    if not self._add(chain, descriptor[0], descriptor[1] & 0xFFFFFFFF, flags, nr_readable, nr_writable):
                        return False
                return True
            if not self._add(chain, descriptor[0], descriptor[1] & 0xFFFFFFFF, flags, nr_readable, nr_writable):
                return False
        request.token = descriptor[1] >> 32 & 0xFFFF
        request.nr_slots = self._place - first
        return True

    cdef bint _add(
        self, iovec *chain, uint64_t address, uint64_t length, uint32_t flags, int *nr_readable, int *nr_writable
    ) noexcept:
        """Add a buffer to *chain*; return False if it is empty or indirect, not in one region, or out of order."""
        cdef bint is_writable = flags & WRITABLE != 0
        cdef uint8_t *at
        if flags & INDIRECT or not length or (nr_writable[0] and not is_writable):
            return False
        at = find_address(&self._areas, address, length, is_writable)
        if at is NULL:
            return False
        chain[nr_readable[0] + nr_writable[0]].iov_base = at
        chain[nr_readable[0] + nr_writable[0]].iov_len = length
        if is_writable:
            nr_writable[0] += 1
        else:
            nr_readable[0] += 1
        return True

    # -- requests -----------------------------------------------------------------------------------------------------

    cdef Kind _blk(self, Request *request, iovec *chain, int nr_readable, int nr_writable) noexcept:
        """Decode a request of a block device. Source: virtio 1.4, "Block Device", Device Operation."""
        cdef uint64_t header[2]
        cdef iovec *answer = chain + nr_readable + nr_writable - 1
        cdef uint32_t kind
        if chain.iov_len != BLK_HEADER_BYTES or answer.iov_len != 1:
            return NONE
        copy_in(header, <uint8_t *>chain.iov_base, BLK_HEADER_BYTES)
        kind = header[0] & 0xFFFFFFFF
        request.sector = header[1]
        request.answer = <uint8_t *>answer.iov_base
        request.length = 1
        if kind == 0 and nr_readable == 1:
            return READ if self._take_data(request, chain + 1, nr_writable - 1, True) else NONE
        if kind == 1 and nr_writable == 1:
            return WRITE if self._take_data(request, chain + 1, nr_readable - 1, False) else NONE
        return NONE

    cdef Kind _scsi(self, Request *request, iovec *chain, int nr_readable, int nr_writable) noexcept:
        """Decode READ and WRITE (10) and (16). Sources: virtio 1.4, "SCSI Host Device"; SBC-3, READ and WRITE."""
        cdef uint8_t header[SCSI_HEADER_BYTES]
        cdef uint8_t *cdb = header + SCSI_CDB_AT
        cdef iovec *answer = chain + nr_readable
        cdef uint64_t lun, lba, nr_blocks
        cdef bint is_read
        if chain.iov_len != SCSI_HEADER_BYTES or answer.iov_len != SCSI_ANSWER_BYTES:
            return NONE
        copy_in(header, <uint8_t *>chain.iov_base, SCSI_HEADER_BYTES)
        copy_in(&lun, header, 8)
        # A CDB with FUA, protection or an obsolete bit is not plain. DPO and the group number change nothing.
        if lun != self._lun or cdb[1] & ~SCSI_DPO & 0xFF:
            return NONE
        if cdb[0] in (0x28, 0x2A):
            lba, nr_blocks = big_endian(cdb + 2, 4), big_endian(cdb + 7, 2)
            if cdb[9]:
                return NONE
        elif cdb[0] in (0x88, 0x8A):
            lba, nr_blocks = big_endian(cdb + 2, 8), big_endian(cdb + 10, 4)
            if cdb[15]:
                return NONE
        else:
            return NONE
        if lba > self._commands.nr_sectors >> self._commands.block_shift:
            return NONE
        request.sector = lba << self._commands.block_shift
        request.answer = <uint8_t *>answer.iov_base
        request.length = SCSI_ANSWER_BYTES
        is_read = cdb[0] in (0x28, 0x88)
        if (nr_readable if is_read else nr_writable) != 1:
            return NONE
        if is_read:
            if not self._take_data(request, answer + 1, nr_writable - 1, True):
                return NONE
        elif not self._take_data(request, chain + 1, nr_readable - 1, False):
            return NONE
        # The buffers must have exactly the blocks of the CDB.
        if <uint64_t>request.nr_sectors != nr_blocks << self._commands.block_shift:
            return NONE
        return READ if is_read else WRITE

    cdef bint _take_data(self, Request *request, iovec *segments, int count, bint is_read) noexcept:
        """Note the *count* segments of data in *request*; False if they are no whole sectors, none or too many."""
        cdef uint64_t nr_bytes = 0
        cdef int index
        for index in range(count):
            nr_bytes += segments[index].iov_len
        if nr_bytes & 511 or not 0 < nr_bytes >> 9 <= <uint64_t>self._sectors_max:
            return False
        request.first = segments - self._segments
        request.nr_segments = count
        request.nr_sectors = nr_bytes >> 9
        if is_read:
            request.length += nr_bytes
        return True

    # -- reading ------------------------------------------------------------------------------------------------------

    cdef int _reads(self) except -1:
        """Execute the plain reads from the first request on, which is a read; return their number."""
        cdef int count = 0, done = 0, fd = self._commands.fd
        cdef Request *request = self._requests
        if not self._commands.may_read():
            return 0
        while self._commands.is_read(request.sector, request.nr_sectors):
            count += 1
            request = self._requests + count
            if count == REQUESTS_MAX or self._next(request) != READ:
                break
        if not count:
            return 0
        with nogil:
            while done < count:
                request = &self._requests[done]
                if read_at(
                    fd, self._segments + request.first, request.nr_segments, request.sector << 9
                ) != request.nr_sectors << 9:
                    break
                done += 1
        if done:
            self._count_reads(done)
            self._give_back(done)
        return done

    cdef int _count_reads(self, int count) except -1:
        cdef int index, nr_reads = 0
        cdef int64_t nr_sectors = 0
        for index in range(count):
            nr_reads += 1
            nr_sectors += self._requests[index].nr_sectors
            if index + 1 == count or not self._commands.same_zone(
                self._requests[index + 1].sector, self._requests[index].sector
            ):
                self._commands.count_reads(self._requests[index].sector, nr_reads, nr_sectors)
                nr_reads, nr_sectors = 0, 0
        return 0

    # -- writing ------------------------------------------------------------------------------------------------------

    cdef int _writes(self) except -1:
        """Execute the run of plain writes that begins with the first request, which is a write; return its length."""
        cdef int count
        if not self._may_write():
            return 0
        self._commands.lock.acquire()
        try:
            count = self._write_run()
        finally:
            self._commands.lock.release()
        # A run of merged writes is one command of the device, and is counted once.
        if not count or not self._commands.count_run(1):
            return 0
        self._give_back(count)
        return count

    cdef int _write_run(self) except -1:
        """Move the bytes of the run, then wp, with the device's lock held. Return its length; 0 if nothing was done."""
        cdef int count = 0, index, nr_segments = 0
        cdef Request *request = self._requests
        if not self._commands.begin_run(request.sector, request.nr_sectors):
            return 0
        while self._commands.continues_run(request.sector, request.nr_sectors):
            count += 1
            request = self._requests + count
            if count == REQUESTS_MAX or self._next(request) != WRITE:
                break
        if not count:
            return 0
        # Join the data of all requests, without the headers and answers that lie between.
        for index in range(count):
            nr_segments = self._join(&self._requests[index], nr_segments)
        cdef uint64_t position = 0
        if self._words is not NULL:
            position = self._record.finished
            for index in range(count):
                store_intent(
                    self._words, RECORD_HEADER + (position + index) % self._size * RECORD_SLOT, position + index + 1,
                    self._requests[index].sector, <uint64_t>self._requests[index].nr_sectors | WRITE_KIND, 0,
                )
        if not self._commands.write_run(self._segments, nr_segments):
            # wp has not moved, so the written bytes do not count. Python executes the requests again, and answers.
            if self._words is not NULL:
                for index in range(count):
                    self._words[RECORD_HEADER + (position + index) % self._size * RECORD_SLOT] = 0
            return 0
        self._commands.commit_run()
        if self._words is not NULL:
            # The record counts the changes of the last request of a merged write, as RingRecord.commit does.
            self._words[3] = max(self._words[3], (position + count - 1) << 16 | 1)
        return count

    cdef int _join(self, Request *request, int at) noexcept:
        """Move the segments of *request* down to index *at* of the segments; return the index behind them."""
        cdef int index
        for index in range(request.nr_segments):
            self._segments[at + index] = self._segments[request.first + index]
        return at + request.nr_segments

    # -- giving back --------------------------------------------------------------------------------------------------

    cdef int _give_back(self, int count) except -1:
        """Answer the first *count* requests with success, and show the driver."""
        cdef int index
        for index in range(count):
            if self._is_scsi:
                memset(self._requests[index].answer, 0, SCSI_GOOD_BYTES)
            else:
                self._requests[index].answer[0] = 0
        if self._is_packed:
            self._give_back_packed(count)
        else:
            self._give_back_split(count)
        return 0

    cdef int _give_back_split(self, int count) except -1:
        cdef uint32_t used = self._ring.used_idx, mask = self._size - 1
        cdef uint8_t *element
        cdef int index
        for index in range(count):
            element = self._device + 4 + 8 * <uint64_t>(used + index & mask)
            store_u32(element, self._requests[index].token)
            store_u32(element + 4, self._requests[index].length)
        used = used + count & 0xFFFF
        self._ring.next_idx = <uint32_t>self._ring.next_idx + count & 0xFFFF
        self._ring.used_idx = used
        store_u16(self._device + 2, used)
        if self._words is not NULL:
            self._record.finish_split(count)
        return 0

    cdef int _give_back_packed(self, int count) except -1:
        cdef uint64_t used = self._ring.used_place, place, nr_slots = 0
        cdef int index
        if self._words is not NULL:
            # Each answer is stored by itself, as Virtqueue does. A batch was rejected: after a kill in the middle, it
            # could neither be completed nor taken again.
            for index in range(count):
                place = used + nr_slots
                nr_slots += self._requests[index].nr_slots
                self._record.before_packed(position_of(used + nr_slots, self._size))
                self._put_used(&self._requests[index], place)
                self._record.finish_packed()
        else:
            for index in range(count):
                nr_slots += self._requests[index].nr_slots
            place = used + nr_slots
            # The first answer is stored last, so that the driver sees all of them at once.
            for index in range(count - 1, -1, -1):
                place -= self._requests[index].nr_slots
                self._put_used(&self._requests[index], place)
        self._ring.used_place = used + nr_slots
        self._ring.next_place = <uint64_t>self._ring.next_place + nr_slots
        return 0

    cdef void _put_used(self, Request *request, uint64_t place) noexcept:
        cdef uint64_t flags = 0 if place // self._size & 1 else AVAIL | USED
        if request.length:
            flags |= WRITABLE
        store_u64(
            self._desc + 16 * (place % self._size) + 8, request.length | <uint64_t>request.token << 32 | flags << 48
        )
