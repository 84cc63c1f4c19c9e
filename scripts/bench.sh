#!/usr/bin/env bash
# Measures everything in one run and writes docs/benchmarks.md. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.cache/go/bin:$PWD/.cache/node/node_modules/.bin:$PATH"

scripts/deps.sh --bench
make --no-print-directory build
bin/caisson init --data .cache/bench-data
bin/caisson template build code-interpreter-v1 --data .cache/bench-data

# What bubblewrap, runc and Docker run in: a plain Debian tree.
rootfs=.cache/bench-rootfs
if [ ! -e "$rootfs/.complete" ]; then
	rm -rf "$rootfs"
	mmdebstrap --variant=minbase --include=python3-minimal --quiet bookworm "$rootfs"
	touch "$rootfs/.complete"
fi
# The same pinned SDK that the compatibility programs use.
sdk=test/compat/js
(cd "$sdk" && npm ci --silent --no-audit --no-fund)

exec go run ./test/bench --data "$PWD/.cache/bench-data" --rootfs "$PWD/$rootfs" --sdk "$PWD/$sdk" "$@"
