# Code from spec/*.proto. Tool versions are pinned here and equal those of the
# runtime modules in go.mod.
PROTOC_GEN_GO         := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_CONNECT_GO := connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
PROTO_TOOLS           := $(CURDIR)/.cache/proto-tools

.PHONY: generate-proto
generate-proto: ## generate gen/process and gen/filesystem (needs protoc)
	mkdir -p $(PROTO_TOOLS)
	GOBIN=$(PROTO_TOOLS) go install $(PROTOC_GEN_GO)
	GOBIN=$(PROTO_TOOLS) go install $(PROTOC_GEN_CONNECT_GO)
	PATH="$(PROTO_TOOLS):$$PATH" protoc -I spec \
		--go_out=. --go_opt=module=github.com/caisson-dev/caisson \
		--connect-go_out=. --connect-go_opt=module=github.com/caisson-dev/caisson \
		spec/process.proto spec/filesystem.proto

# Code from spec/*.yaml: the wire types and the routing of api/e2b and api/native.
OAPI_CODEGEN := github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2

.PHONY: generate-api
generate-api: ## generate gen/e2bapi and gen/nativeapi
	mkdir -p gen/e2bapi gen/nativeapi
	$(GO) run $(OAPI_CODEGEN) -config spec/e2bapi.cfg.yaml spec/openapi.yaml
	$(GO) run $(OAPI_CODEGEN) -config spec/nativeapi.cfg.yaml spec/native.yaml
