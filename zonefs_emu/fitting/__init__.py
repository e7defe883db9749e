"""Measurements of a drive, what a timing model says of the same points, and parameters that make them agree.

Searching needs SciPy, the optional extra ``fit``.
"""
