#!/usr/bin/env bash
# Starts a server on a copy of the test data and runs the programs of
# test/compat, on the published E2B SDKs, against it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.cache/go/bin:$PWD/.cache/node/node_modules/.bin:$PATH"

data=$(mktemp -d)/data
port=${CAISSON_COMPAT_PORT:-3180}
log=$(mktemp)
cp -al "${CAISSON_TEST_DATA:-.cache/test-data}" "$data"
find "$data" -maxdepth 1 -name 'caisson.db*' -exec sh -c 'cp --remove-destination "$1" "$1.copy" && mv "$1.copy" "$1"' _ {} \;

bin/caisson serve --data "$data" --listen "127.0.0.1:$port" --destroy-on-exit >"$log" 2>&1 &
server=$!
finish() {
	kill "$server" 2>/dev/null && wait "$server" || true
	rm -rf "$(dirname "$data")"
}
trap finish EXIT
for _ in $(seq 100); do
	curl -fsS -o /dev/null "http://127.0.0.1:$port/health" 2>/dev/null && break
	kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
	sleep 0.1
done

export E2B_API_KEY E2B_API_URL="http://127.0.0.1:$port" E2B_SANDBOX_URL="http://127.0.0.1:$port"
E2B_API_KEY=$(cat "$data/api-key")
test/compat/run.sh "$@" || { echo "--- server log"; tail -n 60 "$log"; exit 1; }
