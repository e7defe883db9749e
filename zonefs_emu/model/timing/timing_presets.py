"""Ready-made timing models: the parameters of drives, beside the geometries of ``zonefs_emu.model.presets``.

``zn540`` is fitted to public measurements, in part by search (the reads) and in part by hand (the writes, the buffer
and the programs, zone management). docs/timing.md names the measurements and shows the errors.
"""

from types import MappingProxyType
from typing import Final

from zonefs_emu.errors import UsageError
from zonefs_emu.model.timing.flash import FlashTiming
from zonefs_emu.model.timing.parameters import DiskParameters, FlashParameters
from zonefs_emu.model.timing.smr_disk import DiskTiming
from zonefs_emu.model.timing.waits import DriveTiming, Instant

#: Western Digital Ultrastar DC ZN540, 1 TB.
ZN540: Final = FlashParameters(
    controller_write_ns=2150,
    controller_append_ns=2800,
    controller_spread=1.0,
    controller_read_ns=1700,
    commands_max=225,
    queue_turn_ns=160_000,
    write_byte_ns=0.425,
    write_unit_bytes=8192,
    small_write_ns=1500,
    small_append_ns=2900,
    large_ns=300,
    write_base_ns=4800,
    append_extra_ns=1350,
    large_write_ns=1000,
    large_append_ns=2800,
    overlap_ns=2000,
    jitter_ns=500,
    first_write_ns=1800,
    first_append_ns=3200,
    reopen_ns=3400,
    partial_4k_ns=14_450,
    partial_ns=25_500,
    partial_append_ns=600,
    partial_4k_shape=0.6,
    partial_shape=6.0,
    partial_other_zone_shape=1.0,
    partial_slots=5,
    partial_latency_ns=10_900,
    buffer_bytes=5_682_000,
    program_bytes=32 << 10,
    programs_per_die=14,
    program_slices=1.75,
    program_spread=0.4,
    slice_ns=270_800,
    reads_between_slices=6,
    interrupt_ns=60_000,
    interrupt_more_ns=22_000,
    row_bytes=4_960_000,
    row_slices=4,
    row_share=0.71,
    housekeeping_bytes=110_400_000,
    housekeeping_slices=7,
    nr_channels=6,
    dies_per_channel=4,
    die_read_ns=39_995,
    slow_page_share=0.289,
    slow_page_ns=12_025,
    channel_byte_ns=2.089,
    read_base_ns=17_109,
    bus_ns=250,
    bus_byte_ns=0.345,
    stripe_bytes=64 << 10,
    # spdk, blocks of 512 bytes; rows by streams, columns by depth.
    read_ahead_streams=(1, 2, 4, 8),
    read_ahead_depths=(1, 4, 16, 64, 256),
    read_ahead_rates=(
        (
            512,
            (
                (146_831, 377_377, 60_062, 81_441, 114_077),
                (74_801, 104_813, 110_933, 146_775, 137_999),
                (128_482, 172_227, 185_852, 198_631, 134_063),
                (203_664, 265_489, 289_653, 199_931, 136_822),
            ),
        ),
        (
            2048,
            (
                (136_570, 405_817, 66_940, 339_621, 187_338),
                (62_702, 87_741, 118_326, 265_644, 230_467),
                (111_917, 150_478, 205_062, 298_498, 278_404),
                (182_875, 243_481, 319_394, 317_133, 258_299),
            ),
        ),
        (
            4096,
            (
                (127_120, 394_283, 410_090, 407_487, 321_500),
                (51_294, 73_874, 138_932, 346_502, 379_486),
                (95_057, 131_082, 233_940, 369_416, 352_652),
                (159_506, 219_580, 352_342, 377_133, 340_269),
            ),
        ),
        (
            16384,
            (
                (75_423, 182_851, 179_912, 180_196, 180_175),
                (18_975, 41_123, 166_796, 125_074, 108_241),
                (36_020, 71_364, 113_523, 113_922, 101_242),
                (64_644, 114_921, 116_862, 109_948, 114_207),
            ),
        ),
        (
            65536,
            (
                (34_224, 43_346, 39_338, 50_003, 50_002),
                (8_618, 26_015, 50_002, 49_997, 49_990),
                (15_791, 38_804, 49_968, 49_956, 49_917),
                (26_700, 49_602, 49_791, 49_193, 48_916),
            ),
        ),
    ),
    read_ahead_gap_ns=500,
    read_ahead_shape=1.5,
    open_ns=9300,
    close_ns=10_600,
    management_jitter_ns=300,
    finish_empty_ns=13_500,
    finish_ns=2_570_000,
    finish_byte_ns=0.802,
    finish_spread=0.0027,
    reset_ns=1_630_000,
    reset_written_ns=60_000,
    reset_capacity_ns=13_750_000,
    reset_active_ns=2_570_000,
    reset_finished_ns=30_000,
    reset_slow_share=0.155,
    reset_slow_ns=2_040_000,
    reset_beside_writes=1.11,
)

#: A host-managed SMR disk of 7200 revolutions a minute, such as the Western Digital Ultrastar DC HC620. No data sheet
#: of that drive was at hand: 233 MB/s is a usual rate of its kind. A seek takes 7.4 ms on average, as in the
#: specification of a similar drive (DOCUMENT in parameters.py): 1 ms, and the mean root of the distance (8/15) of the
#: stroke.
SMR_HM: Final = DiskParameters(
    seek_ns=1_000_000,
    seek_stroke_ns=12_000_000,
    revolution_ns=8_333_333,
    media_byte_ns=4.292,
    inner_ratio=0.5,
    command_ns=100_000,
    streaming_ns=2_000_000,
)

TIMING_PRESETS: Final = MappingProxyType({"zn540": ZN540, "smr-hm": SMR_HM, "none": None})


def make_timing(
    preset: FlashParameters | DiskParameters | None,
    *,
    capacity_sectors: int,
    size_sectors: int,
    block_bytes: int = 4096,
    seed: int = 0,
) -> DriveTiming:
    """Return a model of a drive that has done nothing yet.

    *capacity_sectors*: the capacity of a zone. *size_sectors*: the size of the drive. *block_bytes*: length of a
    logical block. *seed*: of the random parts of the model.
    """
    if preset is None:
        return Instant()
    if isinstance(preset, DiskParameters):
        return DiskTiming(preset, size_sectors=size_sectors, seed=seed)
    return FlashTiming(preset, capacity_sectors=capacity_sectors, block_bytes=block_bytes, seed=seed)


def find_preset(name: str) -> FlashParameters | DiskParameters | None:
    """Return the parameters of the preset *name*; None for "none".

    Raises:
        UsageError: there is no such preset.
    """
    try:
        return TIMING_PRESETS[name]
    except KeyError:
        message = f"there is no timing preset {name!r}: there are {', '.join(TIMING_PRESETS)}"
        raise UsageError(message) from None
