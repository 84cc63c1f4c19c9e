#!/usr/bin/env bash
# Everything CI runs, in one go. Needs root for the parts that start real
# sandboxes; without it those parts say that they were skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.cache/go/bin:$PWD/.cache/node/node_modules/.bin:$PATH"

started=$SECONDS
step() { printf '\n== %s (%ds)\n' "$*" "$((SECONDS - started))"; }

step "dependencies"
scripts/deps.sh --tests

step "format and vet"
make --no-print-directory engine agent
scripts/check.sh

step "build"
make --no-print-directory build

step "stock templates"
bin/caisson init --data .cache/test-data
bin/caisson template build code-interpreter-v1 --data .cache/test-data
bin/caisson template build minimal --data .cache/test-data

export CAISSON_TEST_BIN="$PWD/bin/caisson" CAISSON_TEST_DATA="$PWD/.cache/test-data"

step "engine module"
(cd engine && go test ./...)

step "unit, suites, CLI, real gVisor"
CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m $(go list ./... | grep -v /test/)

step "end to end on real gVisor"
go test -timeout 15m -count=1 ./test/...

step "published E2B SDKs"
scripts/compat.sh

step "done"
