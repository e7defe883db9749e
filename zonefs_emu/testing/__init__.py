"""Test doubles, for the tests of this package and of its users."""
