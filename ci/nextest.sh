#!/usr/bin/env bash
# Runs tests with cargo-nextest where it is installed, otherwise with cargo test: the packages and features given.
set -euo pipefail
cd "$(dirname "$0")/.."
if cargo nextest --version > /dev/null 2>&1; then
    cargo nextest run "$@"
else
    cargo test "$@" --no-fail-fast --lib --bins --tests --examples
fi
