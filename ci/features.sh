#!/usr/bin/env bash
# Every crate builds by itself and with each of its features alone, and makes a package that others can depend on.
set -euo pipefail
cd "$(dirname "$0")/.."
for crate in netio3-core netio3-evloop netio3-asyncmsg netio3-libfabric-sys netio3-libfabric; do
    cargo check -p "$crate"
done
for feature in conformance fault serde; do
    cargo check -p netio3-core --features "$feature"
done
for features in "" serde fault rdma "rdma serde" tcp; do
    cargo check -p netio3 --no-default-features --features "$features"
done
for features in rdma tcp; do
    cargo check -p netio3-bench --no-default-features --features "$features"
done
cargo check -p netio3 --examples
cargo check -p netio3 --examples --all-features
# The comparison with other libraries is no member of the workspace, and its lock file follows by hand.
cargo metadata --locked --format-version 1 --manifest-path netio3-bench/peers/Cargo.toml > /dev/null
# Fails where a dependency within the workspace has no version.
cargo package --workspace --no-verify --allow-dirty --quiet
