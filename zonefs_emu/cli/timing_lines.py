"""The lines of ``stats``, ``watch`` and ``why --slow`` on the timing of a drive. Pure: replies in, text out."""

from collections.abc import Iterator
from typing import Final

from zonefs_emu.daemon.framing import Json

_BEGINNING: Final[dict[str, Json]] = {"elapsed_ns": 0, "busy_ns": 0, "late_answers": 0, "operations": {}}


def stats_lines(timing: Json) -> Iterator[str]:
    """Yield lines on the reply ``timing`` of the verb ``stats``, which counts since the timing began."""
    assert isinstance(timing, dict)
    scale = _number(timing, "scale")
    slower = f", {scale:g} times slower" if scale != 1 else ""
    yield f"timing {timing['preset']}{slower}: {_busy(_number(timing, 'busy_ns'), _number(timing, 'elapsed_ns'))}\n"
    nr_late = _number(timing, "late_answers")
    if nr_late:
        mean_us, max_us = _number(timing, "late_mean_ns") / 1e3, _number(timing, "late_max_ns") / 1e3
        yield (
            f"late answers: {nr_late:.0f} of {_number(timing, 'answers'):.0f}, by {mean_us:.0f} us on average, "
            f"{max_us:.0f} us at most\n"
        )
    for name, times in _operations(timing).items():
        mean, queueing, service, longest = (
            _number(times, key) / 1e3 for key in ("mean_ns", "queueing_ns", "service_ns", "longest_ns")
        )
        yield (
            f"{name + ':':<8} {_number(times, 'count'):.0f} in {mean:.1f} us on average: {queueing:.1f} us queueing, "
            f"{service:.1f} us service; the longest in {longest:.1f} us\n"
        )


def watch_line(timing: Json, before: Json) -> str:
    """Return a line on the time between two replies ``timing``, or since the timing began if that was later."""
    assert isinstance(timing, dict)
    assert isinstance(before, dict)
    if _number(timing, "elapsed_ns") < _number(before, "elapsed_ns"):  # another daemon has the image now
        before = _BEGINNING
    busy_ns, elapsed_ns = (_number(timing, key) - _number(before, key) for key in ("busy_ns", "elapsed_ns"))
    count, total_ns, waited_ns = (_sum(timing, key) - _sum(before, key) for key in ("count", "total_ns", "waited_ns"))
    late = _number(timing, "late_answers") - _number(before, "late_answers")
    line = f"timing {timing['preset']}: {_busy(busy_ns, elapsed_ns)}"
    if count:
        line += f"  {waited_ns / count / 1e3:.1f} us queueing  {(total_ns - waited_ns) / count / 1e3:.1f} us service"
    return f"{line}  {late:.0f} answers late\n" if late else f"{line}\n"


def _busy(busy_ns: float, elapsed_ns: float) -> str:
    # Work is counted when it begins, so that it can be ahead of the time.
    return f"{min(100 * busy_ns / max(elapsed_ns, 1), 100):.0f} % busy"


def _operations(timing: dict[str, Json]) -> dict[str, dict[str, Json]]:
    operations = timing["operations"]
    assert isinstance(operations, dict)
    return {name: times for name, times in operations.items() if isinstance(times, dict)}


def _sum(timing: dict[str, Json], key: str) -> float:
    return sum(_number(times, key) for times in _operations(timing).values())


def _number(reply: dict[str, Json], name: str) -> float:
    value = reply[name]
    assert isinstance(value, int | float)
    return value
