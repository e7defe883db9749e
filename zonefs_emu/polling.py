"""How a loop that serves requests waits for the next one: how long it looks before it sleeps, and what it lets gather.

A sleep and its wake-up cost more than a short request, so polling for a while pays if requests come soon. If they are
rare, polling only wastes time, and the thread that sends the next request may be waiting for this very processor. So
the length of a look follows the last waits: twice as long after a short one, half as long after a long one, and none
after several long ones. The kernel's haltpoll does the same for virtual processors.

The length of a sleep includes the wake-up, which alone can be longer than a short wait, above all on an emulated
processor. A loop that judges by its sleeps only would then never look again, although the next request would be there
within a look. So one sleep in _SLEEPS_PER_TRIAL is preceded by a look of full length: one that finds a request is
followed by others.

A fixed length would be simpler. It would keep a processor busy for a device whose requests come once in a millisecond.

A client with several requests under way does not wait for each answer. Looking then finds its requests one by one, and
answers each with a notification, which costs the client more than the answer. So such a loop pauses, and takes what has
gathered. A pause is too long if the client has sent all it can and waits: then nothing comes in the second half of the
pause, and the next one is a quarter as long. Where at least as many come as in the first half, it is twice as long. A
fixed length would be simpler. It would have to be short for clients with few requests under way, and would then do
little for those with many. Not every client that seems to have several requests under way has them, so trials that fail
become rare.

May not know: clocks, and what is looked at.
"""

from collections.abc import Callable
from typing import Final

_LOOK_NS_MIN: Final = 4_000
#: At 200 us a look, a loop whose requests come once in a millisecond loses 0.6 percent of a processor to trials.
_SLEEPS_PER_TRIAL: Final = 64
#: Linux may end a sleep 50 us late (timer slack), so that a shorter pause would hardly be shorter.
_PAUSE_NS_MIN: Final = 50_000
#: An emulated guest sends about seven requests meanwhile.
_PAUSE_NS_MAX: Final = 800_000
#: An emulated guest sends about three requests meanwhile; fewer would say little of the two halves.
_PAUSE_NS_FIRST: Final = 400_000
#: After pauses that did not pay, so many occasions pass without one, and twice as many after each further trial.
_TO_PASS_MIN: Final = 64
_TO_PASS_MAX: Final = 8192


class AdaptivePolling:
    """The policy of one loop."""

    def __init__(self, *, max_ns: int, soon_ns: int, nr_processors: int) -> None:
        """Look for *max_ns* at most.

        A wait of up to *soon_ns* counts as a short one. A single processor is never kept from the thread that asks.
        """
        self._max_ns = max_ns if nr_processors > 1 else 0
        self._soon_ns = soon_ns
        #: How long to look next time; 0: sleep at once.
        self.look_ns = self._max_ns
        self._nr_sleeps = 0

    def waited(self, duration_ns: int) -> None:
        """Choose the length of the next look, after a wait that has ended in a sleep."""
        look_ns = self.look_ns
        if duration_ns <= self._soon_ns:
            self.look_ns = min(max(2 * look_ns, _LOOK_NS_MIN), self._max_ns)
        else:
            self.look_ns = look_ns // 2 if look_ns >= 2 * _LOOK_NS_MIN else 0
            if not self.look_ns:
                self._nr_sleeps = (self._nr_sleeps + 1) % _SLEEPS_PER_TRIAL
                if not self._nr_sleeps:
                    self.look_ns = self._max_ns


class Gathering:
    """The pauses of one loop, which begin where its client has several requests under way."""

    def __init__(self) -> None:
        #: The length of the next pause; 0: none.
        self.pause_ns = 0
        #: Whether one of the pauses since the last beginning was followed by a longer one.
        self._has_paid = False
        #: The occasions that still pass without a pause, and how many are to pass after pauses that did not pay.
        self._nr_to_pass = 0
        self._nr_per_trial = _TO_PASS_MIN

    def begin(self) -> None:
        """Pause from now on, unless pauses did not pay a short time ago."""
        if self._nr_to_pass:
            self._nr_to_pass -= 1
        else:
            self.pause_ns = _PAUSE_NS_FIRST
            self._has_paid = False

    def gather(self, sleep: Callable[[float], object], count: Callable[[], int]) -> int:
        """Pause by *sleep*, which takes seconds; return how many requests there are then, which *count* tells.

        A single request ends the pauses, because then the client waits for each answer.
        """
        half_s = self.pause_ns / 2e9
        sleep(half_s)
        first = count()
        sleep(half_s)
        found = count()
        if found >= 2 * max(first, 1):
            self.pause_ns = min(2 * self.pause_ns, _PAUSE_NS_MAX)
            self._has_paid = True
            self._nr_per_trial = _TO_PASS_MIN
        elif found == first:
            self.pause_ns //= 4
        if found < 2 or self.pause_ns < _PAUSE_NS_MIN:
            self.pause_ns = 0
            if not self._has_paid:
                self._nr_to_pass = self._nr_per_trial
                self._nr_per_trial = min(2 * self._nr_per_trial, _TO_PASS_MAX)
        return found
