# The entry points that people type. `make demo` and `make test` are the two that matter; both
# work on a fresh machine that has Rust (rustup), a C compiler and Python's pip.

SHELL := /bin/bash

.PHONY: help build demo test models nvrtc bench lint verify-unit clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: nvrtc ## build the release binaries: target/release/m40d and m40ctl
	cargo build --locked --release --bins

demo: nvrtc ## start the daemon, load a real model and let it answer a question
	tests/demo

test: models nvrtc lint verify-unit ## everything: models, formatting, lints, tests, the unit file
	cargo test --locked

models: ## fetch the real models that tests and demo use (350 MB, once)
	tests/models

nvrtc: ## fetch the compiler of the GPU kernels (90 MB, once); without network builds have none
	kernels/fetch-nvrtc

bench: models nvrtc ## print a table of the CPU backend's speed
	cargo bench --locked --bench throughput

lint: nvrtc ## formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

verify-unit: ## check the systemd unit where systemd is installed
	tests/verify-unit

clean: ## remove everything that was built
	cargo clean
