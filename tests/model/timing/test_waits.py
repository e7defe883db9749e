from zonefs_emu.model.timing.waits import DriveTiming, Instant, Wait
from zonefs_emu.model.transitions import Operation


def test_a_drive_without_times_answers_at_once() -> None:
    model: DriveTiming = Instant()
    assert model.submit(Operation.RESET, 0, 0, 0, 17) == 17
    assert (model.waited_for, model.waited_ns, model.busy_ns) == (Wait.NOTHING, 0, 0)
