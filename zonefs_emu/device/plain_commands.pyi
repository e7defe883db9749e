from typing_extensions import Buffer

from zonefs_emu.device.port import Port
from zonefs_emu.errors import Status

SOURCES: int

class PlainCommands:
    port: Port

    def __init__(self, *, port: Port, descriptor: int, write_sectors_max: int, run_sectors_max: int) -> None: ...
    def read(self, sector: int, nr_sectors: int, buffers: tuple[Buffer, ...]) -> Status: ...
    def write(self, sector: int, nr_sectors: int, buffers: tuple[Buffer, ...]) -> Status: ...
