#!/usr/bin/env bash
# Builds every stock template, uses each for what it is for in real sandboxes, and
# says how long that takes and what it needs. Needs root, a package mirror and
# 8 GB of disk. STOCK_REBUILD=base,dev builds those again and compares the images.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.cache/go/bin:$PATH"

data="$PWD/.cache/stock-data"
bin/caisson init --data "$data"
bin/caisson template build --stock --data "$data"

CAISSON_TEST_BIN="$PWD/bin/caisson" CAISSON_TEST_DATA="$data" CAISSON_TEST_REBUILD="${STOCK_REBUILD:-minimal}" \
	go test -count=1 -timeout 60m -v -parallel 1 -run 'TestStock' ./test/e2e | grep -E -v '^=== (RUN|PAUSE|CONT)'
