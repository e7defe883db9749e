"""The answer to a command, and the refusal of a command that breaks a rule of the drive."""

from typing import NamedTuple

from zonefs_emu.errors import Status
from zonefs_emu.nvme.rules import NvmeRule
from zonefs_emu.nvme.status import STATUS_OF_RULE, NvmeStatus, status_field


class Answer(NamedTuple):
    """A completion: the status code, dwords 0 and 1, and the data for the host, if the command returns any."""

    status: NvmeStatus
    result: int = 0
    data: bytes | memoryview = b""

    @property
    def status_field(self) -> int:
        """The status field of a completion, without the phase tag."""
        return status_field(self.status) if self.status else 0


SUCCESS = Answer(NvmeStatus.SUCCESS)


class RefusedError(Exception):
    """A command breaks a *rule* of the drive. *what*: the wrong field or value, as a part of a sentence.

    *result*: dword 0 of its completion, which tells the host of a Connect command which field is wrong.
    """

    def __init__(self, rule: NvmeRule, what: str, *, result: int = 0) -> None:
        super().__init__(rule, what)
        self.rule = rule
        self.what = what
        self._result = result

    @property
    def answer(self) -> Answer:
        """The answer to the host."""
        return Answer(STATUS_OF_RULE[self.rule][0], self._result)

    @property
    def status(self) -> Status:
        """The device's own status, for its log of refusals."""
        return STATUS_OF_RULE[self.rule][1]
