# Makes an instance ready for containerd and the kubelet, whatever started it: nothing here needs systemd. It runs as
# root in the instance's own mount namespace and may run again. Environment: TMPFS_SIZE.
set -eu

# containerd's overlay mounts need an upper file system that is no overlay itself, which an instance's root is; and the
# kubelet must be able to tell how full it is.
for d in /var/lib/containerd /var/lib/kubelet /var/log; do
	mkdir -p "$d"
	grep -q "^branchline-node $d " /proc/mounts || mount -t tmpfs -o "size=$TMPFS_SIZE,mode=755" branchline-node "$d"
done
mkdir -p /run/containerd /var/log/pods /var/log/containers /etc/cni/net.d /opt/cni/bin

echo 1 >/proc/sys/net/ipv4/ip_forward
