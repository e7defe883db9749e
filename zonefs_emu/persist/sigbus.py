"""Mapped memory whose file may be cut: an access to a lost page calls a listener instead of ending the process.

If a mapped file is cut, or the host cannot read it, an access to a page that is gone raises SIGBUS, whose default
action ends the process without a message. Python's own signal handlers cannot help: they run between two bytecodes, and
the access is repeated before that. So this module installs a C-level handler, a callback of ctypes. SIGBUS is
synchronous: the callback runs in the thread that made the access, which is inside one store or load of the interpreter
and holds no lock that the callback needs. The callback maps an empty anonymous page at the address, or replaces the
whole memory, and calls the listener. Then the access is repeated and succeeds. The listener notes that the store will
be lost.

Stores are not slower. The rejected alternative, writing the live table with pwrite, costs a system call for each write
of a guest, and does not notice the loss, because a pwrite beyond the end of a cut file lengthens it again.

System calls on such memory do not raise the signal; they fail with EFAULT.

A SIGBUS at any other address goes to the handler that was installed before.
"""

import ctypes
import itertools
import mmap
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MASK_BYTES: Final = 128
_SA_SIGINFO: Final = 4
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_WORD_BYTES: Final = ctypes.sizeof(ctypes.c_void_p)
#: The offset of the address in a siginfo_t: after three int, aligned like a pointer.
_ADDRESS_OFFSET: Final = -(-12 // _WORD_BYTES) * _WORD_BYTES
_FAILED: Final = ctypes.c_void_p(-1).value

#: Called by the thread that met the loss, in the middle of a store, so it only sets flags and takes no lock.
Listener = Callable[[], None]


class _SigAction(ctypes.Structure):
    """The C library's struct sigaction."""

    _fields_ = [  # type: ignore[mutable-override]  # the stub of ctypes has a narrower type than its class
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * _MASK_BYTES),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class _PyBuffer(ctypes.Structure):
    """The interpreter's Py_buffer, of which only the address is used."""

    _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_void_p * 16)]  # type: ignore[mutable-override]  # as above


_get_buffer: Final = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer: Final = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None
_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_sigaction: Final = _libc.sigaction
_sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_SigAction), ctypes.POINTER(_SigAction))

#: By number: (address, end, listener, whole) of each watched memory. It is changed and copied by single calls without a
#: lock, because the handler, or the collection of a mapping, may interrupt a thread that would have the lock.
_watched: Final[dict[int, tuple[int, int, Listener, bool]]] = {}
_numbers: Final = itertools.count(1)
_before = _SigAction()
_changing: Final = threading.Lock()


def watch(memory: "Buffer", listener: Listener, *, whole: bool = False) -> int:
    """Call *listener* when an access meets a lost page of the file under *memory*, which is mapped.

    The listener may be called several times, once for each page. With *whole*, *memory* begins at a page, and all of it
    is replaced at the first loss. This works for huge pages, of which a part cannot be replaced, and it limits a peer
    to one signal and one mapping for its memory.

    Returns a number for :func:`unwatch`, which must be called before the memory is unmapped.

    Raises:
        OSError: the host lets no handler of SIGBUS be installed.
    """
    address = _address_of(memory)
    with _changing:
        _install()
    number = next(_numbers)
    _watched[number] = address, address + memoryview(memory).nbytes, listener, whole
    return number


def unwatch(number: int) -> None:
    """End the watch *number*; without one, do nothing. Takes no lock, so a finalizer may call it."""
    _watched.pop(number, None)


def _address_of(memory: "Buffer") -> int:
    """Return the address of *memory*; from_buffer of ctypes refuses read-only memory."""
    buffer = _PyBuffer()
    _get_buffer(memory, ctypes.byref(buffer), 0)
    address = buffer.buf or 0
    _release_buffer(ctypes.byref(buffer))
    return address


def _handle(_number: int, info: int, _context: int) -> None:
    address = ctypes.c_void_p.from_address(info + _ADDRESS_OFFSET).value or 0
    for start, end, listener, whole in tuple(_watched.values()):
        if start <= address < end:
            if whole:
                at, length = start, -(-(end - start) // mmap.PAGESIZE) * mmap.PAGESIZE
            else:
                at, length = address - address % mmap.PAGESIZE, mmap.PAGESIZE
            flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            if _mmap(at, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != _FAILED:
                listener()
                return
    # The access is repeated, and then the earlier handler gets the signal.
    _sigaction(signal.SIGBUS, ctypes.byref(_before), None)


# Kept as long as the process lives, because the C library has its address.
_callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)
_ours: Final = ctypes.cast(_callback, ctypes.c_void_p).value


def _install() -> None:
    """Install the handler unless it is in place: another library may have set its own since the last time."""
    found = _SigAction()
    _sigaction(signal.SIGBUS, None, ctypes.byref(found))
    if found.handler == _ours:
        return
    ctypes.memmove(ctypes.byref(_before), ctypes.byref(found), ctypes.sizeof(found))
    action = _SigAction(handler=_ours, flags=_SA_SIGINFO)
    if _sigaction(signal.SIGBUS, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "no handler of SIGBUS can be installed")
