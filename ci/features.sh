#!/usr/bin/env bash
# Every crate builds by itself and with each of its features alone.
set -euo pipefail
cd "$(dirname "$0")/.."
for crate in netio3-core netio3-evloop netio3-asyncmsg; do
    cargo check -p "$crate"
done
for feature in conformance fault serde; do
    cargo check -p netio3-core --features "$feature"
done
cargo check -p netio3 --no-default-features
cargo check -p netio3 --no-default-features --features serde
cargo check -p netio3 --examples
