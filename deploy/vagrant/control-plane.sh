#!/usr/bin/env bash
# The control plane: kubeadm, the CRDs, the manifests with a controller that gateways reach by a port of this machine.
# Not run where it was written.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh" 2>/dev/null || . /vagrant/deploy/vagrant/plan.sh
name=${1:?name of this machine}
. "$tree/deploy/vagrant/kubernetes.sh"
export KUBECONFIG=/etc/kubernetes/admin.conf
[ -f "$KUBECONFIG" ] || kubeadm init --apiserver-advertise-address "$CONTROL_PLANE" --pod-network-cidr "$POD_RANGE" \
  --service-cidr "$SERVICE_RANGE" --token "$(cat "$prepared/token")" --token-ttl 24h
kubectl apply --server-side -f "$tree/deploy/crds"
kubectl apply --server-side -f "$tree/deploy/manifests"
kubectl -n sluice-system create secret generic sluice-controller-certs --dry-run=client -o yaml \
  --from-file="$prepared/controller/ca.crt" --from-file="$prepared/controller/tls.crt" --from-file="$prepared/controller/tls.key" |
  kubectl apply -f -
kubectl -n sluice-system patch service sluice-controller --type merge \
  -p "{\"spec\":{\"type\":\"NodePort\",\"ports\":[{\"name\":\"plan-stream\",\"port\":$CONTROLLER_PORT,\"targetPort\":\"plan-stream\",\"nodePort\":$NODE_PORT}]}}"
kubectl apply --server-side -f "$tree/deploy/vagrant/manifests.yaml"
