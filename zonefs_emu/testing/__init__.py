"""Doubles that tests use, ours and those of others: shipped with the package."""
