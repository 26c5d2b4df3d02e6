#!/usr/bin/env bash
# Makes what `npm run test:cluster` needs beside setup.sh: programs of Kubernetes and etcd (test/kube/build.sh), containerd,
# runc and CNI plugins out of Debian's packages (unpacked, not installed), the image of the pods that send, and Sluice's own
# image by its own script. As root on Debian 12 with debootstrap. All of it is in SLUICE_KUBE_HOME (default:
# ~/.cache/sluice/kube); what is there is not made again, but for Sluice's image.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
home=${SLUICE_KUBE_HOME:-$HOME/.cache/sluice/kube}
say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v debootstrap >/dev/null || die "debootstrap is not installed (apt-get install debootstrap)"
# Assets of envtest have no kubelet.
env -u KUBEBUILDER_ASSETS bash "$here/../kube/build.sh" \
  kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy

work=$home/cluster-build
mkdir -p "$home/images" "$work"
trap 'rm -rf "$work"' EXIT
export LC_ALL=C
quietly() { "$@" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "failed: $*"; }; }

if [ ! -d "$home/runtime" ]; then
  say "unpacking containerd, runc and CNI plugins"
  quietly apt-get -q update
  mkdir "$work/debs" "$work/runtime"
  (cd "$work/debs" && quietly apt-get -q -o APT::Sandbox::User=root download containerd runc containernetworking-plugins)
  for package in "$work"/debs/*.deb; do quietly dpkg-deb -x "$package" "$work/runtime"; done
  mv "$work/runtime" "$home/runtime"
fi

# What holds the network of a pod is of the same image: it only has to stay.
if [ ! -f "$home/images/pods.tar" ]; then
  say "making the image of the pods (debootstrap)"
  quietly debootstrap --variant=minbase --include=curl,dnsmasq-base,iputils-ping,netcat-openbsd bookworm "$work/root"
  rm -rf "$work/root"/var/cache/apt/* "$work/root"/var/lib/apt/lists/*
  tar --create --numeric-owner --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -C "$work/root" -f "$work/layer.tar" .
  sum=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  echo "{\"architecture\":\"$(dpkg --print-architecture)\",\"os\":\"linux\",\"config\":{\"Cmd\":[\"sleep\",\"infinity\"],\"Env\":[\"PATH=/usr/sbin:/usr/bin:/sbin:/bin\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$sum\"]}}" >"$work/config.json"
  echo '[{"Config":"config.json","RepoTags":["docker.io/library/pods:1"],"Layers":["layer.tar"]}]' >"$work/manifest.json"
  tar --create -C "$work" -f "$home/images/pods.part" manifest.json config.json layer.tar
  mv "$home/images/pods.part" "$home/images/pods.tar"
fi

ROOT=$home/image-root "$here/../../deploy/image/build.sh" "$home/images/sluice.tar" >/dev/null
