# Everything from a fresh checkout on a machine with a Rust toolchain. `make` alone lists the targets.
.PHONY: help setup build demo test test-engines soak fuzz deny bench bench-report scenarios lint doc clean

example := --manifest-path examples/plugin-my-policy/Cargo.toml --target-dir target/example
bench := --locked --release --quiet --manifest-path tests/bench/Cargo.toml
scenarios := --manifest-path tests/scenarios/Cargo.toml
plugins := --package vision-proxy-sdk --package round-robin --package least-busy --package model-map

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile

setup: ## make Rust's wasm32-wasip2 target available
	@.ci/ensure-wasm-target

build: setup ## build target/release/vision-proxy
	cargo build --locked --release

demo: setup ## run three simulated GPU servers, the proxy and its dashboard
	cargo run --locked -- demo

# The runner comes last: its closing line sums up.
test: setup ## run all tests, with nextest where it is installed
	@.ci/ensure-test-clients
	cargo test --locked --workspace --doc
	cargo test --locked $(example)
	cargo test --locked $(scenarios)
	cargo build --locked --release --target wasm32-wasip2 $(example)
	@if cargo nextest --version >/dev/null 2>&1; then \
	  set -x; cargo nextest run --locked --workspace --config-file .ci/nextest.toml; \
	else \
	  set -x; cargo test --locked --workspace --all-targets; \
	fi

# Not by nextest, whose limit for a test is shorter than a vLLM's start.
test-engines: setup ## install vLLM for CPUs (2.6 GB) and run the tests before it, which takes minutes
	@tests/engines/vllm/install .cache/engines/vllm
	cargo test --locked --package vision-proxy --test engines -- --nocapture --test-threads=1

soak: setup ## mix faults for a while and check every promise, such as SOAK="--seconds 600 --seed 7" (docs/reliability.md)
	cargo test --locked --package vision-proxy --test soak -- $(SOAK)

# Without a sanitizer, which would want a nightly compiler: there is no unsafe code of ours for one to watch.
fuzz: setup ## fuzz everything that reads what strangers write, a minute each, or FUZZ="-max_total_time=3600"
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: run 'cargo install --locked cargo-fuzz'" >&2; exit 1; }
	@set -ex; for target in scan_splice multipart rename answer metrics config plugin_loader; do \
	  found=tests/fuzz/target/found/$$target; mkdir -p $$found; \
	  cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target $$found tests/fuzz/corpus/$$target -- -max_total_time=60 $(FUZZ); \
	done

deny: ## check licences, bans and sources of all dependencies
	@cargo deny --version >/dev/null 2>&1 || { echo "cargo-deny is missing: run 'cargo install --locked cargo-deny'" >&2; exit 1; }
	cargo deny --locked --config .ci/deny.toml check licenses bans sources

bench: build ## compare with other proxies, such as BENCH="--quick" (tests/bench/README.md)
	cargo run $(bench) -- run $(BENCH)

bench-report: ## write target/bench/report.md and report.svg from the results of `make bench`
	cargo run $(bench) -- report

scenarios: build ## balance fleets of simulated servers, 5 min, or 40 s with SCENARIOS="--quick" (docs/capacity.md)
	cargo run --locked --release --quiet $(scenarios) -- $(SCENARIOS)

# The plugins are linted twice: natively, and as what they are for.
lint: setup ## check format and lints
	cargo fmt --all --check
	cargo fmt --check --manifest-path examples/plugin-my-policy/Cargo.toml
	cargo fmt --check --manifest-path tests/bench/Cargo.toml
	cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
	cargo fmt --check --manifest-path tests/scenarios/Cargo.toml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --package vision-proxy --test engines --test soak -- -D warnings
	cargo clippy --locked --target wasm32-wasip2 $(plugins) -- -D warnings
	cargo clippy --locked --all-targets $(example) -- -D warnings
	cargo clippy --locked --all-targets $(scenarios) -- -D warnings

doc: setup ## build the documentation of the crates
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

clean: ## remove what was built, and the clients that the tests installed
	cargo clean
	rm -rf .cache tests/bench/target tests/fuzz/target
