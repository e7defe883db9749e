"""One process that owns one image, and how others talk to it.

    framing      pure: messages on the control socket
    fields       pure: the fields of a request to a verb, checked
    explainer    pure: refusals in words
    extensions   what front-ends add to the verbs: rules and verbs of their own
    verbs        the one implementation of every verb, for the process that holds the device
    fault_verbs  the verbs that break things on purpose
    holders      which process holds an image, and which is at the other end of a socket, as the kernel says
    rendezvous   where the control sockets of an image are
    client       a verb's way to the image: through the daemon that holds it, else by opening it
    control      the control socket's server
    session      opens an image, runs front-ends and the control socket, ends in order
    ending       the end by a signal within a bounded time
    background   a process that its parent waits for until it is ready
    service_manager
                 messages to systemd: ready, status, stopping

A front-end is a callable that a session starts. No module here imports one: they are in :mod:`zonefs_emu.front_ends`.
"""
