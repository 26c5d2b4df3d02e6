#!/usr/bin/env bash
# Makes a fresh Debian 12 with Node ready to run and test Sluice: Debian packages, npm packages, tap's plugins, compile.
# Each step looks first whether it is needed, says what it does, and is skipped without a word otherwise, so that a
# second run takes under a second or two. Nothing is configured outside this tree, and no service is started.
# `--tests`: also what only tests need: clients, and an API server of Kubernetes, in a cache of its own.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root (network namespaces, nftables, packages): run it with sudo"
[ -r /etc/debian_version ] && command -v apt-get >/dev/null ||
  die "this is no Debian: setup.sh knows Debian 12 (and what descends from it) only"
command -v node >/dev/null && command -v npm >/dev/null || die "Node 20.18.1 or newer is needed, with npm; none is in PATH"
node -e 'const [a,b,c]=process.versions.node.split(".").map(Number);process.exit(a*1e6+b*1e3+c>=20018001?0:1)' ||
  die "Node 20.18.1 or newer is needed; this is $(node --version)"

# Two setups at once (tests started twice) wait for each other. On an inherited file descriptor, gone with this process.
exec 9>.setup-lock
flock 9

# --- Debian packages ------------------------------------------------------------------------------------------------
packages=(nftables iptables iproute2 iputils-ping conntrack ethtool iperf3 socat tcpdump curl dnsmasq-base openssh-server
  netcat-openbsd procps ca-certificates openssl python3)
# Clients that tests let through the lab, and the other side of the election: nothing else needs them.
[ "${1-}" != --tests ] || packages+=(bind9-dnsutils postgresql-client keepalived)
missing=()
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' "${packages[@]}" 2>/dev/null || true)
for package in "${packages[@]}"; do
  grep -qx "ii  $package" <<<"$installed" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The lab runs its own sshd in a namespace, tests their own keepalived; installing must not start one on this machine.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  log=$(mktemp)
  { apt-get -q update && apt-get -q -y --no-install-recommends install "${missing[@]}"; } >"$log" 2>&1 9>&- || {
    tail -n 20 "$log" >&2
    die "apt-get failed (above; all of it in $log)"
  }
  rm -f "$log"
  for package in "${missing[@]}"; do
    [ -d /run/systemd/system ] || continue
    case $package in
      openssh-server) systemctl --quiet disable ssh.service ssh.socket 2>/dev/null || true ;;
      keepalived) systemctl --quiet disable keepalived.service 2>/dev/null || true ;;
    esac
  done
fi

# --- npm packages ---------------------------------------------------------------------------------------------------
# In step: what npm wrote down as installed is what the lock file says (optional ones, for other machines, may lack).
in_step() {
  [ -f node_modules/.package-lock.json ] && node -e '
    const { readFileSync } = require("node:fs");
    const read = (file) => JSON.parse(readFileSync(file, "utf8")).packages;
    const want = read("package-lock.json"), have = read("node_modules/.package-lock.json");
    const differs = Object.entries(want).some(([path, p]) => path !== "" && !p.link &&
      (have[path] ? have[path].version !== p.version || have[path].integrity !== p.integrity : !p.optional));
    process.exit(differs ? 1 : 0);'
}
if ! in_step; then
  say "installing npm packages (npm ci)"
  npm ci --no-audit --no-fund --loglevel=error >&2 9>&- || die "npm ci failed"
  rm -f .tap/.setup-built
fi

# --- tap's plugins --------------------------------------------------------------------------------------------------
# tap's TypeScript plugin is off in .taprc (tests run compiled), so tap has to build its plugin set once; and once more
# where the tree has been moved or copied, since what it builds holds absolute links.
if [ "$(cat .tap/.setup-built 2>/dev/null)" != "$PWD" ] || [ .taprc -nt .tap/.setup-built ]; then
  say "building tap's plugin set (once, some ten seconds)"
  log=$(mktemp)
  npx --no-install tap build >"$log" 2>&1 9>&- || { cat "$log" >&2; die "tap build failed"; }
  rm -f "$log"
  printf '%s\n' "$PWD" >.tap/.setup-built
fi

# --- compile --------------------------------------------------------------------------------------------------------
rooms=(api policy wire kernel daemon ha gateway node controller console cli lab bench test)
sources() { find "${rooms[@]}" -name '*.ts' -printf '%p %s %T@\n' 2>/dev/null | sort; }
state=$({ sources; cat tsconfig.json package-lock.json; } | sha256sum)
if [ "$(cat dist/.setup-state 2>/dev/null)" != "$state" ]; then
  say "compiling"
  rm -f dist/.setup-state
  npx --no-install tsc -p . 9>&- || die "the sources do not compile (above)"
  # A test whose source is gone must not run on.
  find dist -name '*.js' -printf '%P\n' | while read -r file; do
    [ -f "${file%.js}.ts" ] || rm -f "dist/$file" "dist/$file.map"
  done
  printf '%s\n' "$state" >dist/.setup-state
fi

# --- an API server for tests ----------------------------------------------------------------------------------------
[ "${1-}" != --tests ] || bash test/kube/build.sh 9>&-
