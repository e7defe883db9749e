from zonefs_emu.virtio.handler import Deferred


def test_a_deferred_request_is_no_executed_one() -> None:
    deferred = Deferred(lambda: 7)
    assert not deferred
    assert deferred.execute() == 7
