#!/usr/bin/env bash
# A gateway: user, unit, certificates and flags; inside is eth1, outside eth2, both named alike on every gateway of the pool.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh" 2>/dev/null || . /vagrant/deploy/vagrant/plan.sh
name=${1:?name of this machine}
install -D -m 644 "$tree/deploy/systemd/sluice.sysusers" /usr/lib/sysusers.d/sluice.conf
systemd-sysusers /usr/lib/sysusers.d/sluice.conf
install -m 644 "$tree/deploy/systemd/sluice-gateway.service" /etc/systemd/system/
install -d -m 755 /etc/sluice
install -d -m 750 -o sluice -g sluice /etc/sluice/certs
install -m 600 -o sluice -g sluice "$prepared/$name"/{ca.crt,tls.crt,tls.key} /etc/sluice/certs/
sed -e "s|^SLUICE_NAME=.*|SLUICE_NAME=$name|" -e "s|^SLUICE_CONTROLLER=.*|SLUICE_CONTROLLER=https://$CONTROL_PLANE:$NODE_PORT|" \
  "$tree/deploy/systemd/sluice-gateway.env" >/etc/sluice/gateway.env
service sluice-gateway.service
