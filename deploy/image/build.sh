#!/usr/bin/env bash
# Makes a container image of Sluice without Docker, as root on Debian: Debian 12 (debootstrap, minbase), the Node.js of this
# machine, the compiled tree and its npm packages, packed by hand as one layer. The archive is an OCI image layout that
# also has docker's manifest.json: `ctr images import`, `podman load`, `skopeo copy oci-archive:…` and `docker load` read it.
#
#   deploy/image/build.sh [OUT.tar [NAME:TAG]]       default: build/sluice-VERSION.oci.tar sluice:VERSION
#
# Two builds of the same tree, Node and Debian packages are the same bytes, so their digest is a name (the last line
# printed): no times, no owners, no order of a directory. SOURCE_DATE_EPOCH: default, the commit's time.
# NODE: the Node.js to put in (default: the one in PATH). ROOT: a folder to build in and keep (default: a temporary one);
# a Debian that is there already is used again. SUITE, MIRROR: as debootstrap's.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)
say() { printf 'image: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root (debootstrap, chroot)"
command -v debootstrap >/dev/null || die "debootstrap is not installed (apt-get install debootstrap)"
[ -f "$here/dist/cli/main.js" ] || die "not compiled: run setup.sh first"
version=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' "$here/package.json")
out=${1:-$here/build/sluice-$version.oci.tar} name=${2:-sluice:$version}
node=$(readlink -f "${NODE:-$(command -v node)}")
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=${ROOT:-$work/root}
export LC_ALL=C

# What sluice node and gateway run, and certificates of CAs, by which lists are fetched.
packages=nftables,iproute2,iptables,ca-certificates,libstdc++6
if [ ! -e "$root/etc/debian_version" ]; then
  say "Debian ${SUITE:=bookworm} (debootstrap)"
  log=$work/debootstrap.log
  debootstrap --variant=minbase --include=$packages "${SUITE:-bookworm}" "$root" ${MIRROR:+"$MIRROR"} >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "debootstrap failed"; }
fi

say "Sluice $version, Node.js $("$node" --version)"
app=$root/opt/sluice
rm -rf "$app"
mkdir -p "$app/dist"
cp "$here/package.json" "$here/package-lock.json" "$here/LICENSE" "$app/"
cp -r "$here/bin" "$app/"
# No tests, no benchmarks. The lab stays: the command imports its verbs.
(cd "$here/dist" && find . -name '*.js' ! -path './test/*' ! -path './bench/*' -print0 | sort -z | xargs -0 cp --parents -t "$app/dist")
# Packages of development stay out; nothing of theirs is run at their installation.
(cd "$app" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >&2)
rm -f "$app/node_modules/.package-lock.json"
case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) die "no image for $(uname -m)" ;; esac
install -m 755 "$node" "$root/usr/local/bin/node"
ln -sf /opt/sluice/bin/sluice "$root/usr/local/bin/sluice"
# Whom the controller runs as; sluice node is root with one capability (docs/kubernetes.md).
grep -q '^sluice:' "$root/etc/passwd" || echo 'sluice:x:65532:65532:Sluice:/:/usr/sbin/nologin' >>"$root/etc/passwd"
grep -q '^sluice:' "$root/etc/group" || echo 'sluice:x:65532:' >>"$root/etc/group"
mkdir -p "$root/etc/sluice/certs" "$root/var/lib/sluice" "$root/host/proc/sys/net"

said=$(PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /usr/local/bin/sluice --version)
[ "$said" = "$version" ] || die "in a chroot, sluice --version said: $said"
# What the build left, what differs each time, and what nobody reads in a container.
rm -rf "$root"/var/cache/{apt,debconf,ldconfig,man}/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/* "$root"/run/* \
  "$root"/usr/share/{doc,man,info,locale,lintian}/* "$root"/{debootstrap,root/.npm,var/lib/dpkg/available} "$root"/etc/{machine-id,resolv.conf,hostname,passwd-,group-,shadow-,gshadow-}
find "$root" \( -name '*.dpkg-old' -o -name '*-old' -path '*/var/lib/dpkg/*' -o -name '*-old' -path '*/var/cache/*' -o -name __pycache__ \) -prune -exec rm -rf {} +

say "packing"
blobs=$work/oci/blobs/sha256
mkdir -p "$blobs" "$(dirname "$out")"
pack() { tar --create --format=gnu --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner "$@"; }
digest() { sha256sum "$1" | cut -d' ' -f1; }
# Each blob goes by its digest; prints it.
blob() { local sum; sum=$(digest "$1"); mv "$1" "$blobs/$sum"; echo "$sum"; }
pack --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -C "$root" -f "$work/layer.tar" .
diff=$(digest "$work/layer.tar")
gzip -n -6 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz")
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
labels="\"org.opencontainers.image.title\":\"sluice\",\"org.opencontainers.image.version\":\"$version\",\"org.opencontainers.image.licenses\":\"Apache-2.0\""
cat >"$work/config" <<EOF
{"created":"$created","architecture":"$arch","os":"linux","config":{"User":"65532:65532","Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","NODE_ENV=production"],"Entrypoint":["/usr/local/bin/sluice"],"Cmd":["--help"],"WorkingDir":"/","Labels":{$labels}},"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},"history":[{"created":"$created","created_by":"deploy/image/build.sh"}]}
EOF
config_size=$(stat -c %s "$work/config") config=$(blob "$work/config")
cat >"$work/manifest" <<EOF
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_size},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer","size":$(stat -c %s "$blobs/$layer")}]}
EOF
manifest_size=$(stat -c %s "$work/manifest") manifest=$(blob "$work/manifest")
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
cat >"$work/oci/index.json" <<EOF
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$manifest_size,"annotations":{"io.containerd.image.name":"docker.io/library/$name","org.opencontainers.image.ref.name":"${name##*:}"}}]}
EOF
echo "[{\"Config\":\"blobs/sha256/$config\",\"RepoTags\":[\"$name\"],\"Layers\":[\"blobs/sha256/$layer\"]}]" >"$work/oci/manifest.json"
pack -C "$work/oci" -f "$out" .
say "$out: $name, $(($(stat -c %s "$out") / 1048576)) MB"
echo "sha256:$manifest"
