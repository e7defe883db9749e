"""A drive that is served over TCP in the guest that uses it, and what every kernel must be able to do with it."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.attaching import Place
from tests.lacking_drive import FIRST_PORT, READY, ROWS, Fate, Row, nqn_of

_CHECKOUT: Final = Path(__file__).parents[1]

HOST: Final = "--hostnqn nqn.a --hostid 11111111-2222-3333-4444-555555555555"
#: Another one, as the kernel reads it.
OTHER_HOST: Final = "hostnqn=nqn.b,hostid=66666666-7777-8888-9999-000000000000"
#: With which a lost target is looked for each second.
CONNECT: Final = "nvme connect -t tcp -a 127.0.0.1 -s 4420 -c 1"


@contextmanager
def image_of(place: Place, shape: str) -> Iterator[Place]:
    """Make an image n.img that can be served over TCP."""
    place.guest.load("nvme_tcp")
    place.sh("ip link set lo up")
    place.create("n.img", shape)
    yield place
    place.sh("nvme disconnect-all", check=False)
    stop(place)


def serve(place: Place, *options: str) -> None:
    """Serve n.img in the background; what the daemon prints is in the file *served*."""
    place.start(f"serve n.img --nvme-tcp {' '.join(options)}", "served")
    place.sh(
        "until grep -q '^nvme connect' served; do sleep 0.1; [ ! -e served.code ] || { cat served >&2; exit 1; }; done"
    )


def stop(place: Place) -> None:
    """End the process that serves n.img, if there is one."""
    pid = json.loads(place.sh("Z info n.img --json").stdout)["pid"]
    if pid is not None:
        place.sh(f"kill {pid}; while [ -e /proc/{pid} ]; do sleep 0.1; done")


def connect(place: Place, *options: str) -> str:
    """Connect a host to the served drive; returns the node."""
    done = place.sh(
        f"""nqn=$(awk '/^nvme connect/ {{ print $NF }}' served)
        name=$({CONNECT} {HOST} -n $nqn {" ".join(options)} -o json | grep -o 'nvme[0-9]*')
        until [ -b /dev/${{name}}n1 ]; do sleep 0.1; done; echo $name"""
    )
    return f"/dev/{done.stdout.strip()}n1"


def disconnect(place: Place, node: str) -> None:
    """End the connection that made *node*."""
    place.sh(f"nvme disconnect -d {node.removesuffix('n1')}; while [ -b {node} ]; do sleep 0.1; done")


def check_discovery(place: Place) -> None:
    """The discovery service names the drive."""
    found = place.sh(f"nvme discover -t tcp -a 127.0.0.1 -s 4420 {HOST}").stdout
    assert re.search(r"subnqn: +nqn.2014-08.org.nvmexpress:uuid:", found)


def check_data(place: Place, node: str) -> None:
    """Data come back as they were written."""
    place.sh(
        f"""dd if=/dev/urandom of=data bs=64k count=4 status=none; blkzone reset {node}
        dd if=data of={node} bs=64k oflag=direct status=none
        dd if={node} bs=64k count=4 iflag=direct status=none | cmp - data"""
    )


def check_digests(place: Place) -> None:
    """The drive is used with header and data digests."""
    node = connect(place, "-g", "-G")
    check_data(place, node)
    disconnect(place, node)


def check_keys(place: Place) -> None:
    """Keys of nvme-cli, and the kernel's own DH-HMAC-CHAP on the admin queue and each I/O queue."""
    place.sh("for name in host drive other; do nvme gen-dhchap-key -m 1 -n nqn.a >$name.key; done")
    serve(place, "--host-key nqn.a=@host.key --controller-key @drive.key")
    place_of_drive = f"{CONNECT} {HOST} -n $(awk '/^nvme connect/ {{ print $NF }}' served)"

    def refused(*secrets: str) -> None:
        options = " ".join(f'--dhchap-{kind}="$(cat {name}.key)"' for kind, name in map(str.split, secrets))
        place.sh(
            f"""ls /sys/class/nvme >before; ! {place_of_drive} {options} 2>&1
            ls /sys/class/nvme | diff before -""",
            timeout=300,
        )

    refused()
    refused("secret other")
    refused("secret host", "ctrl-secret other")
    why = place.sh("cat served").stdout
    assert "nqn.a has not proved its name: its key is not the one that was given for it" in why
    assert "nqn.a has not proved its name: the host gives up, reason 1" in why
    node = connect(place, '--dhchap-secret="$(cat host.key)" --dhchap-ctrl-secret="$(cat drive.key)"')
    log = place.sh("dmesg").stdout
    assert "qid 0: authenticated with hash hmac(sha512) dhgroup ffdhe3072" in log
    assert "qid 0: controller authenticated" in log
    check_data(place, node)
    place.sh(
        f"""# The host authenticates again on all queues of the controller, which goes on meanwhile.
        cat host.key >/sys/class/nvme/{node.removeprefix("/dev/").removesuffix("n1")}/dhchap_secret
        dd if={node} bs=64k count=4 iflag=direct status=none | cmp - data"""
    )
    (front_end,) = json.loads(place.sh("Z stats n.img --json").stdout)["front_ends"]
    assert front_end["statistics"]["failed_authentications"] == 2


