"""The metadata of an image as bytes, both ways. docs/image-format.md describes it to the byte.

Pure: bytes in, values out. header, state, table, journal, faults and extension are for the sections of these names;
words is for the zone states in the table, the journal and the live table; block is for the blocks of several sections.
The content of refusals and counters is encoded by the device. May not know: files; which of two copies counts and how a
damaged one is rebuilt (recovery.py); when a block is written or trusted (image.py).

All numbers are little endian. State blocks, table blocks, journal records, faults and extensions have a CRC-32 that is
seeded with the image's UUID, so that one of another image, or of an earlier image in the same place, is not taken for
one of this image. The header, which has the UUID, has a CRC-32 without a seed. Words of the live table are multiples of
a prime.

    [ data | header A | state A | table A | journal A | live | refusals | faults A | counters (sparse)
           | extensions (sparse, if zones have them) | table B | journal B | faults B | state B | header B ]
"""
