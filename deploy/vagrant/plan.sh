# shellcheck shell=bash disable=SC2034
# Addresses and names of the machines, for the scripts beside this (sourced). The Vagrantfile has the addresses of eth1
# and eth2 too; manifests.yaml what the cluster is told of them.
CONTROL_PLANE=10.0.0.10
CONTROLLER_PORT=7790
# The Service's, from the cluster's range: nodes and gateways both reach the controller by the control plane's address.
NODE_PORT=30790
declare -A NODES=([node-a]=10.0.0.21 [node-b]=10.0.0.22)
# Of each node's pods: the bridge cni0, and routes by hand between machines.
declare -A POD_CIDRS=([cp-1]=10.244.0.0/24 [node-a]=10.244.1.0/24 [node-b]=10.244.2.0/24)
declare -A MACHINES=([cp-1]=10.0.0.10 [node-a]=10.0.0.21 [node-b]=10.0.0.22)
GATEWAYS=(gw-a gw-b gw-c)
POD_RANGE=10.244.0.0/16
SERVICE_RANGE=10.96.0.0/16
ROUTER=203.0.113.1
# What the firewall upstream lets through, and the server behind it.
EGRESS_RANGE=203.0.113.96/27
SERVER=198.51.100.80

# Where provisioning is: /vagrant on a machine.
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
prepared=$tree/build/vagrant
say() { printf 'vagrant: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
# Enabled everywhere, started where systemd runs (not in the bare root where the scripts are tried).
service() {
  systemctl --quiet enable "$@"
  if [ -d /run/systemd/system ]; then systemctl restart "$@"; else say "no systemd here: $* is enabled, not started"; fi
}
packages() { DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" >/dev/null; }
