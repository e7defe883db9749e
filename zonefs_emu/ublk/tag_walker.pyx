"""The compiled walker of a ublk queue: executes the plain reads and writes at its head, and answers.

It takes a run of plain reads, or one run of plain writes that continue one another. zonefs_emu/model/plain_rules.py
says what a plain request is, and zonefs_emu/device/plain_commands.pyx executes it. The walker stops at any other
request and leaves its completion, so that the queue executes it in Python (io_queue.py), as it does with all requests
where this module is not built.

Invariants:

* The intents of a run are stored before its bytes are moved and committed with its write pointer, as Python does for
  each write. The queue frees their slots once the kernel has the answers.
* The queue's thread alone uses the rings. The kernel reads submission entries inside io_uring_enter only, so what is
  pushed here needs no barrier.
* Pointers are kept beside the Python objects that own the memory.

May not know: answers other than success, how a request is refused, submitting and sleeping.
"""
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from zonefs_emu.device.plain_commands cimport PlainCommands
from zonefs_emu.device.raw_memory cimport (
    ZONEFS_EMU_SOURCES, address_of, copy_in, iovec, load_u32, read_at, store_u32, store_u64, write_at
)
from zonefs_emu.inflight.compiled_slot_stores cimport store_intent, word

#: The CRC of the sources that this module was built from.
SOURCES = ZONEFS_EMU_SOURCES

cdef enum:
    # The most requests that are taken at once.
    REQUESTS_MAX = 64
    DESCRIPTOR_BYTES = 24
    COMPLETION_BYTES = 16
    ENTRY_BYTES = 128
    # Byte offsets of the result and of the sector of an append in an entry.
    RESULT_AT = 52
    LANDED_AT = 56
    OPERATION_MASK = 0xFF
    FUA = 1 << 13

cdef enum Kind:
    READ
    WRITE
    NONE

# Numbers of other modules: the words of a slot, its states, and the kind of a write in a slot.
cdef int RECORD_SLOT = 0
cdef uint64_t FREE, BEGUN, COMMITTED, WRITE_KIND


cdef int learn_numbers() except -1:
    """Set the numbers of other modules.

    They are imported late, because ``zonefs-emu --version`` imports this module to see whether it is usable.
    """
    global RECORD_SLOT, FREE, BEGUN, COMMITTED, WRITE_KIND
    from zonefs_emu.inflight import tag_record
    from zonefs_emu.inflight.slot import OPERATION_SHIFT
    from zonefs_emu.model.transitions import Operation

    RECORD_SLOT = tag_record.SLOT_WORDS
    FREE, BEGUN, COMMITTED = tag_record.FREE, tag_record.BEGUN, tag_record.COMMITTED
    WRITE_KIND = Operation.WRITE << OPERATION_SHIFT
    return 0


cdef struct Request:
    uint64_t sector
    int64_t nr_sectors
    uint32_t tag


