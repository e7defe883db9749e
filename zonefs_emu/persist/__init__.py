"""The image file.

codec/            the bytes of each section, both ways; pure
recovery          what two copies of a section give together; pure
backing, sigbus   the only modules that touch the host's files and mappings
metadata          creating an image, finding its header, reading its sections
image             an image in use: it publishes changes and writes checkpoints
checkpoint, faults_section, pending_resets, space
the parts of an image in use, one object or job each
check, salvage, repair
findings about an image, what can still be read of a damaged one, and its repair
copy              a copy of an image, also of one in use
"""
