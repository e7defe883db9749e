"""One process that owns one image, and how others talk to it.

    framing      pure: messages on the control socket
    rendezvous   where the control socket of an image is
    verbs        the one implementation of every verb, for the process that holds the device; its parts:
                 fields (of a request), answers (refusals in words), faults, formatting
    client       a verb's way to the image: through the daemon that holds it, else by opening it
    control      the control socket's server
    session      opens an image, runs front-ends and the control socket, ends in order
    background   a process that its parent waits for until it is ready

A front-end is a callable that a session starts; this package knows none by name.
"""
