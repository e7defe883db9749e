"""The rules of the device and of all front-ends of zonefs_emu together. No lower layer knows all of them."""

from typing import Final

from zonefs_emu.daemon.explainer import Explainer
from zonefs_emu.fs.errnos import ANSWERS as ZONEFS_ANSWERS
from zonefs_emu.nvme.status import ANSWERS as NVME_ANSWERS
from zonefs_emu.ublk.protocol import ANSWERS as UBLK_ANSWERS
from zonefs_emu.virtio.answers import BLK_ANSWERS, SCSI_ANSWERS, blk_user_answers

#: What each front-end answers to each rule.
ANSWERS: Final = (
    ZONEFS_ANSWERS, BLK_ANSWERS, SCSI_ANSWERS, UBLK_ANSWERS, blk_user_answers("vduse"), NVME_ANSWERS,
)  # fmt: skip

#: Explains the refusals of all of them.
EXPLAINER: Final = Explainer(ANSWERS)
