"""Measurements of a drive, predictions of a timing model at the same points, and parameters that make both agree.

Searching needs SciPy, the optional extra ``fit``.
"""