def check_killed_under_reads(place: Place, node: str) -> None:
    """The host repeats what it had under way when the target was killed; reads never fail."""
    place.sh(
        f"""blkzone reset {node}; dd if=/dev/urandom of=data bs=64k count=16 status=none
        dd if=data of={node} bs=64k oflag=direct"""
    )
    reading = place.guest.start(
        f"for i in 1 2 3 4 5 6 7 8; do dd if={node} bs=4k count=256 iflag=direct | cmp - /run/attaching/data; done"
    )
    place.wait_until_written_or_read(node, 100)
    place.kill_server("n.img")
    serve(place)
    reading.wait(timeout=300)
    place.assert_reports_agree(node, "n.img")


def check_killed_under_writes(place: Place, node: str) -> None:
    """fio writes while the target is killed, and each write is carried out once; what was written is there.

    The host sends again what it had under way. A write that had been carried out is then refused and counts as an error
    for fio; newer kernels fail further writes to its zone as well.
    """
    block = 64 << 10
    place.sh(f"blkzone reset {node}")
    pid = place.server_pid("n.img")
    writing = place.guest.start(
        f"fio --name=x --filename={node} --zonemode=zbd --max_open_zones=3 --direct=1 --ioengine=libaio --iodepth=8"
        f" --rw=randwrite --bs={block} --size=24M --verify=crc32c --do_verify=0 --continue_on_error=write"
        " --output-format=json"
    )
    place.sh(place.waiting(node, 50) + place.killing(pid))
    assert writing.poll() is None
    serve(place)
    (job,) = json.loads(writing.wait(timeout=300).stdout)["jobs"]
    zones = json.loads(place.sh("Z report n.img --json").stdout)["zones"]
    refused = json.loads(place.sh("Z why n.img --json").stdout)["refusals"]
    assert len(refused) <= 3, "not more than the writes that were under way"
    written = {zone["zone_no"]: zone["written"] * 512 for zone in zones if zone["written"]}
    assert sum(written.values()) == job["write"]["io_bytes"] + len(refused) * block
    if not job["total_err"]:
        assert job["write"]["io_bytes"] == 18 << 20, "six zones of 4 MiB with a capacity of 3 MiB"
    jobs = " ".join(f"--name={number} --offset={number << 22} --size={size}" for number, size in written.items())
    place.sh(f"fio --filename={node} --direct=1 --rw=read --bs={block} --verify=crc32c --verify_fatal=1 {jobs}")
    place.assert_reports_agree(node, "n.img")


