"""The answer to a command, and the refusal of a command that breaks a rule of the drive."""

from typing import NamedTuple

from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import DO_NOT_RETRY, NvmeStatus


class Answer(NamedTuple):
    """A completion: the status code, dwords 0 and 1, and the data for the host, if the command returns any."""

    status: NvmeStatus
    result: int = 0
    data: bytes | memoryview = b""

    @property
    def status_field(self) -> int:
        """The status field of a completion, without the phase tag."""
        return self.status | DO_NOT_RETRY if self.status else 0


SUCCESS = Answer(NvmeStatus.SUCCESS)


class RefusedError(Exception):
    """A command breaks a *rule* of the drive. *what*: the wrong field or value, as a part of a sentence."""

    def __init__(self, rule: NvmeRule, what: str) -> None:
        super().__init__(rule, what)
        self.rule = rule
        self.what = what
