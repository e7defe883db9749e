"""NVMe over TCP: each connection is one queue of a controller.

    pdu               protocol data units: layouts, checks, digests
    fabrics           the commands for connecting queues and for a controller's properties
    data_pointer      where the data of a command are
    stream            the bytes of a connection
    queue_connection  one connection, served by one thread
    server            the sockets that listen, and the limits of all connections together
    auth_messages     the messages with which host and drive prove their names
    authentication    their order
    dh_groups         the groups of Diffie-Hellman
    key_form          the text of keys
    host_keys         the keys of hosts, and which hosts may connect
    tls_keys          the pre-shared keys of TLS, and the names that are bound to them
    tls_stream        the bytes of a connection that is encrypted
    kernel_host       the driver of this host's kernel, as a host
    attached_drive    the drive as a block device of this host

Source: NVM Express NVMe over TCP Transport Specification 1.0; Base Specification 2.0, "Fabrics Commands".
"""
