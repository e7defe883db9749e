"""The kernel's NVMe/TCP target in the guest, over a zoned block device, and the kernel connected to it."""


def target_script(node: str) -> str:
    """Return the commands that make *node* a drive over loopback, and print the node of that drive.

    The caller loads the modules nvmet_tcp and nvme_tcp before.
    """
    return f"""
ip link set lo up
mount -t configfs none /sys/kernel/config 2>/dev/null || true
cd /sys/kernel/config/nvmet
mkdir subsystems/peer subsystems/peer/namespaces/1 ports/1
echo 1 >subsystems/peer/attr_allow_any_host
echo {node} >subsystems/peer/namespaces/1/device_path
echo 1 >subsystems/peer/namespaces/1/enable
echo ipv4 >ports/1/addr_adrfam
echo tcp >ports/1/addr_trtype
echo 127.0.0.1 >ports/1/addr_traddr
echo 4421 >ports/1/addr_trsvcid
ln -s /sys/kernel/config/nvmet/subsystems/peer ports/1/subsystems/peer
nvme connect -t tcp -a 127.0.0.1 -s 4421 -n peer --hostnqn nqn.a --hostid 11111111-2222-3333-4444-555555555555 >&2
name=$(grep -lx peer /sys/class/nvme/nvme*/subsysnqn | cut -d/ -f5)
until [ -b /dev/${{name}}n1 ]; do sleep 0.1; done
echo /dev/${{name}}n1
"""
