#!/usr/bin/env bash
# All tests, with everything compiled in, RDMA over sockets included; what depends on the feature rdma also without
# it. With cargo-nextest where it is installed, whose totals come last, or with cargo test.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test --workspace --all-features --doc
ci/nextest.sh -p netio3 -p netio3-bench
# No test may skip for want of libfabric, its headers or a C compiler.
NETIO3_REQUIRE_LIBFABRIC=1 ci/nextest.sh --workspace --all-features
