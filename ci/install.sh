#!/usr/bin/env bash
# Installs with apt-get what the build and the tests need beside Rust.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if ((${#missing[@]})); then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update
    $sudo apt-get install -y --no-install-recommends "${missing[@]}"
fi
command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.88 or later first" >&2; exit 1; }
for component in fmt clippy; do
    cargo "$component" --version >/dev/null || { echo "cargo $component is missing: rustup component add rustfmt clippy" >&2; exit 1; }
done
