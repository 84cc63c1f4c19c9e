.PHONY: generate-sql
generate-sql:
	cd store && $(GO) run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate
