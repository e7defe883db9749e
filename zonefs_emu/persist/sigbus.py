"""Mapped memory that may lose its file: a store to it tells a listener instead of ending the process.

Memory that maps a file is a window on it. When somebody cuts the file, or the host cannot read it, an access to a page
that is gone raises SIGBUS, whose default action ends the process in silence. Python's own signal handlers cannot help:
they run between two bytecodes, and the access is repeated before that. So this module installs a C-level handler, a
callback of ctypes. SIGBUS is synchronous: the callback runs in the thread that made the access, which is inside one
store or load of Python's own and holds nothing that the callback needs. It puts an empty anonymous page under the
address and calls the listener of that memory. Then the access is repeated and succeeds, and the listener has noted that
nothing of it will last.

This costs the stores nothing. The rejected alternative, writing the live table with pwrite, costs a system call for
each write of a guest, and notices nothing: a pwrite beyond the end of a file that was cut makes it longer again.

A SIGBUS at any other address is given back to the handler that was there before.
"""

import ctypes
import mmap
import signal
import threading
from collections.abc import Callable
from typing import Final

_MASK_BYTES: Final = 128
_SA_SIGINFO: Final = 4
_MAP_FIXED: Final = 0x10
_WORD_BYTES: Final = ctypes.sizeof(ctypes.c_void_p)
#: Where in a siginfo_t the address stands: after three int, aligned like a pointer.
_ADDRESS_OFFSET: Final = -(-12 // _WORD_BYTES) * _WORD_BYTES
_FAILED: Final = ctypes.c_void_p(-1).value

#: Called with no argument by the thread that met the loss, in the middle of a store: it sets flags and takes no lock.
Listener = Callable[[], None]


class _SigAction(ctypes.Structure):
    """The C library's struct sigaction."""

    _fields_ = [  # type: ignore[mutable-override]  # the stub of ctypes has a narrower type than its class
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * _MASK_BYTES),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_sigaction: Final = _libc.sigaction
_sigaction.argtypes = (ctypes.c_int, ctypes.POINTER(_SigAction), ctypes.POINTER(_SigAction))

#: (address, end, listener) of the memory that is watched. A new tuple for each change: the handler reads it unlocked.
_watched: tuple[tuple[int, int, Listener], ...] = ()
_before = _SigAction()
_changing: Final = threading.Lock()


def watch(memory: memoryview, listener: Listener) -> int:
    """Call *listener* when the file under *memory*, a writable mapping, has lost a page that is accessed.

    Returns the address of the memory, for :func:`unwatch`. The listener may be called several times, once for a page.
    """
    global _watched  # noqa: PLW0603  (signals are the process's, and so is this list)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with _changing:
        _install()
        _watched = (*_watched, (address, address + memory.nbytes, listener))
    return address


def unwatch(address: int) -> None:
    """Call the listener of the memory at *address* no more; without one, do nothing."""
    global _watched  # noqa: PLW0603
    with _changing:
        _watched = tuple(entry for entry in _watched if entry[0] != address)


def _handle(_number: int, info: int, _context: int) -> None:
    address = ctypes.c_void_p.from_address(info + _ADDRESS_OFFSET).value or 0
    for start, end, listener in _watched:
        if start <= address < end:
            page = address - address % mmap.PAGESIZE
            flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            if _mmap(page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != _FAILED:
                listener()
                return
    # The access is repeated, and then it is the earlier handler's.
    _sigaction(signal.SIGBUS, ctypes.byref(_before), None)


# Kept for as long as the process lives: the C library has its address.
_callback: Final = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)
_ours: Final = ctypes.cast(_callback, ctypes.c_void_p).value


def _install() -> None:
    """Have the handler called, unless it is in place: another library may have set its own since the last time."""
    found = _SigAction()
    _sigaction(signal.SIGBUS, None, ctypes.byref(found))
    if found.handler == _ours:
        return
    ctypes.memmove(ctypes.byref(_before), ctypes.byref(found), ctypes.sizeof(found))
    action = _SigAction(handler=_ours, flags=_SA_SIGINFO)
    if _sigaction(signal.SIGBUS, ctypes.byref(action), None):
        raise OSError(ctypes.get_errno(), "no handler of SIGBUS can be installed")
