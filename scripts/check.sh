#!/usr/bin/env bash
# The quick checks: format and vet of both modules.
set -euo pipefail
cd "$(dirname "$0")/.."
unformatted=$(go run mvdan.cc/gofumpt@v0.12.0 -l $(git ls-files --cached --others --exclude-standard '*.go' | grep -v '^gen/'))
if [ -n "$unformatted" ]; then
	printf 'not formatted (run gofumpt -w):\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet ./...
(cd engine && go vet ./...)
