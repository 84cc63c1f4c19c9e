#!/usr/bin/env bash
# Format, vet and golangci-lint, pinned; the tools are built by go itself.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/check.sh
echo "golangci-lint (its first build takes some minutes)"
go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...
