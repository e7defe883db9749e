"""How the intent of a request is stored in a slot of a ring's record; see :mod:`ring_record` for the slots.

:mod:`ring_record` calls this function, and so does the compiled ring walker, which has it compiled from this file with
the types that zonefs_emu/inflight/compiled_slot_stores.pxd gives it. There each store is volatile: a compiler must
neither leave one out nor change their order, because a kill may come between any two of them.
"""


def store_intent(  # noqa: PLR0917  (positional: keywords cost a third of a call)
    words: "memoryview[int]", at: int, number: int, sector: int, nr_sectors_and_kind: int, ordinal: int
) -> None:
    """Store an intent at word *at*, which counts once all of it is there; *number*: the request's position + 1."""
    words[at] = 0
    words[at + 1] = sector
    words[at + 2] = nr_sectors_and_kind
    words[at + 3] = ordinal
    words[at] = number
