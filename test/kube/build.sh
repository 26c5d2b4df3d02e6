#!/usr/bin/env bash
# Makes what the tests of test/api and test/kube run against: etcd, kubectl and programs of Kubernetes 1.20 (arguments;
# default: kube-apiserver), since no registry has an API server for machines without the internet. All of it comes from
# Debian 12: etcd and kubectl are its packages, unpacked and not installed; Kubernetes is built with Debian's Go from
# Debian's source package, which holds all that it depends on. Nothing of this machine is changed but one folder,
# SLUICE_KUBE_HOME (default: ~/.cache/sluice/kube): programs in its `bin`, 110 MB; 2 GB more while building.
# What is there is not made again. With KUBEBUILDER_ASSETS (envtest's convention), the programs of that folder are taken.
set -euo pipefail

say() { printf 'kube: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

programs=("${@:-kube-apiserver}")
if [ -n "${KUBEBUILDER_ASSETS-}" ]; then
  for program in etcd kubectl "${programs[@]}"; do
    [ -x "$KUBEBUILDER_ASSETS/$program" ] || die "KUBEBUILDER_ASSETS is set, and $KUBEBUILDER_ASSETS/$program is no program"
  done
  exit 0
fi

home=${SLUICE_KUBE_HOME:-$HOME/.cache/sluice/kube}
bin=$home/bin work=$home/build
missing() { for program in "$@"; do [ -x "$bin/$program" ] || echo "$program"; done; }
[ -n "$(missing etcd kubectl "${programs[@]}")" ] || exit 0
mkdir -p "$bin" "$work"

# Two of them at once: the second finds what the first has made.
exec 9>"$home/lock"
flock 9
mapfile -t debian < <(missing etcd kubectl)
mapfile -t kubernetes < <(missing "${programs[@]}")
[ $((${#debian[@]} + ${#kubernetes[@]})) -gt 0 ] || exit 0
log=$work/log
: >"$log"
# Runs a command whose output only matters if it fails.
quietly() { "$@" >>"$log" 2>&1 9>&- || { tail -n 20 "$log" >&2; die "failed: $* (above; all of it in $log)"; }; }

# --- Debian's packages ----------------------------------------------------------------------------------------------
# With lists of their own: this machine's apt may know no source packages, or another release. Of its mirror, if it has one.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Codename: bookworm' 'Label: Debian' | sed -n 1p)
mirror=${mirror:-http://deb.debian.org/debian}
apt=$work/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
for type in deb deb-src; do
  echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main"
done >"$apt/sources.list"
debian() {
  quietly apt-get -q -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root \
    -o APT::Update::Error-Mode=any -o Acquire::Retries=3 "$@"
}
# Unpacks packages into a folder below $work.
unpacked() {
  local into=$work/$1 package
  shift
  rm -rf "$into"
  mkdir -p "$into/debs"
  (cd "$into/debs" && debian download "$@")
  for package in "$into"/debs/*.deb; do quietly dpkg-deb -x "$package" "$into"; done
}
# Half a program is none.
install_program() { cp "$1" "$bin/.$2" && chmod 755 "$bin/.$2" && mv "$bin/.$2" "$bin/$2"; }

say "reading Debian's lists of packages ($mirror)"
debian update
if [ ${#debian[@]} -gt 0 ]; then
  say "unpacking etcd and kubectl"
  unpacked programs etcd-server kubernetes-client
  install_program "$work/programs/usr/bin/etcd" etcd
  install_program "$work/programs/usr/bin/kubectl" kubectl
fi

# --- Kubernetes -----------------------------------------------------------------------------------------------------
if [ ${#kubernetes[@]} -gt 0 ]; then
  say "unpacking Kubernetes and Go"
  unpacked go golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
  rm -rf "$work/gopath" "$work/source"
  mkdir -p "$work/gopath/src/k8s.io" "$work/source"
  (cd "$work/source" && debian source --download-only kubernetes)
  tree=$work/gopath/src/k8s.io/kubernetes
  mkdir "$tree"
  quietly tar -xzf "$work"/source/kubernetes_*.orig.tar.gz --strip-components=1 -C "$tree"
  # Kubernetes' own copy of reflect2 crashes with Go 1.19 when the first custom resource is written; Debian's does not.
  reflect2=vendor/github.com/modern-go/reflect2
  rm -rf "${tree:?}/$reflect2"
  cp -r "$work/go/usr/share/gocode/src/github.com/modern-go/reflect2" "$tree/$reflect2"
  rm -f "$tree/$reflect2"/*_test.go
  cd "$tree"
  export GOROOT=$work/go/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/gocache GO111MODULE=off CGO_ENABLED=0 GOFLAGS=
  PATH=$GOROOT/bin:$PATH

  say "generating what Debian's source leaves out (half a minute)"
  quietly go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  described=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg cmd staging/src/k8s.io vendor/k8s.io |
    grep -v -e _test.go -e /code-generator/ -e /sample-apiserver/ -e /kube-openapi/ -e /gengo/ -e zz_generated |
    xargs -n 1 dirname | sed 's,^staging/src/,vendor/,; s,^,k8s.io/kubernetes/,' | sort -u | paste -sd ,)
  quietly "$work/openapi-gen" --logtostderr -i "$described" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations"

  # A program that does not know its version is refused by clients.
  flags="-s -w"
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    package=k8s.io/kubernetes/vendor/$package
    flags+=" -X $package.gitVersion=v1.20.2 -X $package.gitMajor=1 -X $package.gitMinor=20 -X $package.gitTreeState=clean"
    flags+=" -X $package.gitCommit=debian -X $package.buildDate=2021-01-13T00:00:00Z"
  done
  for program in "${kubernetes[@]}"; do
    say "building $program (the first takes three minutes on two cores)"
    quietly go build -tags "providerless dockerless" -ldflags "$flags" -o "$work/$program" "./cmd/$program"
    install_program "$work/$program" "$program"
  done
fi
cd /
# Go writes some of its files without permission to remove them.
chmod -R u+w "$work"
rm -rf "$work"
say "ready in $bin"
