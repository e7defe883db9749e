"""When a read or a write is plain: it is allowed, and it takes no open or active resource.

:mod:`machine` asks these functions first, and checks what they do not allow by all of its rules. The compiled modules
ask them as well, and leave what they do not allow to Python. They have these functions compiled from this file, with
the types in zonefs_emu/model/compiled_plain_rules.pxd. So the rules stand here only, and this file uses nothing that C
does not have: numbers, and no imports.
"""


def is_plain_read(  # noqa: PLR0917  (positional: keywords cost a third of a call)
    is_readable: bool,  # noqa: FBT001
    wp: int,
    sector: int,
    offset: int,
    nr_sectors: int,
    block_mask: int,
) -> bool:
    """Say whether a read of *nr_sectors* at *sector* is of whole blocks of one zone, all of which are written.

    *is_readable*: whether the zone's condition allows reads. *wp* and *offset*: the write pointer and *sector*, counted
    from the zone's start. *block_mask*: sectors of a block, less one. The end needs no check of its own: it is not
    beyond wp, and wp is not beyond the zone.
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
    """Say whether a write of *nr_sectors* begins at the write pointer of an open zone and fits into the zone.

    *keeps_open*: whether the zone's condition is an open one that a write does not change; only a write that reaches
    the capacity makes such a zone FULL. *offset*, *wp* and *capacity*: the sector of the write, the write pointer and
    the capacity, counted from the zone's start. *granularity*: that of writes, in sectors.
    """
    return (
        keeps_open
        and offset == wp
        and offset + nr_sectors <= capacity
        and nr_sectors > 0
        and not nr_sectors % granularity
    )
