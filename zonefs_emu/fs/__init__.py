"""Front-end: zonefs over FUSE.

    superblock.py  PURE. The 4096 bytes that mark a zoned device as formatted, both ways
    options.py     PURE. Mount options
    tree.py        PURE. Which zones are which file, and all inode numbers
    io_errors.py   PURE. What becomes of a file after an I/O error, as a table
    volume.py      The mounted file system without FUSE: per-file state, the checks in the kernel's order, zone commands
    mkfs.py        Formatting
    boundary.py    Containing unforeseen exceptions
    operations.py  FUSE requests to volume calls (pyfuse3)
    negotiation.py Which features of the kernel libfuse gets to see
    waiting.py     Waiting for the kernel's next request
    mount.py       The life of one mount

Everything above boundary.py is sync and works without a mount.
"""
