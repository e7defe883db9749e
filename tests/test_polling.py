"""The length of a look, after waits of any kind, and of a pause, after any number of requests."""

from itertools import pairwise

import pytest

from zonefs_emu.polling import AdaptivePolling, Gathering


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


def test_a_single_processor_is_left_to_the_thread_that_asks() -> None:
    policy = polling(nr_processors=1)
    assert policy.look_ns == 0
    assert lengths(policy, 1, 3) == [0, 0, 0]
    assert not any(lengths(policy, 1_000_000, 200))


@pytest.fixture
def gathering() -> Gathering:
    found = Gathering()
    found.begin()
    assert found.pause_ns == 400_000
    return found


def gather(gathering: Gathering, first: int, found: int) -> int:
    """Pause, with *first* requests after half of it and *found* after all; return the length of the next pause."""
    sleeps, counts = list[float](), iter((first, found))
    half_s = gathering.pause_ns / 2e9
    assert gathering.gather(sleeps.append, lambda: next(counts)) == found
    assert sleeps == [half_s, half_s]
    return gathering.pause_ns


def test_pauses_grow_while_requests_go_on_coming(gathering: Gathering) -> None:
    assert gather(gathering, 3, 4) == 400_000, "some came, but fewer"
    assert [gather(gathering, 2, 4) for _ in range(2)] == [800_000, 800_000]
    assert gather(gathering, 3, 4) == 800_000
    assert gather(gathering, 0, 2) == 800_000


def test_a_pause_in_which_the_client_waited_is_followed_by_shorter_ones(gathering: Gathering) -> None:
    assert [gather(gathering, 4, 4) for _ in range(2)] == [100_000, 0]


@pytest.mark.parametrize(("first", "found"), [(0, 0), (0, 1), (1, 1)])
def test_a_client_with_one_request_under_way_gets_no_pauses(gathering: Gathering, first: int, found: int) -> None:
    assert gather(gathering, first, found) == 0


def occasions(gathering: Gathering) -> int:
    """Return how many pass without a pause before the one that begins one."""
    passed = 0
    while True:
        gathering.begin()
        if gathering.pause_ns:
            return passed
        passed += 1


def test_trials_that_fail_become_rare(gathering: Gathering) -> None:
    """A client that asks for no notifications seems to have several requests under way, though it has one."""
    found = []
    for _ in range(9):
        assert gather(gathering, 1, 1) == 0
        found.append(occasions(gathering))
    assert found == [64, 128, 256, 512, 1024, 2048, 4096, 8192, 8192]


def test_pauses_that_have_paid_begin_again_at_once(gathering: Gathering) -> None:
    assert gather(gathering, 1, 1) == 0
    assert occasions(gathering) == 64
    assert gather(gathering, 2, 4) == 800_000
    assert gather(gathering, 0, 0) == 0
    assert occasions(gathering) == 0
    assert gather(gathering, 1, 1) == 0
    assert occasions(gathering) == 64, "and not 128"
