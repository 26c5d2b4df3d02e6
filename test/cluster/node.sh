#!/usr/bin/env bash
# A node of the cluster: PID 1 of its own PID and mount namespace (cluster.ts starts it in its network namespace). Of the
# machine it changes nothing but files below DIR: /etc and /var are overlays there, /run is empty, and parameters of the
# kernel that a kubelet wants otherwise and that are everybody's are files of this node alone.
#
#   node.sh DIR HOME NAME ADDRESSES     DIR has containerd.toml, kubelet.yaml and kubeconfigs
set -euo pipefail
dir=$1 home=$2 name=$3 addresses=$4

mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
for path in etc var; do
  mkdir -p "$dir/$path/upper" "$dir/$path/work"
  mount -t overlay overlay -o "lowerdir=/$path,upperdir=$dir/$path/upper,workdir=$dir/$path/work" "/$path"
done
mkdir -p "$dir/sysctl"
for key in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
  file=$dir/sysctl/${key//\//.}
  cat "/proc/sys/$key" >"$file"
  mount --bind "$file" "/proc/sys/$key"
done
# As the kubelet and containerd want it; it stays in this mount namespace.
mount --make-rshared /
mkdir -p /etc/sluice
cp -r "$dir/certs" /etc/sluice/certs

export PATH=$home/bin:$home/runtime/usr/bin:$home/runtime/usr/sbin:$PATH
cd "$dir"
containerd --config containerd.toml >containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$home"/images/*.tar; do ctr -n k8s.io images import "$image" >>import.log 2>&1; done
gates=--feature-gates=IPv6DualStack=true
kubelet --config=kubelet.yaml --kubeconfig=kubelet.kubeconfig --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet-certs" \
  --hostname-override="$name" --node-ip="$addresses" "$gates" --container-runtime=remote \
  --container-runtime-endpoint=unix:///run/containerd/containerd.sock >kubelet.log 2>&1 &
# Limits of conntrack are the machine's.
kube-proxy --kubeconfig=proxy.kubeconfig --hostname-override="$name" --proxy-mode=iptables "$gates" \
  --cluster-cidr=10.244.0.0/16,fd00:244::/32 --conntrack-max-per-core=0 \
  --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 >kube-proxy.log 2>&1 &
# None of them ends by itself; if one does, the node is gone.
wait -n
