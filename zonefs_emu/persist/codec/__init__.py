"""The metadata of an image as bytes, both ways. docs/image-format.md describes it to the byte.

Pure: bytes in, values out. Each kind of section has a module, and two modules are for all sections. May not know:
files; which of two copies counts and how a damaged one is rebuilt (recovery.py); when a block is written or trusted
(image.py).

All numbers are little endian. Every block carries a CRC-32 that is seeded with the image's UUID, so that a block of
another image, or of an earlier image in the same place, is not taken for one of this image.

    [ data | header A | state A | table A | journal A | live | refusals | faults A | counters (sparse)
           | table B | journal B | faults B | state B | header B ]
"""
