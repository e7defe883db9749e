# Access of the compiled modules to files, and to memory that a guest or the kernel changes at any time. It is C code
# only, so there is no module of this name.

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <endian.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/uio.h>
    #include <unistd.h>

    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "rings and images are little-endian, and so are the compiled modules"
    #endif
    #ifndef ZONEFS_EMU_SOURCES
    #define ZONEFS_EMU_SOURCES 0
    #endif

    /* A guest or the kernel changes these values at any time: each is loaded and stored once, and in order. */
    static inline uint16_t load_u16(const uint8_t *at)
    {
        return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
    }
    static inline uint32_t load_u32(const uint8_t *at)
    {
        return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
    }
    static inline uint64_t load_u64(const uint8_t *at)
    {
        return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE);
    }
    static inline void store_u16(uint8_t *at, uint16_t value)
    {
        __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE);
    }
    static inline void store_u32(uint8_t *at, uint32_t value)
    {
        __atomic_store_n((uint32_t *)at, value, __ATOMIC_RELEASE);
    }
    static inline void store_u64(uint8_t *at, uint64_t value)
    {
        __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE);
    }
    /* The barrier keeps a compiler from loading anything of "from" a second time. */
    static inline void copy_in(void *to, const uint8_t *from, size_t length)
    {
        memcpy(to, from, length);
        __asm__ __volatile__("" ::: "memory");
    }
    static inline int64_t read_at(int fd, const struct iovec *segments, int count, uint64_t offset)
    {
        if (count == 1)
            return pread(fd, segments->iov_base, segments->iov_len, (off_t)offset);
        return preadv(fd, segments, count, (off_t)offset);
    }
    static inline int64_t write_at(int fd, const struct iovec *segments, int count, uint64_t offset)
    {
        if (count == 1)
            return pwrite(fd, segments->iov_base, segments->iov_len, (off_t)offset);
        return pwritev(fd, segments, count, (off_t)offset);
    }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    unsigned int ZONEFS_EMU_SOURCES
    uint16_t load_u16(const uint8_t *at) noexcept nogil
    uint32_t load_u32(const uint8_t *at) noexcept nogil
    uint64_t load_u64(const uint8_t *at) noexcept nogil
    void store_u16(uint8_t *at, uint16_t value) noexcept nogil
    void store_u32(uint8_t *at, uint32_t value) noexcept nogil
    void store_u64(uint8_t *at, uint64_t value) noexcept nogil
    void copy_in(void *to, const uint8_t *source, size_t length) noexcept nogil
    int64_t read_at(int fd, const iovec *segments, int count, uint64_t offset) noexcept nogil
    int64_t write_at(int fd, const iovec *segments, int count, uint64_t offset) noexcept nogil
    void *memset(void *at, int value, size_t length) noexcept nogil


cdef inline uint8_t *address_of(object view, Py_ssize_t length, Py_ssize_t alignment, bint writable) except NULL:
    """Return where the memory of *view* is; the caller keeps *view*. No Py_buffer is held.

    It would keep the garbage collector from freeing an owner that is not used any more.
    """
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    cdef uint8_t *at = <uint8_t *>buffer.buf
    cdef Py_ssize_t found = buffer.len
    PyBuffer_Release(&buffer)
    if found < length or <uint64_t>at % <uint64_t>alignment:
        raise ValueError(f"{found} bytes that do not begin at a multiple of {alignment}")
    return at
