import ctypes
import threading

import pytest

from zonefs_emu.virtqueue import atomic
from zonefs_emu.virtqueue.atomic import make_fence, set_bit


def test_sets_one_bit_of_a_word() -> None:
    words = (ctypes.c_uint32 * 3)(0, 0x80000001, 0)
    for bit in (0, 5, 11, 12, 31):
        set_bit(ctypes.addressof(words) + 4, bit)
    assert list(words) == [0, 0x80001821, 0]


def test_refuses_what_is_not_memory() -> None:
    with pytest.raises(OSError, match="Bad address"):
        set_bit(0, 0)


def test_no_bit_is_lost_to_another_thread() -> None:
    """Two threads set the bits of one word, and both see all of them every time. The call releases the interpreter."""
    word = ctypes.c_uint32()
    address = ctypes.addressof(word)
    barrier = threading.Barrier(2)
    lost: list[int] = []

    def run(first: int) -> None:
        for _ in range(300):
            if barrier.wait() == 0:
                word.value = 0
            barrier.wait()
            for bit in range(first, 32, 2):
                set_bit(address, bit)
            barrier.wait()
            if word.value != 0xFFFFFFFF:
                lost.append(word.value)

    other = threading.Thread(target=run, args=(1,))
    other.start()
    run(0)
    other.join()
    assert not lost


@pytest.mark.parametrize("ordered", [False, True])
def test_fences_can_be_called(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "ORDERED", ordered)
    fence = make_fence()
    for _ in range(3):
        assert fence() is None


def test_the_fence_of_other_processors_is_an_atomic_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "ORDERED", False)
    words: list[int] = []
    monkeypatch.setattr(atomic, "set_bit", lambda address, _bit: words.append(address))
    make_fence()()
    assert len(words) == 1


def test_the_call_has_the_number_of_each_machine() -> None:
    """That of asm-generic/unistd.h on the younger ones; a wrong one would be another call, and found there only."""
    numbers = dict(atomic._SYS_FUTEX)
    assert numbers.pop("x86_64") == 202
    assert numbers.pop("ppc64le") == 221
    assert numbers == dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 98)
