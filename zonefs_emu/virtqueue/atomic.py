"""Two operations that Python does not have: an atomic OR into shared memory, and a memory fence.

The front-end clears bits of the dirty log while this process sets others. A plain load, OR and store would lose a
change that the front-end makes in between, and with it a page of the guest. No compiled module is needed, because the
kernel has the operation: FUTEX_WAKE_OP does an atomic read-modify-write on a word of user memory. Here it wakes no
thread.

Source: futex(2), FUTEX_WAKE_OP: "oldval = *uaddr2; *uaddr2 = oldval op oparg; [...] an atomic read-modify-write [...]";
FUTEX_OP_ARG_SHIFT: "use (1 << oparg) as operand".
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

_FUTEX_WAKE_OP_PRIVATE: Final = 5 | 128
_OP_OR: Final = 2
_OP_ARG_SHIFT: Final = 8
#: (op | shift) << 28 | cmp << 24 | oparg << 12 | cmparg; the comparison only decides which threads to wake.
_OR_BIT: Final = (_OP_OR | _OP_ARG_SHIFT) << 28

#: Source: the kernel's system call tables.
_SYS_FUTEX: Final[Mapping[str, int]] = MappingProxyType(
    {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221}
)

#: Whether loads and stores of this machine keep their order, except that a load may pass an earlier store.
ORDERED: Final = platform.machine() == "x86_64"
#: Whether :func:`set_bit` works on this machine.
HAS_ATOMIC_OR: Final = platform.machine() in _SYS_FUTEX


def _load_syscall() -> "Callable[..., int]":
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (
        ctypes.c_long,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
    )
    function.restype = ctypes.c_long
    return function


_syscall: Final = _load_syscall()


def set_bit(address: int, bit: int) -> None:
    """Set *bit* (0 to 31) of the 32-bit word at *address* (a multiple of 4) atomically, with a full fence.

    Only for machines with HAS_ATOMIC_OR.

    Raises:
        OSError: EFAULT: the address is not writable memory.
    """
    number = _SYS_FUTEX[platform.machine()]
    if _syscall(number, address, _FUTEX_WAKE_OP_PRIVATE, 0, None, address, _OR_BIT | bit << 12) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def make_fence() -> Callable[[], object]:
    """Return a function that is a full memory fence, on machines with HAS_ATOMIC_OR.

    On x86 any locked instruction is a fence, and taking a lock executes one: 50 ns. On other machines the function does
    the kernel's atomic operation, which is one, too.
    """
    if ORDERED:
        lock = threading.Lock()

        def fence() -> None:
            lock.acquire()
            lock.release()

        return fence
    word = ctypes.c_uint32()
    address = ctypes.addressof(word)

    def kernel_fence(_keep: ctypes.c_uint32 = word) -> None:
        set_bit(address, 0)

    return kernel_fence
