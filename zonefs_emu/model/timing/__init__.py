"""When a drive would complete a request: a model of service times in device time.

Pure and deterministic from a seed: no clock of the operating system, no event loop. Times are integer nanoseconds.
"""
