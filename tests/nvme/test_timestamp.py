"""The clock that a host sets, with a clock of the test behind it."""

from zonefs_emu.nvme.timestamp import Timestamp


class Clock:
    now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def test_it_counts_from_the_reset_and_then_from_what_the_host_sets() -> None:
    clock = Clock()
    timestamp = Timestamp(clock)
    clock.now_ns += 1_999_999
    assert timestamp.data() == bytes.fromhex("010000000000 00 00")  # 1 ms; Origin 000b: from a Controller Level Reset
    # 1,732,879,800,000 ms, and bits of bytes 6 and 7 that a host has no say in.
    timestamp.set(bytes.fromhex("c0be10779301 ff ff"))
    assert timestamp.data() == bytes.fromhex("c0be10779301 02 00")  # Origin 001b: from Set Features; Synch 0
    clock.now_ns += 256_000_000
    assert timestamp.data() == bytes.fromhex("c0bf10779301 02 00")
    timestamp.reset()
    assert timestamp.data() == bytes(8)


def test_it_wraps_around_at_48_bits() -> None:
    clock = Clock()
    timestamp = Timestamp(clock)
    timestamp.set(b"\xff" * 8)
    clock.now_ns += 2_000_000
    assert timestamp.data() == bytes.fromhex("010000000000 02 00")


def test_another_process_goes_on_with_it() -> None:
    clock = Clock()
    timestamp = Timestamp(clock)
    timestamp.set(bytes.fromhex("000100000000 00 00"))
    clock.now_ns += 1_000_000
    following = Timestamp(clock)
    following.restore(timestamp.state())
    clock.now_ns += 1_000_000
    assert following.data() == bytes.fromhex("020100000000 02 00")
