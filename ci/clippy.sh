#!/usr/bin/env bash
# No warning, in any target with any feature; `incompatible_msrv` watches the stated rust-version.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo clippy --workspace --all-targets --all-features -- -D warnings
cargo clippy --workspace --all-targets -- -D warnings
