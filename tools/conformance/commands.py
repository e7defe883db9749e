"""Command-line programs for zoned disks: each command is a test, checked with blkzone of util-linux.

Their authors have no suite of tests that takes a disk.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from tools.conformance.results import Outcome
from tools.conformance.setting import Setting
from tools.conformance.steps import run_step

#: Functions and variables of all scripts: zone 20 of the disk is sequential on each of them.
_HEAD: Final = """
node={node}
name=${{node#/dev/}}
sectors=$(cat /sys/block/$name/queue/chunk_sectors)
block=$(cat /sys/block/$name/queue/logical_block_size)
start=$((20 * sectors))
lba=$((start * 512 / block))
nr_zones=$(cat /sys/block/$name/queue/nr_zones)
# The condition of zone 20 as a number: 1 empty, 2 and 3 open, 4 closed, 14 full.
cond() {{ blkzone report -o $start -c 1 $node | sed 's/.*zcond: *\\([0-9]*\\).*/\\1/'; }}
written() {{ blkzone report -o $start -c 1 $node | sed 's/.*wptr \\(0x[0-9a-f]*\\).*/\\1/'; }}
is() {{ [ "$1" = "$2" ] || {{ echo "$1 instead of $2" >&2; exit 1; }}; }}
fill() {{ dd if=/dev/urandom of=/run/data bs=$block count=4 status=none; }}
blkzone reset -o $start -l $sectors $node
"""
_SG3: Final[Mapping[str, str]] = MappingProxyType(
    {
        "scsi_mandat": "bash scsi_mandat $node",
        "sg_opcodes": "sg_opcodes $node",
        "sg_vpd of zoned disks": "sg_vpd --page=zbdch $node",
        "sg_vpd of block limits": "sg_vpd --page=bl $node",
        "sg_readcap": "sg_readcap --long $node",
        "sg_modes": "sg_modes --all $node",
        "sg_logs": "sg_logs --all $node",
        "sg_sync": "sg_sync $node",
        "sg_rep_zones": 'is "$(sg_rep_zones --num=4 $node | grep -c "Zone type")" 4; sg_rep_zones --report=1 $node',
        "sg_zone open": "sg_zone --open --zone=$lba $node; is $(cond) 3",
        "sg_zone close": "fill; dd if=/run/data of=$node bs=$block seek=$lba oflag=direct status=none\n"
        "sg_zone --close --zone=$lba $node; is $(cond) 4",
        "sg_zone finish": "sg_zone --finish --zone=$lba $node; is $(cond) 14",
        "sg_reset_wp": "sg_zone --finish --zone=$lba $node; sg_reset_wp --zone=$lba $node; is $(cond) 1",
        "sg_reset_wp all": "sg_zone --finish --zone=$lba $node; sg_reset_wp --all $node; is $(cond) 1",
        "sg_dd": "fill; sg_dd if=/run/data of=$node bs=$block seek=$lba count=4 oflag=sgio\n"
        "sg_dd if=$node of=/run/read bs=$block skip=$lba count=4 iflag=sgio; cmp /run/data /run/read",
        "sg_write_same": "sg_write_same --16 --in=/dev/zero --lba=$lba --num=8 --xferlen=$block $node\n"
        "is $(($(written))) $((8 * block / 512))",
        "sg_verify": "fill; dd if=/run/data of=$node bs=$block seek=$lba oflag=direct status=none\n"
        "sg_verify --lba=$lba --count=4 $node",
    }
)
_ZBD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "report": "zbd report -n $node | grep -w $nr_zones",
        "report as CSV": "zbd report -csv $node",
        "open": "zbd open -ofst $((start * 512)) -len $((sectors * 512)) $node; is $(cond) 3",
        "close": "fill; dd if=/run/data of=$node bs=$block seek=$lba oflag=direct status=none\n"
        "zbd close -ofst $((start * 512)) -len $((sectors * 512)) $node; is $(cond) 4",
        "finish": "zbd finish -ofst $((start * 512)) -len $((sectors * 512)) $node; is $(cond) 14",
        "reset": "zbd finish -ofst $((start * 512)) -len $((sectors * 512)) $node\n"
        "zbd reset -ofst $((start * 512)) -len $((sectors * 512)) $node; is $(cond) 1",
        "dump and restore": "fill; dd if=/run/data of=$node bs=$block seek=$lba oflag=direct status=none\n"
        "rm -rf /run/dump; mkdir /run/dump; zbd dump -d /run/dump -f disk $node\n"
        "blkzone reset $node; zbd restore -d /run/dump -f disk $node\n"
        "dd if=$node bs=$block skip=$lba count=4 iflag=direct status=none | cmp - /run/data",
    }
)
_NVME: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{
            f"{command}": f"nvme {command} $node"
            for command in (
                "id-ctrl", "id-ns", "smart-log", "error-log", "effects-log", "fw-log", "list-ns", "flush",
                "zns id-ctrl", "zns id-ns", "zns changed-zone-list",
            )
        },
        "zns report-zones": 'is "$(nvme zns report-zones $node | grep -c "^SLBA")" $nr_zones',
        "zns open-zone": "nvme zns open-zone -s $lba $node; is $(cond) 3",
        "zns close-zone": "nvme zns open-zone -s $lba $node; nvme zns close-zone -s $lba $node; is $(cond) 4",
        "zns finish-zone": "nvme zns finish-zone -s $lba $node; is $(cond) 14",
        "zns reset-zone": "nvme zns finish-zone -s $lba $node; nvme zns reset-zone -s $lba $node; is $(cond) 1",
        "zns zone-append": "fill; nvme zns zone-append -s $lba -z $((4 * block)) -d /run/data $node\n"
        "nvme zns zone-append -s $lba -z $((4 * block)) -d /run/data $node\n"
        "is $(($(written))) $((8 * block / 512))",
        "write and read": "fill; nvme write -s $lba -c 3 -z $((4 * block)) -d /run/data $node\n"
        "nvme read -s $lba -c 3 -z $((4 * block)) -d /run/read $node; cmp /run/data /run/read",
        "compare": "fill; nvme write -s $lba -c 3 -z $((4 * block)) -d /run/data $node\n"
        "nvme compare -s $lba -c 3 -z $((4 * block)) -d /run/data $node",
        "write-zeroes": "nvme write-zeroes -s $lba -c 7 $node; is $(($(written))) $((8 * block / 512))",
        "zns set-zone-desc": "fill; nvme zns set-zone-desc -s $lba -d /run/data $node >/run/answer 2>&1 || {\n"
        "cat /run/answer; grep -q 'not provide descriptor' /run/answer || exit 1\n"
        "echo zones have no descriptor extension; exit 77; }",
    }
)  # fmt: skip


def _run(commands: Mapping[str, str], setting: Setting) -> tuple[Outcome, ...]:
    head = _HEAD.format(node=setting.device.node)
    return tuple(run_step(setting, name, head + script) for name, script in commands.items())


#: By the name of the program's package.
COMMANDS: Final[Mapping[str, Callable[[Setting], tuple[Outcome, ...]]]] = MappingProxyType(
    {"sg3-utils": partial(_run, _SG3), "libzbd's zbd": partial(_run, _ZBD), "nvme-cli": partial(_run, _NVME)}
)
