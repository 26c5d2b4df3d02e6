#!/usr/bin/env bash
# Every machine: names of the others, Debian packages that Sluice runs, and the command itself out of the image.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh" 2>/dev/null || . /vagrant/deploy/vagrant/plan.sh
apt-get -q update >/dev/null
packages nftables iproute2 iptables ca-certificates curl procps tcpdump libstdc++6
# Debian's own ruleset flushes everything at its start: not beside Sluice.
if [ -d /run/systemd/system ]; then systemctl --quiet disable --now nftables.service 2>/dev/null || true; fi

grep -q '# sluice' /etc/hosts || {
  for name in "${!MACHINES[@]}"; do echo "${MACHINES[$name]} $name # sluice"; done
  for name in "${GATEWAYS[@]}"; do echo "10.0.0.3$(($(printf '%d' "'${name#gw-}") - 96)) $name # sluice"; done
} >>/etc/hosts

# Node.js and Sluice are the image's: Debian 12 has no Node.js that is new enough.
image=$(ls "$tree"/build/sluice-*.oci.tar 2>/dev/null | tail -n 1)
[ -n "$image" ] || die "no image in build/: deploy/image/build.sh makes it"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -xf "$image" -C "$work"
layer=$(sed 's/.*"Layers":\["\([^"]*\)".*/\1/' "$work/manifest.json")
rm -rf /opt/sluice
tar -xzf "$work/$layer" -C / --no-same-owner ./opt/sluice ./usr/local/bin/node ./usr/local/bin/sluice
version=$(PATH=/usr/local/bin:$PATH sluice --version)
say "sluice $version"
