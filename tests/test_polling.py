"""The length of a look, after waits of any kind."""

from itertools import pairwise

from zonefs_emu.polling import AdaptivePolling


def polling(nr_processors: int = 2) -> AdaptivePolling:
    return AdaptivePolling(max_ns=50_000, soon_ns=100_000, nr_processors=nr_processors)


def lengths(policy: AdaptivePolling, duration_ns: int, nr_waits: int) -> list[int]:
    found = []
    for _ in range(nr_waits):
        policy.waited(duration_ns)
        found.append(policy.look_ns)
    return found


def test_long_waits_end_in_no_look_at_all_and_short_ones_bring_it_back() -> None:
    policy = polling()
    assert policy.look_ns == 50_000, "the first request finds the loop awake"
    assert lengths(policy, 100_001, 6) == [25_000, 12_500, 6_250, 0, 0, 0]
    assert lengths(policy, 100_000, 6) == [4_000, 8_000, 16_000, 32_000, 50_000, 50_000]


def test_where_all_waits_are_long_a_full_look_is_tried_now_and_then() -> None:
    policy = polling()
    looks = lengths(policy, 1_000_000, 400)
    tries = [number for number, look_ns in enumerate(looks) if look_ns == 50_000]
    assert len(tries) >= 5
    assert {later - sooner for sooner, later in pairwise(tries)} == {67}, (
        "64 sleeps without a look, then looks that end"
    )
    assert sum(looks) <= len(looks) * 1_000_000 * 0.002


def test_looking_that_does_not_pay_stops_until_waits_are_short() -> None:
    policy = polling()
    policy.stop()
    assert policy.look_ns == 0
    assert lengths(policy, 100_000, 2) == [4_000, 8_000]


def test_a_single_processor_is_left_to_the_thread_that_asks() -> None:
    policy = polling(nr_processors=1)
    assert policy.look_ns == 0
    assert lengths(policy, 1, 3) == [0, 0, 0]
    assert not any(lengths(policy, 1_000_000, 200))
