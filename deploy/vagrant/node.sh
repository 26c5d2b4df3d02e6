#!/usr/bin/env bash
# A node: its certificate, then kubeadm join; `sluice node` comes with the DaemonSet. Not run where it was written.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh" 2>/dev/null || . /vagrant/deploy/vagrant/plan.sh
name=${1:?name of this machine}
install -d -m 700 /etc/sluice/certs
install -m 600 "$prepared/$name"/{ca.crt,tls.crt,tls.key} /etc/sluice/certs/
. "$tree/deploy/vagrant/kubernetes.sh"
# The network between these machines is theirs alone: the token is enough.
[ -f /etc/kubernetes/kubelet.conf ] ||
  kubeadm join "$CONTROL_PLANE:6443" --token "$(cat "$prepared/token")" --discovery-token-unsafe-skip-ca-verification
