#!/usr/bin/env bash
# Where libfabric is absent, everything builds, the tests pass, and programs say what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build -p netio3-bench --all-features
program=$(realpath "${CARGO_TARGET_DIR:-target}/debug/netio3-bench")
if ldd "$program" | grep libfabric; then
    echo "netio3-bench is linked with libfabric" >&2
    exit 1
fi

# Found first and no library, so that opening it fails.
hidden=$(mktemp -d)
trap 'rm -rf "$hidden"' EXIT
: > "$hidden/libfabric.so.1"
export LD_LIBRARY_PATH=$hidden

status=0
told=$("$program" info --backend rdma 2>&1 > /dev/null) || status=$?
case "$status $told" in
    1*"install libfabric"*) ;;
    *)
        echo "netio3-bench info --backend rdma ended with status $status and said: $told" >&2
        exit 1
        ;;
esac
status=0
told=$("$program" recv --listen 127.0.0.1:0 --backend rdma 2>&1 > /dev/null) || status=$?
case "$status $told" in
    2*"install libfabric"*) ;;
    *)
        echo "netio3-bench recv --backend rdma ended with status $status and said: $told" >&2
        exit 1
        ;;
esac
ci/nextest.sh -p netio3 -p netio3-bench -p netio3-libfabric -p netio3-libfabric-sys --all-features
