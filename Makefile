# `make` alone lists what can be done. On a fresh Debian machine with Docker and Go, `sudo make run` and
# `sudo make test` need nothing else.

GOLANGCI_VERSION := 2.15.0

# sudo's PATH has no /usr/local/go/bin, and Debian's own Go may be too old and come first: take the first Go
# that is new enough. Nothing below works without it, so that the error is said once, before anything is done.
GO_WANT := $(shell sed -n 's/^go //p' go.mod)
define FIND_GO
for go in "$(GO)" go "$$GOROOT/bin/go" /usr/local/go/bin/go; do \
  go=$$(command -v "$$go") || continue; \
  have=$$(GOTOOLCHAIN=local "$$go" version 2>/dev/null | sed -n 's/.*[ -]go\([0-9][0-9.]*\).*/\1/p'); \
  [ -n "$$have" ] || continue; \
  printf '%s\n' "$(GO_WANT)" "$$have" | sort -V -C && { echo "$$go"; exit; }; \
done
endef

# Under `env -i`, cron or some init systems there is no HOME, and Go keeps its caches there.
ifeq ($(HOME),)
export HOME := $(shell getent passwd "$$(id -u)" | cut -d: -f6)
endif

# help and clean are for people who have no Go yet, too.
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
override GO := $(shell $(FIND_GO))
ifeq ($(GO),)
$(error needs Go $(GO_WANT) or newer, found none in PATH, $$GOROOT or /usr/local/go: install it from https://go.dev/dl/ into /usr/local/go, or name one with make GO=/path/to/go)
endif
# What Go and the linter start themselves must be the same Go.
export PATH := $(dir $(GO)):$(PATH)
export GOTOOLCHAIN := local
endif

# A checkout that belongs to somebody else (sudo, a bind mount) is no error, and no reason for root to write into .git.
VERSION = $(shell GIT_OPTIONAL_LOCKS=0 git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -s -w -X main.version=$(VERSION)

PREFIX ?= /usr/local

.DEFAULT_GOAL := help
.PHONY: help build run test test-long test-kernel test-engine bench generate lint format install clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r target what; do printf '%-10s %s\n' "$$target" "$$what"; done

build: ## build ./vethwall (static, no clang needed)
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)' -o vethwall ./cmd/vethwall

run: build ## build, then run the agent in the foreground (as root)
	./vethwall agent

# One package after the other: the link and engine layers share one kernel, and time-outs are measured there.
TEST = $(GO) test -count=1 -p 1

test: ## every test layer that this machine can run (root and a Docker engine: all of them)
	$(GO) vet ./...
	$(TEST) -timeout 40m ./...

test-kernel: ## packet and link tests on Debian's kernel, in a virtual machine
	PATH="$(dir $(GO)):$$PATH" hack/kernel.sh

# A Docker engine of a current generation, built from source. It does not belong into the repository.
ENGINE ?= $(HOME)/.cache/vethwall-engine

test-engine: ## the engine tests on a current Docker engine, built into ENGINE first
	hack/engine.sh '$(ENGINE)'
	VETHWALL_ENGINE='$(abspath $(ENGINE))' $(TEST) -timeout 40m ./internal/enginetest ./docker ./examples ./cmd/vethwall

test-long: ## the same with more random cases, and for longer
	VETHWALL_LONG=1 $(TEST) -timeout 180m ./...

bench: ## every benchmark (root, iperf3, xdp-tools), half an hour; writes docs/benchmarks.md
	VETHWALL_BENCH_DOCS='$(CURDIR)/docs' $(TEST) -run '^$$' -bench . -timeout 120m ./...

# The article's programs are compiled as it says, so without BTF. Debian keeps <asm/types.h> in a directory of the
# machine's architecture; the types and so the objects are the same on all.
generate: ## rebuild the committed objects from C (clang-16, llvm-16)
	@{ command -v clang-16 && command -v llvm-strip-16; } >/dev/null || \
	  { echo 'make generate: needs clang 16: apt-get install clang-16 llvm-16 libbpf-dev linux-libc-dev' >&2; exit 2; }
	$(GO) generate ./xdp
	cd examples/article && for p in dropper udp; do \
	  clang-16 -O2 -target bpf -I/usr/include/$$(uname -m)-linux-gnu -c $$p.c -o $$p.o || exit; done

C_FILES = $(wildcard bpf/*.[ch] examples/*/*.[ch])

lint: golangci-lint ## formatting, import graph, usual mistakes
	clang-format-16 --dry-run --Werror $(C_FILES)
	$(GOLANGCI) run ./...

format: golangci-lint ## format Go and C in place
	clang-format-16 -i $(C_FILES)
	$(GOLANGCI) fmt ./...

GOLANGCI = $(shell $(GO) env GOPATH)/bin/golangci-lint

.PHONY: golangci-lint
golangci-lint:
	@command -v clang-format-16 >/dev/null || { echo 'make lint: needs clang-format: apt-get install clang-format-16' >&2; exit 2; }
	@$(GOLANGCI) version 2>/dev/null | grep -q ' $(GOLANGCI_VERSION) ' || \
	  GOBIN=$(dir $(GOLANGCI)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_VERSION)

install: build ## put vethwall into $(PREFIX)/bin
	install -D -m 0755 vethwall $(DESTDIR)$(PREFIX)/bin/vethwall

clean: ## remove what build made
	rm -f vethwall
