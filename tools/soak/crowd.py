"""All front-ends at once: a daemon, the loads on it, each with zones of its own, and faults and garbage among them."""

from pathlib import Path

from tools.soak.daemon import ANSWER_SECONDS, BLK, FILES, LOADED, NVME, SCSI, VERBS, VFIO, ZONE, Daemon
from tools.soak.disk_loads import BlkLoad, ScsiLoad
from tools.soak.harm import FaultLoad, GarbageLoad, HostileLoad
from tools.soak.ledger import BLOCK_BYTES, Ledger
from tools.soak.loads import FileLoad, Load, VerbLoad, asking
from tools.soak.nvme_loads import HostileHostLoad, NvmeLoad, VfioLoad
from zonefs_emu.device.device import ZonedDevice
from zonefs_emu.testing.scsi_driver import FIRST_REQUEST_QUEUE


class Crowd:
    """The daemon and all its users."""

    def __init__(self, directory: Path, seed: int, planting: str | None = None) -> None:
        self.daemon = Daemon(directory, planting)
        self.ledgers = [Ledger(zone_no) for zone_no in LOADED]
        self.loads: list[Load] = []
        self.done: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self._seed = seed

    def begin(self, *, faulty: bool = True) -> None:
        """Start the daemon, then its users; *faulty*: with faults and garbage among them."""
        self.daemon.start()
        self._seed += 1
        daemon, seed = self.daemon, self._seed

        def those(zones: range) -> list[Ledger]:
            return [ledger for ledger in self.ledgers if ledger.zone_no in zones]

        self.loads = [
            FileLoad(daemon, "files", seed, those(FILES)),
            VerbLoad(daemon, "verbs", seed, those(VERBS)),
            BlkLoad(daemon, "blk", seed, those(BLK), daemon.blk),
            ScsiLoad(daemon, "scsi", seed, those(SCSI), daemon.scsi),
            NvmeLoad(daemon, "nvme", seed, those(NVME)),
            VfioLoad(daemon, "vfio", seed, those(VFIO)),
        ]
        if faulty:
            self.loads += [
                FaultLoad(daemon, "faults", seed),
                GarbageLoad(daemon, "garbage", seed),
                HostileLoad(daemon, "hostile-blk", seed, daemon.hostile_blk, nr_queues=1),
                HostileLoad(daemon, "hostile-scsi", seed, daemon.hostile_scsi, nr_queues=FIRST_REQUEST_QUEUE + 1),
                HostileHostLoad(daemon, "hostile-nvme", seed),
            ]
        for load in self.loads:
            load.start()

    def check_alive(self) -> None:
        """Raise what a load has found; say so if the daemon ended by itself."""
        for load in self.loads:
            if load.failure is not None:
                raise load.failure
        assert self.daemon.is_running, f"the daemon ended by itself: see {self.daemon.log}"

    def kill(self) -> None:
        """Kill the daemon in the middle of everything, and compare what is left with what was acknowledged."""
        self.check_alive()
        self.daemon.kill()
        self._join()
        self._check_log()
        self.compare()

    def end(self) -> None:
        """Stop all users, then the daemon, and compare."""
        for load in self.loads:
            load.stopping.set()
        self._join()
        assert self.daemon.is_running, f"the daemon ended by itself: see {self.daemon.log}"
        if self.daemon.planting is None:
            self._remove_faults()
        self.daemon.stop()
        self._check_log()
        self.compare()

    def _remove_faults(self) -> None:
        with asking(self.daemon) as daemon:
            reply = daemon.ask("faults")
            assert reply is not None
            faults = reply[0]["faults"]
            assert isinstance(faults, list)
            for fault in faults:
                assert isinstance(fault, dict)
                daemon.ask("remove-fault", id=fault["id"])

    def _join(self) -> None:
        for load in self.loads:
            load.join(2 * ANSWER_SECONDS)
            assert not load.is_alive(), f"the load {load.name} hangs"
            self.done[load.name] = self.done.get(load.name, 0) + load.nr_done
            self.refused[load.name] = self.refused.get(load.name, 0) + load.nr_refused
            self.lost[load.name] = self.lost.get(load.name, 0) + load.nr_lost
        for load in self.loads:
            if load.failure is not None:
                raise load.failure
        self.loads = []

    def _check_log(self) -> None:
        if self.daemon.planting is not None:
            return  # full of them
        assert b"Traceback" not in self.daemon.log.read_bytes(), f"the daemon raised: see {self.daemon.log}"

    def compare(self) -> None:
        """Look at the image itself: every zone has what was acknowledged, and nothing that was never asked for."""
        device = ZonedDevice.open(self.daemon.image, readonly=True)
        try:
            machine, preadv = device.machine, device.image.backing.preadv
            for ledger in self.ledgers:
                ledger.reconcile(machine.wps[ledger.zone_no])
                found = bytearray(ledger.acknowledged * BLOCK_BYTES)
                preadv([found], ledger.zone_no * ZONE * 512)
                ledger.compare(0, ledger.acknowledged, bytes(found))
        finally:
            device.close()
