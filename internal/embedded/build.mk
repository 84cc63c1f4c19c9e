# The programs inside the caisson binary. Each is rebuilt when one of its
# sources is newer; the same sources give the same bytes.

# The snapshot ABI: raise it when a box of this engine could not restore what an
# earlier one saved, although gVisor is the same.
ENGINE_ABI := 1

EMBED_DIR      := internal/embedded/bin
GVISOR_VERSION := $(shell awk '$$1 == "gvisor.dev/gvisor" {print $$2}' engine/go.mod)
ENGINE_SOURCES := $(shell find engine \( -name '*.go' -o -name '*.s' -o -name '*.json' -o -name 'go.*' \) ! -name '*_test.go')
AGENT_SOURCES  := $(shell find agent codeinterp cmd/caisson-agent -type f ! -name '*_test.go') go.mod
PACK_SOURCES   := internal/embedded/cmd/pack/main.go

.PHONY: engine
engine: $(EMBED_DIR)/caisson-engine.zst ## build the sandbox engine (a trimmed gVisor) for embedding

.PHONY: agent
agent: $(EMBED_DIR)/caisson-agent.zst ## build the in-sandbox agent for embedding

# cgo must be off: the sandbox process has no dynamic loader in its root.
$(EMBED_DIR)/caisson-engine.zst: $(ENGINE_SOURCES) $(PACK_SOURCES) internal/embedded/build.mk
	cd engine && CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
		-ldflags '-s -w -buildid= -X gvisor.dev/gvisor/runsc/version.version=$(GVISOR_VERSION)+caisson-abi$(ENGINE_ABI)' \
		-o $(abspath $(EMBED_DIR))/caisson-engine.tmp ./cmd/caisson-engine
	$(GO) run ./internal/embedded/cmd/pack $(EMBED_DIR)/caisson-engine.tmp $@
	@rm -f $(EMBED_DIR)/caisson-engine.tmp

$(EMBED_DIR)/caisson-agent.zst: $(AGENT_SOURCES) $(PACK_SOURCES) internal/embedded/build.mk
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' \
		-o $(EMBED_DIR)/caisson-agent.tmp ./cmd/caisson-agent
	$(GO) run ./internal/embedded/cmd/pack $(EMBED_DIR)/caisson-agent.tmp $@
	@rm -f $(EMBED_DIR)/caisson-agent.tmp
