"""NVMe over TCP: each connection is one queue of a controller.

    pdu               protocol data units: layouts, checks, digests
    fabrics           the commands with which a host connects and reaches a controller's properties
    queue_connection  one connection, served by one thread
    server            the sockets that listen, and the limits of all connections together

Source: NVM Express NVMe over TCP Transport Specification 1.0; Base Specification 2.0, "Fabrics Commands".
"""
