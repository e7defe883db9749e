from zonefs_emu.inflight.slot_stores import store_intent


class Words(list[int]):
    """Notes the order of the stores."""

    def __init__(self) -> None:
        super().__init__([9] * 8)
        self.stores: list[tuple[int, int]] = []

    def __setitem__(self, at: int, value: int) -> None:  # type: ignore[override]
        self.stores.append((at, value))
        super().__setitem__(at, value)


def test_a_slot_counts_last() -> None:
    words = Words()
    store_intent(words, 4, 7, 1024, 8, 2)  # type: ignore[arg-type]
    assert words.stores == [(4, 0), (5, 1024), (6, 8), (7, 2), (4, 7)]
    assert words[:4] == [9] * 4