def check_two_hosts(place: Place, node: str) -> None:
    """Another host beside that of *node* has the same zones, data and limits, and goes on without it."""
    # Not by nvme-cli 2.3, which does not look at the names of hosts, and finds that the drive is connected already.
    words = f"transport=tcp,traddr=127.0.0.1,trsvcid=4420,{OTHER_HOST}"
    done = place.sh(
        f"""exec 3<>/dev/nvme-fabrics; echo "{words},nqn=$(awk '/^nvme connect/ {{ print $NF }}' served)" >&3
        name=nvme$(sed -n 's/instance=\\([0-9]*\\),.*/\\1/p' <&3)
        until [ -b /dev/${{name}}n1 ]; do sleep 0.1; done; echo /dev/${{name}}n1"""
    )
    other = done.stdout.strip()
    assert other != node
    zone = 64  # in units of 64 KiB

    def blkzone(command: str, node: str, number: int) -> str:
        return f"blkzone {command} -o {number << 13} -c 1 {node}\n"

    place.sh(
        f"""dd if=/dev/urandom of=data bs=64k count=6 status=none; blkzone reset {node}
        [ $(nvme list-ctrl {node.removesuffix("n1")} | wc -l) = $(nvme list-ctrl {other.removesuffix("n1")} | wc -l) ]
        dd if=data of={node} bs=64k count=2 seek={2 * zone} oflag=direct status=none
        dd if={other} bs=64k count=2 skip={2 * zone} iflag=direct status=none | cmp -n 131072 - data
        dd if=data of={other} bs=64k count=2 skip=2 seek={2 * zone + 2} oflag=direct status=none
        dd if={node} bs=64k count=4 skip={2 * zone} iflag=direct status=none | cmp -n 262144 - data
        # Three zones may be open; the drive closes only those that no host has opened by a command.
        {blkzone("open", node, 3)} {blkzone("open", node, 4)} {blkzone("open", other, 5)}
        {blkzone("open", other, 6).strip()} 2>&1 && exit 1
        {blkzone("close", other, 3)} {blkzone("open", node, 6)}
        blkzone report {node} >first; blkzone report {other} | diff first -"""
    )
    assert "max_open_zones zones are open" in place.sh("Z why n.img").stdout
    place.assert_reports_agree(other, "n.img")
    disconnect(place, node)
    place.sh(
        f"""{blkzone("close", other, 6)}
        dd if=data of={other} bs=64k count=2 skip=4 seek={2 * zone + 4} oflag=direct status=none
        dd if={other} bs=64k count=6 skip={2 * zone} iflag=direct status=none | cmp - data"""
    )
    place.assert_reports_agree(other, "n.img")


@contextmanager
def lacking_drives(place: Place) -> Iterator[Callable[[Row], tuple[Fate, str]]]:
    """Serve n.img as drives that lack something; yields what Linux makes of one of them, and what it says."""
    place.sh(
        f"""PYTHONPATH={_CHECKOUT} PYTHONDONTWRITEBYTECODE=1 {sys.executable} -m tests.lacking_drive n.img >asked 2>&1 &
        echo $! >lacking; until grep -q {READY} asked; do sleep 0.2; kill -0 $!; done"""
    )

    def fate_of(row: Row) -> tuple[Fate, str]:
        port, nqn = FIRST_PORT + ROWS.index(row), nqn_of(row)
        said = place.sh(
            f"""dmesg -C
            if name=$(nvme connect -t tcp -a 127.0.0.1 -s {port} -n {nqn} {HOST} -o json | grep -o 'nvme[0-9]*')
            then
                echo CONNECTED
                # Some drives are refused without a message, after which the kernel asks nothing more.
                before=0; until [ $(wc -l <asked) = $before ]; do before=$(wc -l <asked); sleep 2; done
                if [ -b /dev/${{name}}n1 ]
                then
                    echo DISK; cat /sys/block/${{name}}n1/ro
                    blkzone report -c 1 /dev/${{name}}n1 | grep -q start && echo ZONES || true
                    cat /sys/block/${{name}}n1/queue/write_cache
                fi
                nvme disconnect -n {nqn} >&2
            fi
            dmesg"""
        ).stdout
        words = said.split()
        if "CONNECTED" not in words:
            return Fate.NO_CONNECTION, said
        if "DISK" not in words:
            return Fate.NO_DISK, said
        if "ZONES" not in words:
            return Fate.NO_ZONES, said
        return Fate.READ_ONLY if words[2] == "1" else Fate.WORKS, said

    try:
        yield fate_of
    finally:
        place.sh("kill -9 $(cat lacking)", check=False)
