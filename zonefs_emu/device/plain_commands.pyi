from zonefs_emu.device.port import Port

SOURCES: int

class PlainCommands:
    port: Port

    def __init__(self, *, port: Port, descriptor: int, write_sectors_max: int, run_sectors_max: int) -> None: ...
