#!/usr/bin/env bash
# Installs what is missing to build Caisson, its base template and its tests.
# Debian and Ubuntu only; elsewhere it lists what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .cache/go/bin/go ] && PATH="$PWD/.cache/go/bin:$PATH"

need_go=1.26.3
strong='' plain=''
if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then strong=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '%s%s%s\n' "$strong" "$*" "$plain" >&2; }

version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

packages=()
want() { # want COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}
want make make
want git git
want curl curl
want mmdebstrap mmdebstrap
want python3 python3
want node nodejs
[ -d /usr/share/keyrings ] && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
if [ "${1:-}" = "--tests" ] || [ "${1:-}" = "--bench" ]; then
	want npm npm
	python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
	want fsck.erofs erofs-utils
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages+=(postgresql)
	want gcc gcc # the race detector needs cgo
fi
if [ "${1:-}" = "--bench" ]; then
	want bwrap bubblewrap
	want runc runc
	want dockerd docker.io
fi

# Go: any 1.21 or newer fetches the toolchain that go.mod asks for by itself.
# An older or missing one is bootstrapped below, through Debian's own go.
if ! command -v go >/dev/null 2>&1; then
	packages+=(golang-go unzip)
elif ! version_at_least "$(go env GOVERSION | sed 's/^go//')" 1.21; then
	want unzip unzip
fi

if [ ${#packages[@]} -gt 0 ]; then
	if ! command -v apt-get >/dev/null 2>&1; then
		say "Please install: ${packages[*]}"
		exit 1
	fi
	sudo=
	if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
	say "installing: ${packages[*]}"
	$sudo apt-get update -qq
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

# The Go module proxy serves toolchains as modules; the sums are pinned here.
if ! version_at_least "$(go env GOVERSION | sed 's/^go//')" 1.21; then
	case "$(uname -m)" in
	x86_64) arch=amd64 sum=31905a748926ceb42bda1b1c490508b8734fb4e1492c6187b4d52ea1ba722b15 ;;
	aarch64) arch=arm64 sum=b7c1b9093336a1b4970eb76c02673ea4b62ec1470c05f62fb758046024c474b4 ;;
	*) say "No Go toolchain is pinned for $(uname -m); install Go $need_go or newer."; exit 1 ;;
	esac
	say "fetching the Go $need_go toolchain"
	proxy=$(go env GOPROXY | sed 's/[,|].*//')
	mkdir -p .cache
	curl -fsSL -o .cache/go.zip "$proxy/golang.org/toolchain/@v/v0.0.1-go$need_go.linux-$arch.zip"
	echo "$sum  .cache/go.zip" | sha256sum -c --quiet
	rm -rf .cache/go .cache/go-unpack
	unzip -q .cache/go.zip -d .cache/go-unpack
	mv ".cache/go-unpack/golang.org/toolchain@v0.0.1-go$need_go.linux-$arch" .cache/go
	chmod -R u+w .cache/go
	chmod +x .cache/go/bin/* .cache/go/pkg/tool/*/*
	rm -rf .cache/go.zip .cache/go-unpack
fi
