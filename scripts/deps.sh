#!/usr/bin/env bash
# Installs what is missing to build Caisson, its base template and its tests.
# Debian and Ubuntu only; elsewhere it lists what to install.
set -euo pipefail

need_go=1.26.3
say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

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

if ! command -v go >/dev/null 2>&1; then
	say "Go $need_go or newer is missing."
	packages+=(golang-go)
elif ! version_at_least "$(go env GOVERSION | sed 's/^go//')" 1.21; then
	say "Go $(go env GOVERSION) is too old to fetch its own newer toolchain; install Go $need_go."
	exit 1
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

if ! version_at_least "$(go env GOVERSION | sed 's/^go//')" "$need_go"; then
	say "Go $(go env GOVERSION) found; the go command fetches $need_go by itself (GOTOOLCHAIN=auto)."
fi
