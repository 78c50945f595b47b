# Everything a person or a machine does with this repository. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Stages build on each other and share one machine: never two at once, whatever -j says.
.NOTPARALLEL:

CARGO ?= cargo
# Every target uses these, so that `make demo` and `make test` share what was built.
LOCKED := --locked
PRODUCT := -p fabric-node -p fabric-cni --bins

VERSION := $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# Where toolchains and system programs are, for shells that have not read a profile.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/cargo/bin:/usr/local/go/bin:/usr/sbin:/sbin
export FABRIC_BIN_DIR ?= $(TARGET_DIR)/release

# Namespaces, interfaces and throughput belong to the whole machine: one such test at a time.
ONE_AT_A_TIME := -- --test-threads=1

# Integration tests by where they run: in namespaces, in labs of the whole product, anywhere.
test-files = $(foreach dir,$(1),$(wildcard $(dir)/*.rs) $(patsubst %/main.rs,%.rs,$(wildcard $(dir)/*/main.rs)))
test-names = $(sort $(basename $(notdir $(call test-files,$(1)))))
NETNS_TESTS := $(filter-out fabric_command,$(call test-names,fabric-node/tests))
# With container runtimes, which mount and leave processes behind when they are killed.
RUNTIME_TESTS := $(filter-out runtime_image,$(filter runtime_%,$(call test-names,tests/tests)))
# With a Kubernetes cluster or parts of one, helm, or the image: what takes long to build.
E2E_TESTS := $(filter e2e_% kube_% manifest image_archive runtime_image,$(call test-names,tests/tests))
LAB_TESTS := $(filter-out $(RUNTIME_TESTS) $(E2E_TESTS),$(call test-names,tests/tests))
# They build and install what the product is compared with: only on demand.
CONTENDER_TESTS := contenders
UNIT_TESTS := $(filter-out $(NETNS_TESTS) $(CONTENDER_TESTS),$(call test-names,$(wildcard fabric-*/tests proto/tests benches/tests)))

# What `make test` runs, in this order: what fails fastest comes first.
TEST_STAGES := fmt-check lint doc build unit netns lab runtimes bench-check

# The comparison with wireguard-go, as a report and as a check with a verdict. The runner only starts
# and reads others, so it is built with the tests; what it measures are the release programs.
BENCH_PEERS := $(TARGET_DIR)/debug/bench-peers
BUILD_BENCH_PEERS := $(CARGO) build $(LOCKED) --workspace --bin bench-peers
BENCH_CHECK_ARGS ?= --check
BENCH_PEERS_ARGS ?=
# Measured with the same programs, built in the same way: see `--help` of each.
BENCH_FAIR_ARGS ?=
FUZZ_ARGS ?=
SOAK_ARGS ?=
CHURN_ARGS ?=
CLUSTER_ARGS ?=
BENCH_FLAME_ARGS ?=
BENCH_LIMITS_ARGS ?=
BENCH_OFFLOADS_ARGS ?=

.PHONY: help demo test build image manifest install-deps fmt fmt-check lint doc unit netns lab runtimes e2e bench-check \
	cluster-up cluster-down bench yardstick bench-peers bench-peers-check bench-fair bench-flame bench-limits bench-offloads fuzz soak churn deny clean-lab

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## From a fresh machine to the proof: install, build, run `fabric lab demo`
	@scripts/install-deps demo
	@scripts/build-for-demo
	@$(FABRIC_BIN_DIR)/fabric lab demo

test: ## Everything that CI runs, stopping at the first stage that fails; needs root
	@scripts/install-deps test
	@scripts/run-stages $(TEST_STAGES)

install-deps: ## Install what the other targets need, or say what is missing
	@scripts/install-deps test

build: ## Build the programs fabric, fabric-node and fabric-cni (release)
	$(CARGO) build $(LOCKED) --release $(PRODUCT)

# Programs of the image need no shared library. With a target that is named, the flag is not for proc macros, which
# are shared libraries themselves.
HOST = $(shell PATH='$(PATH)' rustc -vV | sed -n 's/^host: //p')
IMAGE_PROGRAMS := -p fabric-node --bin fabric-node -p fabric-cni --bin fabric-cni

image: ## The container image, target/image/fabric-VERSION.tar, of static programs
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build $(LOCKED) --release --target $(HOST) $(IMAGE_PROGRAMS)
	scripts/image $(TARGET_DIR)/$(HOST)/release $(TARGET_DIR)/image/fabric-$(VERSION).tar

manifest: ## Render the Helm chart into deploy/kubernetes/*.yaml; needs helm 4, or HELM=program
	scripts/manifest $(HELM)

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Refuse code that is not formatted
	$(CARGO) fmt --all --check

lint: ## Clippy on everything, warnings are errors
	$(CARGO) clippy $(LOCKED) --workspace --all-targets -- -D warnings

# Documentation here is for those who change the code: links to private items are wanted.
doc: ## Rustdoc of everything, private items too, warnings are errors
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc $(LOCKED) --workspace --no-deps --document-private-items

# The packages are the same in all three, only the targets differ: so are the features, and nothing
# is compiled twice.
unit: ## Unit, property, documentation and command tests of all crates; needs root
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace --lib --bins $(addprefix --test ,$(UNIT_TESTS))
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace --doc

netns: ## Tests of the data plane in network namespaces; needs root
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace $(addprefix --test ,$(NETNS_TESTS)) $(ONE_AT_A_TIME)

lab: build ## Tests of the whole product in labs, from ADD of a pod to hostile peers; needs root
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace $(addprefix --test ,$(LAB_TESTS)) $(ONE_AT_A_TIME)

