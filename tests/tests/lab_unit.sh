# The daemon under the mounts and capabilities of its unit, on a host that shares its mounts as those with
# systemd do. lab_unit.rs runs this in namespaces of its own, which end with it.
#
# Arguments: folder of the programs, an empty folder, propagation of mounts into the unit (`slave`, as
# systemd has it, or `private`), the unit's capabilities as setpriv(1) writes them, its arguments for
# fabric-node. Says one line for each fact.
set -eu
bin=$1 dir=$2 propagation=$3 capabilities=$4
shift 4

# The host. Nothing of the real /run is seen or touched.
mount -t tmpfs none /run
mount --make-rshared /
mkdir -p /run/netns /run/fabric "$dir/state" "$dir/nodes.d"
ip link set lo up
ip address add 192.0.2.1/32 dev lo
"$bin/fabric" pki init --dir "$dir/pki" --name unit.example -q
"$bin/fabric" pki issue worker-1 --dir "$dir/pki" --out "$dir/node" -q
cat > "$dir/nodes.d/cluster.toml" <<END
[[node]]
id = "worker-1"
underlay = ["192.0.2.1:7946"]
pod_cidrs = ["10.244.1.0/24", "fd00:244:1::/64"]
END
cat > "$dir/node.toml" <<END
node = "worker-1"
state_dir = "$dir/state"
[source]
kind = "file"
path = "$dir/nodes.d"
[identity]
ca = "$dir/node/ca.pem"
certificate = "$dir/node/worker-1.pem"
key = "$dir/node/worker-1-key.pem"
END

# The unit: what it does not own is read-only, but for the API file systems (ProtectSystem=strict).
unit() {
    mount --make-rshared /
    for own in "$dir/state" /run/fabric; do mount --bind "$own" "$own"; done
    while read -r _ _ _ _ mount _; do
        case $mount in
            /dev | /dev/* | /proc | /proc/* | /sys | /sys/* | "$dir/state" | /run/fabric) ;;
            # Those hidden beneath what was mounted later refuse.
            *) mount -o remount,bind,ro "$mount" 2> /dev/null || echo "$mount is left" ;;
        esac
    done < /proc/self/mountinfo
    umask 0077
    exec setpriv --no-new-privs --inh-caps -all --bounding-set "-all,$capabilities" "$bin/fabric-node" "$@"
}
export -f unit
export bin dir capabilities FABRIC_CONFIG="$dir/node.toml"
unshare --mount --propagation "$propagation" bash -euc 'unit "$@"' unit "$@" 2> "$dir/log" &
daemon=$!
"$bin/fabric" status --wait --wait-duration 10s -q > /dev/null || { cat "$dir/log" >&2; exit 1; }
sed -n 's/^CapBnd:\t/bounding /p; s/^CapEff:\t/effective /p; s/^NoNewPrivs:\t/no-new-privs /p' \
    "/proc/$daemon/status"
if nsenter --target "$daemon" --mount touch /etc/unit-wrote 2> "$dir/touch"; then echo "the unit wrote below /etc"; fi

call() {
    CNI_COMMAND=$1 CNI_PATH=$bin CNI_CONTAINERID=$2 CNI_NETNS=${3-/run/netns/$2} CNI_IFNAME=eth0 "$bin/fabric-cni" <<< \
        "{\"cniVersion\":\"1.1.0\",\"name\":\"fabric\",\"type\":\"fabric-cni\",\"stateDir\":\"$dir/state\"}"
}
pinned() { grep -c "/run/netns/$1 " "/proc/$daemon/mountinfo" || true; }

# Namespaces that runtimes make after the daemon's start: as `ip netns` does, and as containerd does.
ip netns add by-ip
touch /run/netns/by-bind
unshare --net=/run/netns/by-bind true
for name in by-ip by-bind; do
    if call ADD "$name" > "$dir/answer"; then
        echo "$name ADD ok"
    else
        echo "$name ADD $(cat "$dir/answer")"
        continue
    fi
    echo "$name addresses $(nsenter --net="/run/netns/$name" ip -oneline address show dev eth0 | grep -c global)"
    echo "$name held open $(find "/proc/$daemon/fd" -lname 'net:*' | wc -l)"
    echo "$name mounts seen by the unit $(pinned "$name")"
    # The runtime takes the namespace away while the pod is attached, then says DEL.
    umount "/run/netns/$name" && rm "/run/netns/$name" && echo "$name unmounted and removed"
    echo "$name mounts left in the unit $(pinned "$name")"
    call DEL "$name" && echo "$name DEL ok"
done

# As a runtime does that names a namespace by a process of the pod.
unshare --net sleep 60 &
pod=$!
until [ "$(readlink "/proc/$pod/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
if call ADD by-process "/proc/$pod/ns/net" > "$dir/answer"; then
    echo "by-process ADD ok"
else
    echo "by-process ADD $(cat "$dir/answer")"
fi
call DEL by-process "/proc/$pod/ns/net" && echo "by-process DEL ok"
kill "$pod"
"$bin/fabric" pods 2>&1
kill "$daemon"
wait "$daemon" && echo "the unit ended well"
