"""Transport to the host kernel: a zoned block device /dev/ublkbN, served from user space over io_uring."""