# All mounts and processes of such a test die with the sandbox; what is compiled is not made there.
SANDBOX := scripts/sandbox
TEST_RUNTIMES := $(CARGO) test $(LOCKED) --no-fail-fast --workspace $(addprefix --test ,$(RUNTIME_TESTS))

runtimes: build ## Tests under real container runtimes: containerd, podman, CRI; needs root
	$(TEST_RUNTIMES) --no-run
	$(SANDBOX) $(TEST_RUNTIMES) $(ONE_AT_A_TIME)

# The programs of Kubernetes are built before, outside of the sandbox and once for all checkouts.
CLUSTER := $(TARGET_DIR)/debug/cluster
BUILD_CLUSTER := $(CARGO) build $(LOCKED) --workspace --bin cluster
TEST_E2E := $(CARGO) test $(LOCKED) --no-fail-fast --workspace $(addprefix --test ,$(E2E_TESTS))

e2e: build image ## Tests on a real Kubernetes cluster of nodes on this machine; needs root
	$(BUILD_CLUSTER)
	$(TEST_E2E) --no-run
	$(CLUSTER) build
	$(SANDBOX) $(TEST_E2E) $(ONE_AT_A_TIME) --nocapture

cluster-up: ## A Kubernetes cluster that stays, and what to type next; CLUSTER_ARGS="--nodes 3 --proxy nftables"; needs root
	@scripts/install-deps test
	$(BUILD_CLUSTER)
	@$(CLUSTER) build
	@$(CLUSTER) up $(CLUSTER_ARGS)

cluster-down: ## Take that cluster down
	@$(CLUSTER) down

bench-check: build ## Fail if one TCP stream falls below the regression floors; needs root
	$(BUILD_BENCH_PEERS)
	$(BENCH_PEERS) $(BENCH_CHECK_ARGS)

bench: ## Micro-benchmarks of the packet path
	$(CARGO) bench $(LOCKED) -p fabric-benches

# The yardsticks are measured, so they are a release program.
yardstick:
	$(CARGO) build $(LOCKED) --release -p fabric-benches --bin yardstick

bench-peers: build yardstick ## Side by side with others, on this machine; needs root
	@scripts/install-deps bench
	$(BUILD_BENCH_PEERS)
	$(BENCH_PEERS) $(BENCH_PEERS_ARGS)

bench-peers-check: build yardstick ## Fail unless each of the others comes up and carries packets; needs root
	@scripts/install-deps bench
	$(CARGO) test $(LOCKED) --no-fail-fast --workspace $(addprefix --test ,$(CONTENDER_TESTS)) $(ONE_AT_A_TIME) --nocapture

bench-fair: build ## Shares of four pods that send at once, and a ping beside them; needs root
	$(CARGO) build $(LOCKED) --workspace --bin bench-fair
	$(TARGET_DIR)/debug/bench-fair $(BENCH_FAIR_ARGS)

# A profile of its own: as fast as a release, and every overflow is found. The plugin is the release.
fuzz: build ## 10 million made-up inputs for the plugin, more for other parsers, 20,000 real calls; needs root
	$(CARGO) build $(LOCKED) --profile fuzz -p fabric-tests --bin fuzz
	$(TARGET_DIR)/fuzz/fuzz --plugin $(FABRIC_BIN_DIR)/fabric-cni $(FUZZ_ARGS)
	FABRIC_FUZZ_FRAMES=1000000 $(CARGO) test $(LOCKED) -p fabric-node --lib any_frame_is_borne

soak: build ## 20 GB over a bad cable, then ten minutes of full load: half an hour; needs root
	$(CARGO) build $(LOCKED) --workspace --bin soak --bin impair
	$(TARGET_DIR)/debug/soak $(SOAK_ARGS)

churn: build ## 10,000 ADDs and DELs while daemon and plugin are killed, 1,000 CRI sandboxes, 100 of podman: half an hour; needs root
	$(CARGO) build $(LOCKED) --workspace --bin churn
	$(TARGET_DIR)/debug/churn $(CHURN_ARGS)
	$(TEST_RUNTIMES) --no-run
	FABRIC_CHURN_SANDBOXES=1000 $(SANDBOX) $(CARGO) test $(LOCKED) --workspace --test runtime_cri_churn -- --nocapture
	FABRIC_CHURN_CONTAINERS=100 $(SANDBOX) $(CARGO) test $(LOCKED) --workspace --test runtime_podman $(ONE_AT_A_TIME) --nocapture

bench-flame: build ## Flame graphs of both ends of a TCP stream; needs root and perf
	$(CARGO) build $(LOCKED) --workspace --bin bench-flame
	$(TARGET_DIR)/debug/bench-flame $(BENCH_FLAME_ARGS)

# Times lookups itself, so it is a release program.
bench-limits: build ## Route lookup, ADD of a pod, idling, restart: each against its limit; needs root
	$(CARGO) build $(LOCKED) --release -p fabric-benches --bin bench-limits
	$(TARGET_DIR)/release/bench-limits $(BENCH_LIMITS_ARGS)

bench-offloads: build ## What a TCP stream costs without each of the offloads; needs root
	@scripts/install-deps test
	$(CARGO) build $(LOCKED) --workspace --bin bench-offloads
	$(TARGET_DIR)/debug/bench-offloads $(BENCH_OFFLOADS_ARGS)

deny: ## Licences, banned crates and sources of all dependencies (cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "make deny: there is no cargo-deny:" \
		"\`cargo install cargo-deny --locked\` builds it, in some minutes" >&2; exit 1; }
	$(CARGO) deny $(LOCKED) check licenses bans sources

clean-lab: ## Take down all labs of this user, whatever state they are in
	@scripts/clean-lab
