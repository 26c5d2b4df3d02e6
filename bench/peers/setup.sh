#!/usr/bin/env bash
# Installs what the benchmarks compare Sluice with, from Debian, and starts none of it: nginx with its stream module,
# HAProxy, squid with OpenSSL, and Suricata (of bookworm-backports: bookworm itself has none). A package that cannot be had is
# said and left out: the report then lists its subject with the reason. A second run takes no time.
set -uo pipefail

say() { printf 'bench/peers/setup: %s\n' "$*" >&2; }
have() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'; }

missing=()
for package in iptables nginx libnginx-mod-stream haproxy squid-openssl suricata; do
  have "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

export DEBIAN_FRONTEND=noninteractive
# Nothing that is installed here may start by itself.
policy=/usr/sbin/policy-rc.d
made=()
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made+=("$policy")
fi
# Backports are asked for this once; the machine's own sources stay as they are.
parts=$(mktemp -d)
cp -r /etc/apt/sources.list.d/. "$parts" 2>/dev/null
grep -rqs 'bookworm-backports' /etc/apt/sources.list "$parts" ||
  echo 'deb http://deb.debian.org/debian bookworm-backports main' >"$parts/bench-backports.list"
made+=("$parts")
trap 'rm -rf "${made[@]}"' EXIT
apt=(apt-get -q -y -o "Dir::Etc::sourceparts=$parts")
log=$(mktemp)
made+=("$log")
"${apt[@]}" update >"$log" 2>&1 || say "apt-get update: $(tail -n 1 "$log")"
for package in "${missing[@]}"; do
  say "installing $package"
  from=()
  [ "$package" != suricata ] || from=(-t bookworm-backports)
  "${apt[@]}" "${from[@]}" --no-install-recommends install "$package" >"$log" 2>&1 ||
    say "$package could not be installed: $(grep -m 1 '^E:' "$log")"
  [ -d /run/systemd/system ] || continue
  case $package in
    nginx | haproxy | suricata) systemctl --quiet disable "$package.service" 2>/dev/null ;;
    squid-openssl) systemctl --quiet disable squid.service 2>/dev/null ;;
  esac
done
exit 0
