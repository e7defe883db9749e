"""The compiled walker of a submission queue: executes the plain reads and writes at its head, and answers each.

zonefs_emu/device/plain_commands.pyx says what is plain, and executes it. At anything else the walker stops and has
consumed nothing, so that the drive takes that command in Python (pci_drive.py), as it does where this module is not
built.

One command is executed and answered after the other, in the order of pci_drive.py, so that a kill finds at most one
completion that is posted and not noted. Writes are not merged: Linux has one write of a zone under way at a time.

Invariants:

* Guest memory changes at any time. Each command and each list of pages is copied once and judged by the copy.
* Nothing is stored to guest memory, and no bytes of the image are changed, before everything has been checked.
* Pointers are kept beside the Python objects that own the memory. No Py_buffer is held.

May not know: doorbells, interrupts, statuses other than success, how a command is refused.
"""
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from zonefs_emu.device.plain_commands cimport PlainCommands
from zonefs_emu.device.raw_memory cimport ZONEFS_EMU_SOURCES, address_of, copy_in, iovec, read_at, store_u64
from zonefs_emu.inflight.compiled_slot_stores cimport store_intent, word
from zonefs_emu.virtio.guest_areas cimport GuestAreas, find_address, forget_areas, learn_areas

#: The CRC of the sources that this module was built from.
SOURCES = ZONEFS_EMU_SOURCES

cdef enum:
    COMMAND_BYTES = 64
    COMMAND_WORDS = 16
    COMPLETION_BYTES = 16
    WRITE = 1
    READ = 2
    FUA = 1 << 30
    PAGE_BYTES = 4096
    PAGE_MASK = 4095
    # Pages of the longest transfer (MDTS_BYTES) behind the first one, which need not be whole.
    PAGES_MAX = 128
    SEGMENTS_MAX = 129
    TRANSFER_MAX = 512 << 10

# The package's own numbers: the parts of a record, and a write as the record has it.
cdef int RECORD_HEADER = 0, RECORD_SLOT
cdef uint64_t WRITE_KIND


cdef int learn_numbers() except -1:
    """Import what they are: this module may be imported to see whether it is there."""
    global RECORD_HEADER, RECORD_SLOT, WRITE_KIND
    from zonefs_emu.inflight.ring_record import HEADER_WORDS, SLOT_WORDS
    from zonefs_emu.inflight.slot import OPERATION_SHIFT
    from zonefs_emu.model.transitions import Operation

    RECORD_HEADER, RECORD_SLOT = HEADER_WORDS, SLOT_WORDS
    WRITE_KIND = Operation.WRITE << OPERATION_SHIFT
    return 0


