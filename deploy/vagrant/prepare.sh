#!/usr/bin/env bash
# On the machine that runs Vagrant, once: certificates of the controller and of every node and gateway, and the token by
# which nodes join, in build/vagrant/. Needs a compiled tree (setup.sh) and the image (deploy/image/build.sh). What is
# there already stays.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh"
ls "$tree"/build/sluice-*.oci.tar >/dev/null 2>&1 || die "no image in build/: run deploy/image/build.sh first"
mkdir -p "$prepared"
umask 077
[ -f "$prepared/ca/ca.key" ] || "$tree/bin/sluice" certs ca --dir "$prepared/ca"
issue() { # ROLE NAME ADDRESS…
  local role=$1 name=$2 flags=()
  shift 2
  for address in "$@"; do flags+=(--address "$address"); done
  [ -f "$prepared/$name/tls.crt" ] || "$tree/bin/sluice" certs issue "$role" "$name" --dir "$prepared/ca" --out "$prepared/$name" "${flags[@]}"
}
issue controller controller "$CONTROL_PLANE"
for name in "${!NODES[@]}"; do issue node "$name"; done
for name in "${GATEWAYS[@]}"; do issue gateway "$name"; done
[ -f "$prepared/token" ] || { # as kubeadm wants it
  random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
  echo "$(random 3).$(random 8)" >"$prepared/token"
}
say "ready: vagrant up"
