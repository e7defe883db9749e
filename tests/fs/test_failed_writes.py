"""Truncations of the kernel, and those of applications, after a failed write."""

import pytest

from zonefs_emu.fs.failed_writes import is_automatic, note_failure, note_look
from zonefs_emu.fs.files import Handle, Node, ZoneFile

CALLER, OTHER = 7, 8


@pytest.fixture
def handle() -> Handle:
    """A handle on a file of 300 bytes, known to the kernel as 200, before as 100. A write on it has failed."""
    file = ZoneFile(7, 1, "seq/7", sequential=True, node=Node(0o640, 1000, 100, 5))
    file.size, file.notified_size, file.notified_before = 300, 200, 100
    handle = Handle(file, 0)
    note_failure(handle)
    return handle


@pytest.mark.parametrize(("size", "expected"), [(0, False), (100, True), (200, True), (300, False), (50, True)])
def test_a_truncation_to_a_size_that_the_kernel_may_have_is_automatic(
    size: int, expected: bool, handle: Handle
) -> None:
    handle.kernel_size = 50
    assert is_automatic(handle, size, CALLER) is expected
    assert not is_automatic(handle, size, CALLER), "the kernel truncates once after each failure"


def test_without_a_failed_write_an_application_truncates(handle: Handle) -> None:
    handle.failed = False
    assert not is_automatic(handle, 100, CALLER)


@pytest.mark.parametrize(("looker", "expected"), [(CALLER, False), (OTHER, True)])
def test_a_thread_that_has_looked_truncates_by_itself(looker: int, expected: bool, handle: Handle) -> None:
    note_look(handle.file, looker)
    assert is_automatic(handle, 100, CALLER) is expected


def test_a_limited_number_of_threads_is_noted(handle: Handle) -> None:
    for thread in range(100, 200):
        note_look(handle.file, thread)
    assert len(handle.file.lookers or ()) == 64


def test_no_thread_is_noted_for_a_file_without_a_failed_write() -> None:
    file = ZoneFile(7, 1, "seq/7", sequential=True, node=Node(0o640, 1000, 100, 5))
    note_look(file, CALLER)
    assert file.lookers is None
