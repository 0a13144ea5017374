# Thin on purpose: what a target does is in the package comment of the Go program that it runs.
GO ?= go

.DEFAULT_GOAL := help
.PHONY: demo test build image lint generate bench packets mutants clean help

demo: ## the walk-through: two pods, one gets into the database (about 30 minutes the first time, then 8 to 15)
	$(GO) run ./cmd/vpclab demo

test: ## everything that CI runs (50 to 60 minutes the first time, then 14 to 20)
	$(GO) run ./scripts/check

build: ## executables for amd64 and arm64 into out/bin
	$(GO) run ./scripts/build

image: ## container images for amd64 and arm64 into out/images
	$(GO) run ./scripts/image

lint: ## gofmt, go vet, staticcheck, generated code
	$(GO) run ./scripts/check -only lint,generate

generate: ## gRPC code, deep copies, CRDs
	$(GO) run ./scripts/generate

bench: ## the CNI executable beside others of its kind, what a node asks of EC2, the agent's memory (about 6 minutes)
	$(GO) run ./test/bench/cost -json out/cost.json
	$(GO) test -count=1 -tags lab -v -run '^TestFootprint$$' ./ipamd -args -footprint-pods 110,700 -footprint-json $(CURDIR)/out/footprint.json
	$(GO) run ./test/bench -json out/bench.json

packets: ## what a packet costs on a node with up to 700 regular and 120 branch pods (about 4 minutes, root)
	$(GO) run ./test/bench/packets -json out/packets.json

mutants: ## show that tests see each of the faults in plugins/eni/testdata and ipamd/testdata/mutants.txt (about 20 minutes, root)
	$(GO) run ./test/mutants ipamd/testdata/mutants.txt ./ipamd
	$(GO) run ./test/kernel -mutants plugins/eni/testdata/mutants.txt ./plugins/eni

clean: ## remove out/ (the cache outside the checkout stays; its folder is named)
	rm -rf out
	@echo "kept: $${BRANCHLINE_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/branchline}"

help: ## this list
	@grep -hE '^[a-z]+: ##' $(MAKEFILE_LIST) | sed 's/: ## /\t/' | expand -t 12
