# The entry points that people type. `make demo` and `make test` are the two that matter; both
# work on a fresh machine that has Rust (rustup), a C compiler and Python's pip.

SHELL := /bin/bash
export DESTDIR PREFIX

# Which of cargo's profiles the programs are of that are installed and packaged.
PROFILE := release

.PHONY: help build install package demo test sm52 models clients nvrtc nvdisasm bench bench-gpu bench-http bench-pull lint reference verify-unit clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: nvrtc ## build target/release/m40d, m40ctl and the library for C
	cargo build --locked --release --bins --lib

install: ## install below DESTDIR and PREFIX (/usr/local) what `make build` has built; PROFILE=debug what tests use
	packaging/install m40d target/$(PROFILE)
	packaging/install dev target/$(PROFILE)

package: $(if $(filter release,$(PROFILE)),build) ## make Debian packages, target/m40d_*.deb and libm40llm-dev_*.deb
	packaging/package m40d target/$(PROFILE) target
	packaging/package dev target/$(PROFILE) target

demo: nvrtc ## start the daemon, load a real model and let it answer a question
	tests/demo

test: models clients nvrtc nvdisasm lint verify-unit ## everything: models, lints, tests, machine code, the units
	cargo test --locked
	tests/inspect-sm52
	kernels/inspect-sm52 --check

sm52: nvrtc nvdisasm ## check what the kernels take on the M40 (kernels/sm52.txt)
	tests/inspect-sm52
	kernels/inspect-sm52 --check

models: ## fetch the real models that tests and demo use (350 MB, once)
	tests/models

clients: ## install the Python and npm packages that drive m40d in tests (480 MB, once); without network they do not
	tests/clients/install

nvrtc: ## fetch the compiler of the GPU kernels (90 MB, once); without network builds have none
	kernels/fetch-cuda nvrtc

nvdisasm: ## fetch the reader of the M40's machine code (155 MB, once); without network it is not checked
	kernels/fetch-cuda nvdisasm

bench: models nvrtc ## print a table of the CPU backend's speed
	cargo bench --locked --bench throughput

bench-gpu: nvrtc ## print tables of the GPU's speed; MODELS="8b-q4_0 FILE.gguf" names shapes and files
	cargo bench --locked --bench models -- $(MODELS)

bench-http: nvrtc ## print what HTTP costs beside the engine alone
	cargo bench --locked --bench http

bench-pull: nvrtc ## print how fast a model is downloaded, beside curl, and the memory that takes
	cargo bench --locked --bench pull

lint: nvrtc ## formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

reference: ## write the help texts, the man pages that are made of the code and the header for C anew
	M40_WRITE_REFERENCE=1 cargo test --locked --bin m40ctl --bin m40d reference
	M40_WRITE_REFERENCE=1 cargo test --locked --test abi the_header

verify-unit: ## check the systemd units where systemd is installed
	tests/verify-unit

clean: ## remove everything that was built
	cargo clean
