"""NVMe with the Zoned Namespace Command Set: identify data, logs, features, commands. No sockets and no guest memory.

    command        a submission queue entry, parsed once
    answer         the answer to a command
    rules          what the drive refuses
    status         the status of each refusal
    identify       the data structures of Identify
    logs           the log pages
    zone_report    reports of zones
    namespace      the I/O commands of one device
    changed_zones  the zones that the drive itself has changed
    changed_namespaces  the namespaces that hosts see differently than before
    subsystem      the namespaces that hosts see under one name, and the controllers that they have
    timestamp      the clock that a host sets
    controller     the registers, admin commands, features and events of one controller

A transport reads a command, determines from it how many bytes move in which direction, provides buffers for them,
executes it and returns a completion. Sources: NVM Express Base Specification 2.0, NVM Command Set 1.0, Zoned Namespace
Command Set 1.1.
"""
