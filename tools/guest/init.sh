#!/bin/sh
# First process of the guest, in the initramfs: puts the host's root and the kit's tools under one overlay and moves there.
# The kernel hands unknown NAME=VALUE words of its command line over as environment: guest_share and guest_layers.
fail() { echo "guest: $*" >/dev/console; poweroff -f; }

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*.ko; do
    insmod "$module" || fail "cannot load $module"
done

read_only=trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro
mkdir -p /lower/host /memory /merged
mount -t 9p -o $read_only host /lower/host || fail "cannot mount the host's root"
lower=/lower/host
layer=0
while [ $layer -lt "$guest_layers" ]; do
    mkdir /lower/kit$layer
    mount -t 9p -o $read_only kit$layer /lower/kit$layer || fail "cannot mount the kit"
    lower=/lower/kit$layer:$lower
    layer=$((layer + 1))
done
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
# switch_root removes all that is in this first file system.
cp -a /near/. /memory/upper/ || fail "cannot copy the files that are to be near"
# What the kit brings wins over what the host has: the guest's tools are the same on every host.
mount -t overlay -o lowerdir=$lower,upperdir=/memory/upper,workdir=/memory/work root /merged \
    || fail "cannot mount the overlay"

for name in dev proc sys; do
    mkdir -p /merged/$name
    mount --move /$name /merged/$name
done
mkdir -p /merged/run "/merged$guest_share"
mount -t tmpfs run /merged/run
# No cache: host and guest see at once what the other has written.
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share "/merged$guest_share" \
    || fail "cannot mount the share"
cp /agent.sh /merged/run/agent.sh
# Being process 1, this moves the kernel's own helpers (modprobe) into the new root too.
exec switch_root /merged /usr/bin/busybox sh /run/agent.sh
