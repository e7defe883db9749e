"""The SCSI target: a host-managed zoned disk by SPC-4, SBC-3 and ZBC-2. CDB in, data and sense out; no transport."""
