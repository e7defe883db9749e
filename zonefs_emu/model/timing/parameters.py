"""The parameters of a timing model: frozen values, each with its unit, its meaning and its source.

The unit stands at the end of a name where there is one (``_ns``, ``_bytes``; ``_byte_ns`` is nanoseconds per byte).
``parameters_of`` lists all three for documents and for ``zonefs-emu fit``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

#: Requests a second that streams of sequential reads reach: (request bytes, by streams, by depth of each stream).
ReadAheadTable: TypeAlias = tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]


#: Where the value of a parameter in its preset comes from.
SEARCHED: Final = "searched"
BY_HAND: Final = "by hand"
MEASURED: Final = "measured"
DOCUMENT: Final = "document"
TYPICAL: Final = "typical"
ASSUMED: Final = "assumed"
SOURCES: Final = MappingProxyType(
    {
        SEARCHED: "found by a search for the least error at the measurements (zonefs_emu.fitting)",
        BY_HAND: "tuned by hand, or drawn at random again and again, until the model was near the measurements",
        MEASURED: "read off the measurements, without a search",
        DOCUMENT: "the specification of a similar drive: Western Digital Ultrastar DC HC310 (not shingled), "
        "revision 1.4, section 4.5.1",
        TYPICAL: "usual for drives of this kind; no data sheet of this drive was at hand",
        ASSUMED: "no measurement and no document says it",
    }
)


def parameter(unit: str, meaning: str, source: str = BY_HAND) -> Any:  # noqa: ANN401  (as dataclasses.field)
    """Declare a parameter. *source*: one of SOURCES; it is that of the value in the preset, not of other values."""
    return field(metadata={"unit": unit, "meaning": meaning, "source": source})


class ParameterFact(NamedTuple):
    """One row of the table of parameters."""

    name: str
    value: object
    unit: str
    meaning: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashParameters:
    """A zoned SSD: a controller, a write buffer, dies on channels, a bus to the host."""

    # --- the controller, which takes requests one after the other ---------------------------------------------------
    controller_write_ns: int = parameter("ns", "the controller's time for a write")
    controller_append_ns: int = parameter("ns", "the controller's time for a zone append")
    controller_spread: float = parameter(
        "", "the controller's time for a write varies evenly by this share of what does not depend on its bytes"
    )
    controller_read_ns: int = parameter("ns", "the controller's time for a read")
    commands_max: int = parameter("", "reads and writes that the drive works on at a time; others wait for one to end")
    queue_turn_ns: int = parameter(
        "ns", "how long reads are taken at most before a write is, if more of them wait than the drive works on"
    )
    write_byte_ns: float = parameter("ns/B", "the controller's time for each byte written: the transfer to the buffer")
    write_unit_bytes: int = parameter("B", "writes below this cost more, and writes above it need a list of pages")
    small_write_ns: int = parameter("ns", "the controller's added time for a write below write_unit_bytes")
    small_append_ns: int = parameter("ns", "the controller's added time for an append below write_unit_bytes")
    large_ns: int = parameter("ns", "the controller's added time for a write or append above write_unit_bytes")
    # --- what a write waits for after the controller ----------------------------------------------------------------
    write_base_ns: int = parameter("ns", "a write's latency from the buffer to the answer")
    append_extra_ns: int = parameter("ns", "added to the latency of an append")
    large_write_ns: int = parameter("ns", "added to the latency of a write above write_unit_bytes")
    large_append_ns: int = parameter("ns", "added to the latency of an append above write_unit_bytes")
    overlap_ns: int = parameter("ns", "added to the latency of a write while another one is under way")
    jitter_ns: int = parameter("ns", "mean of an exponential part of the latency of each write")
    first_write_ns: int = parameter("ns", "added to the latency of the first write of an empty zone", MEASURED)
    first_append_ns: int = parameter("ns", "added to the latency of the first append to an empty zone", MEASURED)
    reopen_ns: int = parameter("ns", "added to the latency of the first write of a closed zone", MEASURED)
    # --- writes below 8 KiB on a device of 512-byte blocks ----------------------------------------------------------
    partial_4k_ns: int = parameter("ns", "mean time to merge a write of 4 KiB or more on 512-byte blocks")
    partial_ns: int = parameter("ns", "mean time to merge a write below 4 KiB on 512-byte blocks")
    partial_append_ns: int = parameter("ns", "added to the mean time to merge an append")
    partial_4k_shape: float = parameter("", "shape of the gamma distribution of partial_4k_ns")
    partial_shape: float = parameter("", "shape of the gamma distribution of partial_ns")
    partial_other_zone_shape: float = parameter("", "the same shape if the merge before was in another zone")
    partial_slots: int = parameter("", "merges that are answered before they are done")
    partial_latency_ns: int = parameter("ns", "added to the latency of a merge of 4 KiB or more")
    # --- the write buffer and the programs that empty it ------------------------------------------------------------
    buffer_bytes: int = parameter(
        "B", "the write buffer; one write waits in front of it until it fits, the next one in the controller"
    )
    program_bytes: int = parameter("B", "what one program stores and frees at once")
    programs_per_die: int = parameter("", "programs in a row on one die before the next die gets data")
    program_slices: float = parameter("", "mean number of slices of a program")
    program_spread: float = parameter("", "a program's slices vary evenly by this share of them")
    slice_ns: int = parameter("ns", "a slice of a program, which no read interrupts")
    reads_between_slices: int = parameter("", "waiting reads of a die that pass between two slices")
    interrupt_ns: int = parameter("ns", "a die's added time after the first of the reads that interrupt a program")
    interrupt_more_ns: int = parameter("ns", "a die's added time after each further read of the same interruption")
    row_bytes: int = parameter(
        "B", "after this much is programmed, some running programs take longer once: about a row of cells of all dies"
    )
    row_slices: int = parameter("", "slices by which running programs take longer after row_bytes")
    row_share: float = parameter("", "share of the dies on which they take longer after row_bytes")
    housekeeping_bytes: int = parameter("B", "after this much is programmed, all running programs take longer once")
    housekeeping_slices: int = parameter("", "slices by which running programs take longer after housekeeping_bytes")
    # --- reads ------------------------------------------------------------------------------------------------------
    nr_channels: int = parameter("", "channels, each of which carries one transfer at a time")
    dies_per_channel: int = parameter("", "dies on a channel; each reads or programs one thing at a time")
    die_read_ns: int = parameter("ns", "a die's time to read a page", SEARCHED)
    slow_page_share: float = parameter(
        "", "share of pages that take longer: one of three bits of a cell, about", SEARCHED
    )
    slow_page_ns: int = parameter("ns", "a die's added time to read a page of slow_page_share", SEARCHED)
    channel_byte_ns: float = parameter("ns/B", "the transfer from a die over its channel", SEARCHED)
    read_base_ns: int = parameter("ns", "error correction and the rest of the way of a read")
    bus_ns: int = parameter("ns", "a transfer on the bus to the host, without its bytes")
    bus_byte_ns: float = parameter("ns/B", "each byte of a transfer on the bus to the host", SEARCHED)
    stripe_bytes: int = parameter("B", "a read above this goes to more than one die", ASSUMED)
    # --- reads in order ---------------------------------------------------------------------------------------------
    read_ahead_rates: ReadAheadTable = parameter(  # noqa: RUF009  (it is a field)
        "1/s", "rates of sequential streams by size, streams and depth", MEASURED
    )
    read_ahead_streams: tuple[int, ...] = parameter("", "numbers of streams of the rows of read_ahead_rates", MEASURED)
    read_ahead_depths: tuple[int, ...] = parameter("", "depths of the columns of read_ahead_rates", MEASURED)
    read_ahead_gap_ns: int = parameter(
        "ns", "what the host of the measurements needed between answer and request", MEASURED
    )
    read_ahead_shape: float = parameter("", "shape of the gamma distribution of the time of a sequential read")
    # --- zone management --------------------------------------------------------------------------------------------
    open_ns: int = parameter("ns", "explicit open", MEASURED)
    close_ns: int = parameter("ns", "close", MEASURED)
    management_jitter_ns: int = parameter("ns", "mean of an exponential part of open and close", MEASURED)
    finish_empty_ns: int = parameter("ns", "finish of an empty zone, and of a full one", MEASURED)
    finish_ns: int = parameter("ns", "finish of a zone that is partly written, without the padding")
    finish_byte_ns: float = parameter("ns/B", "padding in a finish, for each byte that is left of the capacity")
    finish_spread: float = parameter("", "standard deviation of the padding time, as a share of it", MEASURED)
    reset_ns: int = parameter("ns", "reset of an empty zone")
    reset_written_ns: int = parameter("ns", "added to the reset of a zone in which anything is written")
    reset_capacity_ns: int = parameter("ns", "added to a reset, times the written share of the capacity")
    reset_active_ns: int = parameter("ns", "added to the reset of an active zone with more than 4 KiB of data")
    reset_finished_ns: int = parameter("ns", "saved in the reset of a zone that finish made full", MEASURED)
    reset_slow_share: float = parameter("", "share of resets that take reset_slow_ns longer", MEASURED)
    reset_slow_ns: int = parameter("ns", "added to a slow reset, times the written share to the power of 0.6")
    reset_beside_writes: float = parameter("", "factor on a reset while writes are under way", MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskParameters:
    """A disk with one actuator."""

    seek_ns: int = parameter("ns", "settling: the part of a seek that does not depend on its distance", ASSUMED)
    seek_stroke_ns: int = parameter(
        "ns", "a seek over the whole disk beyond that; grows as the root of the distance", DOCUMENT
    )
    revolution_ns: int = parameter("ns", "a revolution", DOCUMENT)
    media_byte_ns: float = parameter("ns/B", "a byte at the outermost track", TYPICAL)
    inner_ratio: float = parameter("", "rate at the innermost track as a share of the outermost one", ASSUMED)
    command_ns: int = parameter("ns", "a command without its data; zone management takes no more", ASSUMED)
    streaming_ns: int = parameter(
        "ns", "the longest pause after which a request that follows on needs no seek and no revolution", ASSUMED
    )


def parameters_of(parameters: FlashParameters | DiskParameters) -> Iterator[ParameterFact]:
    """Yield each parameter with its value, unit, meaning and source."""
    for item in fields(parameters):
        data = item.metadata
        yield ParameterFact(item.name, getattr(parameters, item.name), data["unit"], data["meaning"], data["source"])
