# Caisson: every target explains itself with `make help`.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules
.DEFAULT_GOAL := help

# A toolchain that scripts/deps.sh bootstrapped goes first.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH)
export CGO_ENABLED ?= 0
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

include internal/embedded/build.mk
-include spec/generate.mk
-include store/generate.mk

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install what building, the base template and the tests need (Debian, Ubuntu; asks apt)
	@./scripts/deps.sh

.PHONY: build
build: bin/caisson ## build bin/caisson: one static binary with engine and agent inside

.PHONY: bin/caisson
bin/caisson: engine agent
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/caisson
	@ls -l $@ | awk '{printf "built %s (%.1f MB)\n", $$9, $$5/1e6}'

.PHONY: demo
demo: ## from nothing to code running in sandboxes: installs, builds, prepares, runs, cleans up
	@./scripts/demo.sh

.PHONY: test
test: ## everything CI runs: format, vet, shape, unit (race), suites, CLI, real gVisor, published SDKs
	@./scripts/test.sh

.PHONY: test-postgres
test-postgres: build ## the end-to-end suite with PostgreSQL in SQLite's place (make test runs the store's suite on both)
	@./scripts/deps.sh --tests
	bin/caisson init --data .cache/test-data
	bin/caisson template build code-interpreter-v1 --data .cache/test-data
	bin/caisson template build minimal --data .cache/test-data
	CAISSON_TEST_DATABASE=postgres CAISSON_TEST_BIN="$(CURDIR)/bin/caisson" CAISSON_TEST_DATA="$(CURDIR)/.cache/test-data" \
		$(GO) test -timeout 15m -count=1 ./test/e2e

.PHONY: bench
bench: ## measure everything in one run and write docs/benchmarks.md
	@./scripts/bench.sh

.PHONY: soak
soak: build ## 10,000 lives of sandboxes while server, engine and sandboxes are killed; about 5 hours (SOAK="--cycles 500" for less)
	bin/caisson init --data .cache/test-data
	$(GO) run ./test/soak --data "$(CURDIR)/.cache/test-data" $(SOAK)

.PHONY: stock
stock: build ## build every stock template and use each for what it is for; about 20 minutes (STOCK_REBUILD=base,dev compares two builds)
	@./scripts/stock.sh

.PHONY: lint
lint: ## format check, go vet, golangci-lint with the import rules
	@./scripts/lint.sh

.PHONY: generate
generate: ## regenerate gen/ from spec/ and store/queries
	@$(MAKE) --no-print-directory generate-proto generate-api generate-sql

.PHONY: clean
clean: ## remove what make build made
	rm -rf bin
	find internal/embedded/bin -type f ! -name README -delete
