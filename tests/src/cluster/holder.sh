# Holds the namespaces of a node: sh -c TEXT holder NAME FOLDER DISK, in new mount and UTS namespaces, in the node's
# network namespace. FOLDER is in memory and DISK on a disk; both become the node's own /run/containerd and so on, so that
# every daemon of the node keeps its usual paths, and a pod with a hostPath sees a usual node.
set -eu
name=$1 folder=$2 disk=$3

# First of all: otherwise what is unmounted below is unmounted for the whole machine.
mount --make-rprivate /
echo "$name" >/proc/sys/kernel/hostname

# The names of other machines' namespaces, which these mounts would keep alive.
for netns in /run/netns/*; do
    umount -l "$netns" 2>/dev/null || true
done
mount -t tmpfs -o mode=0755 netns /run/netns

# /sys shows the interfaces of the network namespace in which it was mounted. Control groups stay the machine's.
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroup" /sys/fs/cgroup
umount -l "$folder/cgroup"

own() {
    mkdir -p "$1/$2" "$3"
    mount --bind "$1/$2" "$3"
}
own "$disk" kubelet /var/lib/kubelet
own "$disk" containerd /var/lib/containerd
own "$disk" cni /var/lib/cni
own "$disk" fabric /var/lib/fabric
own "$disk" pods /var/log/pods
own "$disk" containers /var/log/containers
own "$folder" run-containerd /run/containerd
own "$folder" run-cni /run/cni
own "$folder" run-fabric /run/fabric
own "$folder" net.d /etc/cni/net.d
own "$folder" cni-bin /opt/cni/bin
own "$folder" kubernetes /etc/kubernetes

# The kubelet sets these for the whole machine where they differ. Here it finds them set, and the machine keeps its own.
setting() {
    [ -e "/proc/sys/$1" ] || return 0
    file=$folder/setting-$(echo "$1" | tr / -)
    echo "$2" >"$file"
    mount --bind "$file" "/proc/sys/$1"
}
setting vm/overcommit_memory 1
setting vm/panic_on_oom 0
setting kernel/panic 10
setting kernel/panic_on_oops 1
setting kernel/keys/root_maxkeys 1000000
setting kernel/keys/root_maxbytes 25000000

# Last: mounts that pods make are the node's, and the other way round.
mount --make-rshared /
: >"$folder/ready"
exec sleep infinity
