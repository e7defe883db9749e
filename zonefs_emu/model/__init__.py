"""The zoned device as mathematics: geometry, zones, transition tables per dialect, limits, the machine.

Pure: no files, no time, no event loop, no logging. Imports the standard library and sortedcontainers only.
"""
