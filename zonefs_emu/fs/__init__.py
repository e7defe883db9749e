"""Front-end: zonefs over FUSE.

    superblock   PURE. The 4096 bytes that mark a zoned device as formatted, both ways
    options      PURE. Mount options
    tree         PURE. Which zones are which file, and all inode numbers
    io_errors    PURE. How a file changes after an I/O error, as a table
    rules        The rules of zonefs
    errnos       The errno of each status and rule
    files        Files, directories and handles as values
    volume       The mounted file system without FUSE: per-file state, the checks in the kernel's order, zone commands
    signature    Finding an existing file system
    mkfs         Formatting
    failed_writes  Which truncations after a failed write are the kernel's own
    mount_table  The kernel's table of mounts
    kernel       Unmounting and remounting
    boundary     Containing unforeseen exceptions
    operations   FUSE requests to volume calls (pyfuse3)
    negotiation  Hiding features of the kernel from libfuse
    waiting      Waiting for the kernel's next request
    mount        The life of one mount

All modules above boundary are sync and know neither pyfuse3 nor an event loop.
"""
