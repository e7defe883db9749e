"""The fixtures of the daemon's tests: a front-end is tested in a session."""

from tests.daemon.conftest import image, runtime_directory

__all__ = ["image", "runtime_directory"]
