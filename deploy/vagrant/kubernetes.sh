# shellcheck shell=bash
# Of the control plane and the nodes (sourced after plan.sh): containerd and CNI plugins from Debian, kubeadm and kubelet
# from pkgs.k8s.io, pods on a bridge `cni0`, routes by hand between machines. Not run where it was written.
version=v1.31
modprobe overlay
modprobe br_netfilter
printf 'overlay\nbr_netfilter\n' >/etc/modules-load.d/kubernetes.conf
printf 'net.ipv4.ip_forward=1\nnet.bridge.bridge-nf-call-iptables=1\n' >/etc/sysctl.d/60-kubernetes.conf
sysctl -q --system
swapoff -a
sed -i '/\sswap\s/d' /etc/fstab

packages containerd containernetworking-plugins gpg
install -d /etc/containerd /etc/apt/keyrings
containerd config default | sed -e 's/SystemdCgroup = false/SystemdCgroup = true/' -e 's|bin_dir = .*|bin_dir = "/usr/lib/cni"|' >/etc/containerd/config.toml
systemctl restart containerd
[ -s /etc/apt/keyrings/kubernetes.gpg ] ||
  curl -fsSL "https://pkgs.k8s.io/core:/stable:/$version/deb/Release.key" | gpg --dearmor -o /etc/apt/keyrings/kubernetes.gpg
echo "deb [signed-by=/etc/apt/keyrings/kubernetes.gpg] https://pkgs.k8s.io/core:/stable:/$version/deb/ /" >/etc/apt/sources.list.d/kubernetes.list
apt-get -q update >/dev/null
packages kubelet kubeadm kubectl
echo "KUBELET_EXTRA_ARGS=--node-ip=${MACHINES[$name]}" >/etc/default/kubelet
ctr -n k8s.io images import "$(ls "$tree"/build/sluice-*.oci.tar | tail -n 1)" >/dev/null

install -d /etc/cni/net.d
cat >/etc/cni/net.d/10-bridge.conflist <<EOF
{"cniVersion":"1.0.0","name":"pods","plugins":[
  {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
   "ipam":{"type":"host-local","ranges":[[{"subnet":"${POD_CIDRS[$name]}"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}
EOF
# What leaves the cluster unsteered has the node's address, as with most CNIs.
cat >/usr/local/sbin/pod-network <<EOF
#!/bin/sh
$(for other in "${!POD_CIDRS[@]}"; do [ "$other" = "$name" ] || echo "ip route replace ${POD_CIDRS[$other]} via ${MACHINES[$other]}"; done)
iptables-nft -t nat -C POSTROUTING -s ${POD_CIDRS[$name]} ! -d 10.0.0.0/8 -o eth0 -j MASQUERADE 2>/dev/null ||
  iptables-nft -t nat -A POSTROUTING -s ${POD_CIDRS[$name]} ! -d 10.0.0.0/8 -o eth0 -j MASQUERADE
EOF
chmod 755 /usr/local/sbin/pod-network
cat >/etc/systemd/system/pod-network.service <<'EOF'
[Unit]
After=network-online.target
Wants=network-online.target
Before=kubelet.service
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/pod-network
[Install]
WantedBy=multi-user.target
EOF
service pod-network.service
