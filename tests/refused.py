"""What a port was refused last, for tests that ask one port at a time."""

from zonefs_emu.device.port import Port
from zonefs_emu.device.refusals import Refusal


def last_refusal(port: Port) -> Refusal:
    return port.device.refusals.last(1)[0]
