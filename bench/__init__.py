"""Benchmarks: each figure of zonefs_emu is compared with that of a peer in the same run, and the ratio counts.

Machines differ and are noisy. That changes single figures more than the ratio of two figures that are taken one after
the other on one machine.
"""
