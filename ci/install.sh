#!/usr/bin/env bash
# Installs with apt-get what the build and the tests need beside Rust: a C compiler, libfabric with its headers
# for the tests of the RDMA backend, and valgrind for counting instructions. Neither the build nor programs without RDMA
# need libfabric.
set -euo pipefail

missing=()
command -v cc > /dev/null || missing+=(gcc libc6-dev)
for package in libfabric1 libfabric-dev valgrind; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q ' installed' || missing+=("$package")
done
if ((${#missing[@]})); then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
fi
command -v cargo > /dev/null || { echo "cargo is missing: install Rust 1.90 or later first" >&2; exit 1; }
for component in fmt clippy; do
    cargo "$component" --version > /dev/null || { echo "cargo $component is missing: rustup component add rustfmt clippy" >&2; exit 1; }
done