@cython.final
cdef class QueueWalker:
    """The walker of one queue. All methods belong to the thread of the drive.

    *queue*: a :class:`~zonefs_emu.vfio_user.drive_queues.SubmissionQueue` that is placed in *memory*, and so are its
    completions. *record_memory*: that of its record. *commands*: for each namespace, from 1 on, its plain commands and
    a function that says whether writes need no flush.
    """

    cdef object _queue, _completions, _record, _memory, _views
    cdef list _commands
    cdef uint8_t *_entries
    cdef uint8_t *_posted
    cdef word *_words
    cdef word *_tail_word
    cdef uint32_t _size, _nr_completions
    cdef uint64_t _number
    cdef bint _is_settled
    cdef GuestAreas _areas
    # The command that is looked at, and where its data are.
    cdef uint32_t _command[COMMAND_WORDS]
    cdef iovec _segments[SEGMENTS_MAX]
    cdef int _nr_segments
    #: Commands answered since the walker was made.
    cdef readonly uint64_t nr_taken

    def __dealloc__(self):
        forget_areas(&self._areas)

    def __init__(self, *, queue, record_memory, memory, list commands):
        if not RECORD_HEADER:
            learn_numbers()
        completions = queue.completions
        self._queue, self._completions, self._record, self._commands = queue, completions, queue.ring, commands
        self._size, self._number, self._nr_completions = queue.size, queue.number, completions.size
        self._views = queue.entries, completions.words, completions.tails, record_memory
        self._entries = address_of(queue.entries, COMMAND_BYTES * self._size, 8, False)
        self._posted = address_of(completions.words, COMPLETION_BYTES * self._nr_completions, 8, True)
        self._words = <word *>address_of(record_memory, 8 * (RECORD_HEADER + RECORD_SLOT * self._size), 8, True)
        self._tail_word = <word *>address_of(completions.tails, 8 * (completions.number + 1), 8, True)
        self._tail_word += <uint64_t>completions.number
        self._memory = memory
        self._is_settled = False
        learn_areas(&self._areas, memory.regions)

    def take(self, uint32_t tail, uint32_t nr_max):
        """Execute and answer what is plain at the head of the queue, whose *tail* is in it; *nr_max* commands at most.

        Returns how many commands that were: 0 if the first one is Python's affair, or there is no room for its answer.

        Raises:
            Exception: what Port.commit met. The command that was written is still at the head.
        """
        cdef uint32_t head = self._queue.head, at = self._completions.tail, phase = self._completions.phase
        cdef uint32_t room = (<uint32_t>self._completions.head + self._nr_completions - at - 1) % self._nr_completions
        cdef uint32_t count = 0
        cdef uint64_t position = self._record.finished
        if not self._is_settled:
            if self._record.recovering:
                return 0
            self._is_settled = True
        nr_max = min(nr_max, room)
        while count < nr_max and head != tail:
            copy_in(self._command, self._entries + COMMAND_BYTES * <uint64_t>head, COMMAND_BYTES)
            if not self._execute(position):
                break
            count += 1
            head = head + 1 if head + 1 < self._size else 0
            store_u64(self._posted + COMPLETION_BYTES * <uint64_t>at, 0)
            store_u64(
                self._posted + COMPLETION_BYTES * <uint64_t>at + 8,
                head | self._number << 16 | <uint64_t>(self._command[0] >> 16) << 32 | <uint64_t>phase << 48,
            )
            at += 1
            if at == self._nr_completions:
                at = 0
                phase ^= 1
            position += 1
            # What Python has first: should anything here raise, it must not answer the command again.
            self._queue.head = head
            self._completions.tail, self._completions.phase, self._completions.is_unannounced = at, phase, True
            self._record.finished = position
            self._words[1] = position
            self._tail_word[0] = at << 1 | phase
        self.nr_taken += count
        return count

    cdef bint _execute(self, uint64_t position) except -1:
        """Carry out the command that was copied; False if it is not plain, and nothing has changed."""
        cdef uint32_t opcode = self._command[0] & 0xFF, nsid = self._command[1], cdw12 = self._command[12]
        cdef uint64_t slba = self._command[10] | <uint64_t>self._command[11] << 32, sector
        cdef int64_t nr_sectors
        cdef PlainCommands commands
        # Flags: fused operations, and data pointers other than PRP entries.
        if opcode not in (READ, WRITE) or self._command[0] >> 8 & 0xFF or not 0 < nsid <= <uint32_t>len(self._commands):
            return False
        commands, is_cached = self._commands[nsid - 1]
        if slba >= commands.nr_sectors >> commands.block_shift or commands.is_armed():
            return False
        sector = slba << commands.block_shift
        nr_sectors = <int64_t>((cdw12 & 0xFFFF) + 1) << commands.block_shift
        if not self._find_data(nr_sectors << 9, opcode == READ):
            return False
        if opcode == READ:
            return self._read(commands, sector, nr_sectors)
        if cdw12 & FUA or not is_cached():
            return False
        return self._write(commands, sector, nr_sectors, position)

    # -- where the data are -------------------------------------------------------------------------------------------

    cdef bint _find_data(self, uint64_t nr_bytes, bint is_read) noexcept:
        """Note where the data of the command are; False if its PRP entries are not plain. See page_list.py."""
        cdef uint64_t pages[PAGES_MAX]
        cdef uint64_t prp1 = self._command[6] | <uint64_t>self._command[7] << 32
        cdef uint64_t prp2 = self._command[8] | <uint64_t>self._command[9] << 32
        cdef uint64_t start = prp1, length = PAGE_BYTES - (prp1 & PAGE_MASK), left, nr_pages, part
        cdef uint8_t *listed
        cdef uint64_t index
        self._nr_segments = 0
        if prp1 & 3 or nr_bytes > TRANSFER_MAX:
            return False
        if nr_bytes <= length:
            return self._add(start, nr_bytes, is_read)
        left = nr_bytes - length
        nr_pages = (left + PAGE_MASK) // PAGE_BYTES
        if nr_pages == 1:
            pages[0] = prp2
        else:
            # A list that leads on to another one is Python's.
            if prp2 & 7 or nr_pages > (PAGE_BYTES - (prp2 & PAGE_MASK)) // 8:
                return False
            listed = find_address(&self._areas, prp2, 8 * nr_pages, False)
            if listed is NULL:
                return False
            copy_in(pages, listed, 8 * nr_pages)
        for index in range(nr_pages):
            if pages[index] & PAGE_MASK:
                return False
            part = min(left, <uint64_t>PAGE_BYTES)
            left -= part
            if pages[index] == start + length:
                length += part
                continue
            if not self._add(start, length, is_read):
                return False
            start, length = pages[index], part
        return self._add(start, length, is_read)

    cdef bint _add(self, uint64_t address, uint64_t length, bint is_read) noexcept:
        cdef uint8_t *at = find_address(&self._areas, address, length, is_read)
        if at is NULL:
            return False
        self._segments[self._nr_segments].iov_base = at
        self._segments[self._nr_segments].iov_len = length
        self._nr_segments += 1
        return True

    # -- reading and writing ------------------------------------------------------------------------------------------

    cdef bint _read(self, PlainCommands commands, uint64_t sector, int64_t nr_sectors) except -1:
        cdef int fd = commands.fd
        cdef int64_t done
        if not commands.may_read() or not commands.is_read(sector, nr_sectors):
            return False
        with nogil:
            done = read_at(fd, self._segments, self._nr_segments, sector << 9)
        if done != nr_sectors << 9:
            return False
        commands.count_reads(sector, 1, nr_sectors)
        return True

    cdef bint _write(
        self, PlainCommands commands, uint64_t sector, int64_t nr_sectors, uint64_t position
    ) except -1:
        cdef bint is_written
        commands.lock.acquire()
        try:
            is_written = self._write_locked(commands, sector, nr_sectors, position)
        finally:
            commands.lock.release()
        return is_written and commands.count_run(1)

    cdef bint _write_locked(
        self, PlainCommands commands, uint64_t sector, int64_t nr_sectors, uint64_t position
    ) except -1:
        """Store the intent, move the bytes, then wp; with the device's lock held. False: nothing is done."""
        cdef uint64_t slot = RECORD_HEADER + position % self._size * RECORD_SLOT
        if not commands.begin_run(sector, nr_sectors) or not commands.continues_run(sector, nr_sectors):
            return False
        store_intent(self._words, slot, position + 1, sector, <uint64_t>nr_sectors | WRITE_KIND, 0)
        if not commands.write_run(self._segments, self._nr_segments):
            # wp has not moved, so what was written does not count. Python meets the same error again.
            self._words[slot] = 0
            return False
        commands.commit_run()
        # As RingRecord.commit does.
        self._words[3] = max(self._words[3], position << 16 | 1)
        return True
