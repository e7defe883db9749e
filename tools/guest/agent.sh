# Process 1 of the guest after the initramfs: runs what the host asks for over a virtio-serial port.
#
# The host sends lines "run JOB", "kill JOB", "poweroff"; JOB is a directory of the share with a file "script" in it.
# The agent answers "ready" once and "done JOB STATUS" for each job, whose output it leaves in JOB/stdout and JOB/stderr.
# Jobs run side by side. When the host has gone the port ends, and the guest powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
ulimit -c 0

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
# devtmpfs has none of these, and shells and Python's subprocess want them.
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr

for port in /sys/class/virtio-ports/*; do
    # A console has no name.
    [ "$(cat "$port/name" 2>/dev/null)" = zonefs-emu.agent ] && exec 3<>"/dev/${port##*/}"
done

start() {
    cd "$guest_share/$1" || return
    # By its path: busybox would take its own sh, which takes busybox for mount, dd and others.
    setsid /bin/sh ./script >stdout 2>stderr </dev/null 3>&- &
    echo $! >pid
    wait $!
    echo "done $1 $?" >&3
}

echo ready >&3
while read -r verb job <&3; do
    case $verb in
    run) start "$job" & ;;
    # The script leads a session of its own, so its children end with it.
    kill) kill -KILL "-$(cat "$guest_share/$job/pid")" ;;
    poweroff) break ;;
    esac
done
exec 3>&-
sync
poweroff -f