@cython.final
cdef class TagWalker:
    """The walker of one queue. All methods belong to the queue's thread.

    *ring*: the :class:`~zonefs_emu.ublk.uring.Ring` of the queue. *descriptors*: those of the kernel, one a tag, for
    *depth* tags. *buffer*: the memory through which the data of requests pass. *record*: that of the requests in
    flight, in which *first_slot* is the index of tag 0. *node_fd*: the character device, on which the data of tag 0 are
    at byte *data_at*, and those of the following tags *data_stride* bytes apart.

    Raises:
        ValueError, BufferError: one of these is too short, not aligned or not writable.
    """

    cdef object _ring, _record, _places, _descriptors_view, _buffer_view
    cdef PlainCommands _commands
    cdef uint8_t *_sq_tail
    cdef uint8_t *_sq_array
    cdef uint8_t *_cq_head
    cdef uint8_t *_cq_tail
    cdef uint8_t *_completions
    cdef uint8_t *_entries
    cdef uint8_t *_descriptors
    cdef uint8_t *_buffer
    cdef word *_words
    cdef uint64_t *_slots
    cdef uint32_t _sq_mask, _cq_mask, _depth, _first_slot
    cdef int64_t _buffer_sectors
    cdef uint64_t _data_at, _data_stride
    cdef int _node_fd
    cdef bint _is_settled
    # The indices of the next completion, and of the place behind the last one.
    cdef uint32_t _place, _end
    cdef Request _requests[REQUESTS_MAX]
    #: Requests answered since the walker was made.
    cdef readonly uint64_t nr_taken

    def __cinit__(self):
        self._slots = NULL

    def __dealloc__(self):
        PyMem_Free(self._slots)

    def __init__(
        self, *, ring, descriptors, buffer, record, uint32_t first_slot, PlainCommands commands, int node_fd,
        uint32_t depth, uint64_t data_at, uint64_t data_stride,
    ):
        if not RECORD_SLOT:
            learn_numbers()
        places = ring.places()
        cdef uint8_t *memory = address_of(places.memory, places.nr_bytes, 8, True)
        self._ring, self._places, self._record, self._commands = ring, places, record, commands
        self._sq_tail, self._sq_array = memory + <uint64_t>places.sq_tail, memory + <uint64_t>places.sq_array
        self._cq_head, self._cq_tail = memory + <uint64_t>places.cq_head, memory + <uint64_t>places.cq_tail
        self._completions = memory + <uint64_t>places.completions
        self._sq_mask, self._cq_mask = places.sq_mask, places.cq_mask
        self._entries = address_of(places.entries, ENTRY_BYTES * depth, 8, True)
        self._descriptors_view, self._buffer_view = descriptors, buffer
        self._descriptors = address_of(descriptors, DESCRIPTOR_BYTES * depth, 8, False)
        self._buffer = address_of(buffer, len(buffer), 1, True)
        self._buffer_sectors = len(buffer) >> 9
        self._words = NULL
        self._depth, self._first_slot, self._node_fd = depth, first_slot, node_fd
        self._data_at, self._data_stride = data_at, data_stride
        self._is_settled = False

    def take(self, list to_free):
        """Execute the plain requests at the head of the completions, and push the answers.

        Returns their number: 0 if the first request is left to Python, or if there is none. The tags of writes are
        added to *to_free*. Their slots are to be freed when the kernel has the answers.

        Raises:
            Exception: that of Port.commit. The requests that were written are still among the completions.
        """
        cdef uint32_t head = load_u32(self._cq_head)
        cdef Request *first = self._requests
        cdef Kind kind
        cdef int count, index
        self._place, self._end = head, load_u32(self._cq_tail)
        if self._place == self._end or self._commands.is_armed():
            return 0
        if not self._is_settled and not self._settle():
            return 0
        kind = self._next(first)
        if kind == NONE:
            return 0
        count = self._reads() if kind == READ else self._writes()
        if count:
            if kind == WRITE:
                for index in range(count):
                    to_free.append(self._requests[index].tag)
            self._answer(head, count)
            self.nr_taken += count
        return count

    cdef bint _settle(self) except -1:
        """Return whether no request of an earlier process can come again. Each tag then keeps its slot for good."""
        cdef uint32_t tag
        self._record.expire()
        if self._record.recoverable:
            return False
        slots = self._record.slots
        words = self._record.words
        PyMem_Free(self._slots)
        self._slots = <uint64_t *>PyMem_Malloc(sizeof(uint64_t) * self._depth)
        if self._slots is NULL:
            raise MemoryError
        for tag in range(self._depth):
            self._slots[tag] = slots[self._first_slot + tag]
            if self._slots[tag] + RECORD_SLOT > <uint64_t>len(words):
                raise AssertionError("a slot that is not in the record")
        self._words = <word *>address_of(words, 8 * len(words), 8, True)
        self._is_settled = True
        return True

    cdef Kind _next(self, Request *request) noexcept:
        """Decode the next request, and move behind it. If it is no read or write, return NONE and do not move."""
        cdef uint64_t descriptor[3]
        cdef uint8_t *completion = self._completions + COMPLETION_BYTES * <uint64_t>(self._place & self._cq_mask)
        cdef uint32_t op_flags
        if self._place == self._end:
            return NONE
        request.tag = load_u32(completion)
        # With a result that is not 0 the tag is out of service.
        if request.tag >= self._depth or load_u32(completion + 8):
            return NONE
        copy_in(descriptor, self._descriptors + DESCRIPTOR_BYTES * <uint64_t>request.tag, DESCRIPTOR_BYTES)
        op_flags, request.nr_sectors, request.sector = descriptor[0] & 0xFFFFFFFF, descriptor[0] >> 32, descriptor[1]
        if (
            op_flags & OPERATION_MASK > WRITE
            or op_flags & FUA
            or request.sector >= self._commands.nr_sectors
            or not 0 < request.nr_sectors <= self._buffer_sectors
        ):
            return NONE
        self._place += 1
        return <Kind>(op_flags & OPERATION_MASK)

    cdef uint64_t _data_of(self, Request *request) noexcept nogil:
        return self._data_at + request.tag * self._data_stride

    cdef int _reads(self) except -1:
        """Execute the plain reads from the first request on, which is a read; return their number."""
        cdef int count = 0, done = 0, fd = self._commands.fd, nr_reads = 0
        cdef int64_t nr_sectors = 0
        cdef Request *request = self._requests
        cdef iovec part
        if not self._commands.may_read():
            return 0
        while self._commands.is_read(request.sector, request.nr_sectors):
            count += 1
            request = self._requests + count
            if count == REQUESTS_MAX or self._next(request) != READ:
                break
        part.iov_base = self._buffer
        with nogil:
            while done < count:
                request = &self._requests[done]
                part.iov_len = request.nr_sectors << 9
                if (
                    read_at(fd, &part, 1, request.sector << 9) != request.nr_sectors << 9
                    or write_at(self._node_fd, &part, 1, self._data_of(request)) != request.nr_sectors << 9
                ):
                    break
                done += 1
        for count in range(done):
            nr_reads += 1
            nr_sectors += self._requests[count].nr_sectors
            if count + 1 == done or not self._commands.same_zone(
                self._requests[count].sector, self._requests[count + 1].sector
            ):
                self._commands.count_reads(self._requests[count].sector, nr_reads, nr_sectors)
                nr_reads, nr_sectors = 0, 0
        return done

    cdef int _writes(self) except -1:
        """Execute the run of plain writes that begins with the first request, which is a write; return its length."""
        cdef int count
        self._commands.lock.acquire()
        try:
            count = self._write_run()
        finally:
            self._commands.lock.release()
        return count if count and self._commands.count_run(count) else 0

    cdef int _write_run(self) except -1:
        """Move the bytes of the run, then wp, with the device's lock held. Return its length; 0 if nothing was done."""
        cdef int count = 0, index
        cdef Request *request = self._requests
        cdef iovec part
        if not self._commands.begin_run(request.sector, request.nr_sectors):
            return 0
        while self._commands.continues_run(request.sector, request.nr_sectors):
            count += 1
            request = self._requests + count
            if count == REQUESTS_MAX or self._next(request) != WRITE:
                break
        if not count or not self._take_data(count):
            return 0
        for index in range(count):
            request = &self._requests[index]
            store_intent(
                self._words, self._slots[request.tag], BEGUN, request.sector,
                <uint64_t>request.nr_sectors | WRITE_KIND, 0,
            )
        part.iov_base = self._buffer
        part.iov_len = self._nr_bytes(count)
        if not self._commands.write_run(&part, 1):
            # wp has not moved, so the written bytes do not count. Python executes the requests again, and answers.
            self._mark(count, FREE)
            return 0
        self._commands.commit_run()
        self._mark(count, COMMITTED)
        return count

    cdef int64_t _nr_bytes(self, int count) noexcept:
        cdef int64_t nr_sectors = 0
        cdef int index
        for index in range(count):
            nr_sectors += self._requests[index].nr_sectors
        return nr_sectors << 9

    cdef bint _take_data(self, int count) noexcept:
        """Copy the data of the first *count* requests into the buffer; False if the kernel does not give it."""
        cdef int64_t nr_bytes
        cdef int index
        cdef iovec part
        part.iov_base = self._buffer
        with nogil:
            for index in range(count):
                part.iov_len = nr_bytes = self._requests[index].nr_sectors << 9
                if read_at(self._node_fd, &part, 1, self._data_of(&self._requests[index])) != nr_bytes:
                    return False
                part.iov_base = <uint8_t *>part.iov_base + nr_bytes
        return True

    cdef void _mark(self, int count, uint64_t state) noexcept:
        cdef int index
        for index in range(count):
            self._words[self._slots[self._requests[index].tag]] = state

    cdef int _answer(self, uint32_t head, int count) except -1:
        """Push the answers of the first *count* requests, and move both rings behind them."""
        cdef uint32_t tail = load_u32(self._sq_tail), tag
        cdef uint8_t *entry
        cdef int index
        for index in range(count):
            tag = self._requests[index].tag
            entry = self._entries + ENTRY_BYTES * <uint64_t>tag
            store_u32(entry + RESULT_AT, self._requests[index].nr_sectors << 9)
            store_u64(entry + LANDED_AT, 0)
            store_u32(self._sq_array + 4 * <uint64_t>(tail + index & self._sq_mask), tag)
        store_u32(self._sq_tail, tail + count)
        store_u32(self._cq_head, head + count)
        self._ring.catch_up(count)
        return 0
