"""Benchmarks: each figure of ours stands beside a peer's, measured in the same run, and what counts is the ratio.

Machines differ and are noisy; a ratio of two figures taken one after the other on the same machine is neither.
"""
