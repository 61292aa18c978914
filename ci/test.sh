#!/usr/bin/env bash
# All tests; with cargo-nextest where it is installed, whose totals come last, or with cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test --workspace --all-features --doc
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --workspace --all-features
else
    cargo test --workspace --all-features --lib --bins --tests --examples
fi
