"""The image file.

codec/            the bytes of each section, both ways; pure
recovery          the choice between two copies of a section, and rebuilding damaged ones; pure
backing, sigbus   the only modules that touch an image's file and its mappings
metadata          creating an image, finding its header, reading its sections
image             an image in use: it publishes changes and writes checkpoints
checkpoint, faults_section, pending_resets, space
the parts of an image in use, one object or job each
check, salvage, repair
                  findings about an image, reading the rest of a damaged one, and repairing it
copy              a copy of an image, which may be in use
"""
