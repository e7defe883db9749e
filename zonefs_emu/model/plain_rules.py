"""When a read or a write is plain: no zone changes its condition, and no rule has to say which one was broken.

:mod:`machine` asks these functions first, and judges what they do not allow by all of its rules. The compiled ring
walker asks them as well, and gives back what they do not allow. It has them compiled from this file, with the types
that zonefs_emu/model/compiled_plain_rules.pxd gives them. So the rules stand here only, and this file uses nothing
that C does not have: numbers, and no imports.
"""


def is_plain_read(  # noqa: PLR0917  (positional: keywords cost a third of a call)
    is_readable: bool,  # noqa: FBT001
    wp: int,
    sector: int,
    offset: int,
    nr_sectors: int,
    block_mask: int,
) -> bool:
    """Say whether written blocks of one zone are read.

    *is_readable*: of the zone's condition. *wp* and *offset*: the write pointer and *sector*, counted from the zone's
    start. *block_mask*: sectors of a block, less one. Where wp has passed the end, the end lies in the zone.
    """
    return is_readable and wp >= offset + nr_sectors and nr_sectors > 0 and not (sector | nr_sectors) & block_mask


def is_plain_write(  # noqa: PLR0917  (as above)
    keeps_open: bool,  # noqa: FBT001
    wp: int,
    offset: int,
    nr_sectors: int,
    capacity: int,
    granularity: int,
) -> bool:
    """Say whether whole blocks are written at the write pointer of a zone that is open, and fit.

    *keeps_open*: a write leaves the zone's condition as it is. *wp*, *offset* and *capacity* count from its start.
    """
    return (
        keeps_open
        and offset == wp
        and offset + nr_sectors <= capacity
        and nr_sectors > 0
        and not nr_sectors % granularity
    )
