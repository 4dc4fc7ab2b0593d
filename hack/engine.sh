#!/usr/bin/env bash
# Builds a current Docker engine for the tests into DIR: dockerd, docker-proxy, containerd, its shim and runc. Takes minutes
# the first time; what is there already in the version below is kept.
# Usage: hack/engine.sh DIR; needs Go, and root where Debian's gcc, pkg-config and libseccomp-dev have to be installed.
set -euo pipefail

mkdir -p "${1:?usage: hack/engine.sh DIR}"
# Whatever flags are set for this repository, the programs are the same.
export GOBIN=$(cd "$1" && pwd) GOFLAGS=-trimpath CGO_ENABLED=0

# install PACKAGE VERSION [FLAG...] puts a program into DIR.
install() {
	local package=$1 version=$2
	shift 2
	if ! go version -m "$GOBIN/${package##*/}" 2>/dev/null | grep -q $'^\tmod\t.*\t'"$version"$'\t'; then
		echo "building ${package##*/} $version"
		go install "$@" "$package@$version"
	fi
}

if ! { command -v gcc && pkg-config --exists libseccomp; } >/dev/null; then
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev pkg-config libseccomp-dev >/dev/null
fi
# Debian's own runc is too old for this engine: it knows no time namespace.
CGO_ENABLED=1 install github.com/opencontainers/runc v1.5.2 -tags seccomp,netgo,osusergo -ldflags '-s -w -extldflags -static'
for program in containerd containerd-shim-runc-v2; do
	install github.com/containerd/containerd/v2/cmd/$program v2.4.2 -ldflags '-s -w'
done
for program in dockerd docker-proxy; do
	install github.com/moby/moby/v2/cmd/$program v2.0.0-beta.24 -ldflags '-s -w -X github.com/moby/moby/v2/dockerversion.Version=2.0.0-beta.24'
done
